"""The rows of the assistant's table: frozen tools, the curve over cycles, and ablations that are learned anew."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flows._assistant_stages import change_assistant
from flows._layout import Layout
from visloop.config import Config
from visloop.config_assistant import RetrievalChoice
from visloop.errors import ConfigError


@dataclass(frozen=True)
class System:
    """One row. ``pools`` is the snapshot that is measured; with ``cycles`` it is first learned below ``home`` with ``config``. ``test`` at
    which point of the stream (cycles played) the row stands on the curve, None beside it."""

    name: str
    config: Config
    pools: Path
    folder: Path
    parts: tuple[str, ...] = ("test",)
    cycles: int = 0
    home: Path = Path()
    played: int | None = None


FROZEN, FROZEN_PLAN, LEARNED = "frozen tools, no plan", "frozen tools + plan", "all"
DIRECT = "direct VLM"
"""A vision-language model without programs: it has a row per kind of task that is answered in words, and none over all tasks."""


def list_frozen(config: Config, layout: Layout) -> list[System]:
    """VISPROG's mode: seed demonstrations, no plan, nothing learned."""
    plain = change_assistant(config, planner=replace(config.assistant.planner, use_plan=False))
    return [System(FROZEN, plain, layout.cycle(0), layout.assistant_evaluation / "frozen_no_plan", ("test", "base"))]


def list_curve(config: Config, layout: Layout) -> list[System]:
    """The pools before the first cycle and after each one."""
    cycles = config.assistant.tasks.cycles
    return [
        System(
            FROZEN_PLAN if number == 0 else LEARNED if number == cycles else f"after cycle {number}",
            config,
            layout.cycle(number),
            layout.assistant_evaluation / f"cycle_{number:02d}",
            ("test", "base") if number in (0, cycles) else ("test",),
            played=number,
        )
        for number in range(cycles + 1)
    ]


def _only_llm(config: Config) -> Config:
    return change_assistant(config, learning=replace(config.assistant.learning, update_tools=False))


def _only_tools(config: Config) -> Config:
    return change_assistant(config, learning=replace(config.assistant.learning, update_llm=False))


def _no_global(config: Config) -> Config:
    return change_assistant(config, reflection=replace(config.assistant.reflection, use_global=False))


def _no_local(config: Config) -> Config:
    return change_assistant(config, reflection=replace(config.assistant.reflection, use_local=False))


def _no_validation(config: Config) -> Config:
    return change_assistant(config, learning=replace(config.assistant.learning, validate=False))


def _no_failures(config: Config) -> Config:
    return change_assistant(config, planner=replace(config.assistant.planner, use_failures=False))


def _no_ensemble(config: Config) -> Config:
    return change_assistant(config, learning=replace(config.assistant.learning, ensemble=False))


def _random_demonstrations(config: Config) -> Config:
    return change_assistant(config, planner=replace(config.assistant.planner, retrieval=RetrievalChoice.random))


ABLATIONS: dict[str, tuple[str, Callable[[Config], Config]]] = {
    "llm_update": ("+ LLM update only", _only_llm),
    "tool_update": ("+ tool update only", _only_tools),
    "no_global": ("all - global reflection", _no_global),
    "no_local": ("all - local reflection", _no_local),
    "no_validation": ("all - validation", _no_validation),
    "no_failures": ("all - failures", _no_failures),
    "no_ensemble": ("all - ensemble", _no_ensemble),
    "random_demonstrations": ("all - retrieval", _random_demonstrations),
}


def list_ablations(config: Config, layout: Layout) -> list[System]:
    """Rows that are learned anew, as ``assistant.tasks.ablations`` names them.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = sorted(set(config.assistant.tasks.ablations) - set(ABLATIONS))
    if unknown:
        raise ConfigError(f"assistant.tasks.ablations: {unknown}; known are {', '.join(ABLATIONS)}")
    systems = []
    for name in config.assistant.tasks.ablations:
        title, change = ABLATIONS[name]
        home, cycles = layout.ablations / name, config.assistant.tasks.cycles
        systems.append(
            System(
                title,
                change(config),
                home / f"{cycles:02d}",
                layout.assistant_evaluation / name,
                ("test", "base"),
                cycles=cycles,
                home=home,
            )
        )
    return systems
