"""What a mounted model and a prompt style add to a stage's key."""

from dataclasses import replace
from pathlib import Path

from visloop.chat.weights import resolve_model
from visloop.config import Backend, ChatConfig, Config
from visloop.prompts.render import PromptSet


def chat_inputs(role: str, chat: ChatConfig) -> dict[str, Path]:
    """The weights' folder as a stage input; nothing for a hub id or an endpoint, whose name is in the config."""
    if chat.backend is not Backend.transformers:
        return {}
    source = resolve_model(chat.model)
    return {role: Path(source)} if Path(source).is_dir() else {}


def hash_prompts(config: Config) -> str:
    """The hash of the prompt style in use."""
    return PromptSet(config.prompts).hash


def mount_model(chat: ChatConfig, folder: Path) -> ChatConfig:
    """The trained weights in ``folder``, run like ``chat``: training leaves local folders, so the backend is transformers."""
    return replace(chat, backend=Backend.transformers, model=folder.as_posix())
