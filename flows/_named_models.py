"""The models that a configuration names, of both systems, by the key that names them."""

from dataclasses import dataclass

from visloop.chat.weights import is_local
from visloop.config import Backend, ChatConfig, Config
from visloop.config_assistant import EncoderChoice, WriterChoice


@dataclass(frozen=True, slots=True)
class NamedModel:
    """``role`` is the configuration's key; ``served`` the address of one that runs behind an endpoint, which has its weights."""

    role: str
    name: str
    served: str = ""


def list_chats(config: Config) -> dict[str, ChatConfig]:
    """The chat models that are mounted, by role; the assistant's LLM, which is opened where it is asked, is not among them."""
    found = {
        "base": config.base,
        "generate.model": config.generate.model,
        "assess.judge": config.assess.judge,
        "assess.text_judge": config.assess.text_judge,
        "assistant.direct": config.assistant.direct,
    }
    return {role: chat for role, chat in found.items() if chat is not None}


def list_named_models(config: Config) -> list[NamedModel]:
    """What is mounted: the agents', the judges', and the assistant's models where its configuration asks for them."""
    assistant, chats = config.assistant, list_chats(config)
    if assistant.asks_llm():
        chats["llm"] = config.llm
    names = {f"assistant.tools.{role}": model.model for role, model in assistant.tools.list_models().items()}
    if assistant.planner.asks(WriterChoice.embedded):
        names["assistant.planner.lm"] = assistant.planner.lm
    if assistant.planner.encoder is EncoderChoice.sentence:
        names["assistant.planner.encoder_model"] = assistant.planner.encoder_model
    if assistant.safety.classifier:
        names["assistant.safety.classifier"] = assistant.safety.classifier
    found = [NamedModel(role, chat.model, chat.base_url if chat.backend is Backend.openai else "") for role, chat in chats.items()]
    return found + [NamedModel(role, name) for role, name in names.items()]


def needs_hub(config: Config) -> bool:
    """Whether any of them must come from the model hub: neither shipped, nor a folder, nor mirrored, nor served by an endpoint."""
    return not all(model.served or is_local(model.name) for model in list_named_models(config))
