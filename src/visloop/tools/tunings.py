"""Which settings of prompt tuning hold for which tool: its own, those of the tools that it shares its prompts with, or those of all.

No heavy library here: plans, gates and the toolbox ask before any model is loaded.
"""

from collections.abc import Iterable
from typing import Final

from visloop.config_assistant import PromptTuning, RegionBackend, ReplaceBackend, ToolsConfig, VqaBackend
from visloop.errors import ConfigError

CLIP_OWNER: Final = "CLIP"
"""LOC, SEG, SELECT, FILTER, CLASSIFY and VQA on a CLIP share one model and one placement, so they share their prompts."""
PASTE_OWNER: Final = "PASTE"
"""REPLACE on exemplars."""


def find_owners(config: ToolsConfig) -> dict[str, str]:
    """The name under which a tool's prompts lie in the pool, by tool: that of the tools that learn, with the configured backends."""
    return {
        "LOC": CLIP_OWNER if config.loc is RegionBackend.proposals else "LOC",
        "SEG": CLIP_OWNER if config.seg is RegionBackend.proposals else "SEG",
        "SELECT": CLIP_OWNER,
        "FILTER": CLIP_OWNER,
        "CLASSIFY": CLIP_OWNER,
        "VQA": CLIP_OWNER if config.vqa is VqaBackend.clip else "VQA",
        "REPLACE": PASTE_OWNER if config.replace is ReplaceBackend.paste else "REPLACE",
    }


def choose_tuning(config: ToolsConfig, tool: str) -> PromptTuning:
    """How a tool's prompts are tuned and combined: by its own settings, else by its owner's, else by those of all.

    Tools that share prompts may learn them with settings of their own. FILTER is SELECT's model under another rule: what holds for
    SELECT holds for it.
    """
    names = (tool, *(("SELECT",) if tool == "FILTER" else ()), find_owners(config).get(tool, tool))
    return next((config.tunings[name] for name in names if name in config.tunings), config.tuning)


def list_tunings(config: ToolsConfig, owner: str) -> list[PromptTuning]:
    """The settings of every tool whose prompts lie under ``owner``: a prompt there was learned with one of them."""
    tools = [tool for tool, name in find_owners(config).items() if name == owner]
    return [choose_tuning(config, tool) for tool in tools or (owner,)]


def check_tunings(config: ToolsConfig, *, plugins: Iterable[str] = ()) -> None:
    """Refuse settings that no tool would read.

    Args:
        plugins: the names of tools that users added.

    Raises:
        ConfigError: ``tunings`` names no tool that learns.
    """
    owners = find_owners(config)
    known = dict.fromkeys([*owners, *owners.values(), *plugins])
    unread = [name for name in config.tunings if name not in known]
    if unread:
        raise ConfigError(f"tools.tunings: no tool reads {', '.join(unread)}; the names of tools that learn are {', '.join(known)}")
