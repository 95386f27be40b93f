"""What the gates on the assistant's records compare with: tasks, traces, tools, how prompts are tuned and where they lie."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from visloop.assistant.cases import FindSignature
from visloop.assistant.material import adapt_tools
from visloop.config_assistant import AssistantConfig, ToolsConfig
from visloop.errors import ConfigError
from visloop.records.assistant import Task, Trace
from visloop.tools.plugins import load_plugins
from visloop.tools.signatures import ALIASES, SIGNATURES, find_signature

ASSISTANT_SUITE_NAMES = ("tasks", "traces", "critiques", "instances", "demonstrations", "prompts")
MAY_BE_EMPTY = frozenset({"critiques", "instances", "prompts"})
"""A cycle in which everything was right blames nobody, and teaches no tool."""


@dataclass(frozen=True, kw_only=True)
class AssistantContext:
    """What the rules compare the assistant's records with.

    Attributes:
        data: the data folder, to which image paths are relative.
        tasks: known tasks by id; empty for the gate on the tasks themselves.
        traces: known traces by id; the ``critiques`` gate needs them.
        evaluation_pictures: SHA-256 of every picture of tasks that nothing may be learned from, each alone in a set.
        evaluation_instructions: instructions that only such tasks have.
        picture_hashes: recorded SHA-256 by image path; none, so that every picture is read.
        find_signature: the tools that programs may call.
        tools: how prompts are tuned, with the ablations of learning in it; what the ``prompts`` rules ask of a prompt.
        tensors: the safetensors file of the prompts; the ``prompts`` gate needs it.
        max_unreadable_rate: share of critiques, 0-1, that may be without a readable reply.
    """

    data: Path
    tasks: Mapping[str, Task] = field(default_factory=dict)
    traces: Mapping[str, Trace] | None = None
    evaluation_pictures: frozenset[frozenset[str]] = frozenset()
    evaluation_instructions: frozenset[str] = frozenset()
    picture_hashes: Mapping[str, str] = field(default_factory=dict)
    find_signature: FindSignature = find_signature
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    tensors: Path | None = None
    max_unreadable_rate: float = 0.2

    @classmethod
    def from_tasks(
        cls,
        tasks: Iterable[Task],
        *,
        data: Path,
        traces: Iterable[Trace] | None = None,
        config: AssistantConfig | None = None,
        tensors: Path | None = None,
    ) -> "AssistantContext":
        """Context over all parts of a task set: what belongs to validation and test tasks must not be learned from.

        An instruction that a train task has as well is no leak: drawn instructions about other pictures may be worded alike.

        Raises:
            ConfigError: a plugin with tools cannot be loaded.
        """
        known = {task.id: task for task in tasks}
        config = config or AssistantConfig()
        held_out = [task for task in known.values() if task.split != "train"]
        taught = {fold_text(task.instruction) for task in known.values() if task.split == "train"}
        return cls(
            data=data,
            tasks=known,
            traces=None if traces is None else {trace.id: trace for trace in traces},
            evaluation_pictures=frozenset(frozenset({digest}) for task in held_out for digest in task.image_hashes),
            evaluation_instructions=frozenset(fold_text(task.instruction) for task in held_out) - taught,
            find_signature=open_signatures(config.tools),
            tools=adapt_tools(config.tools, learning=config.learning),
            tensors=tensors,
            max_unreadable_rate=config.reflection.max_unreadable_rate,
        )


def fold_text(text: str) -> str:
    """The text without differences of case and space."""
    return " ".join(text.casefold().split())


def check_assistant_request(suite: str, context: AssistantContext) -> None:
    """Refuse a context without what the suite compares with.

    Raises:
        ConfigError: naming what is missing.
    """
    if suite != "tasks" and not context.tasks:
        raise ConfigError(f"suite {suite!r} needs context.tasks: build the context with AssistantContext.from_tasks")
    if suite == "critiques" and context.traces is None:
        raise ConfigError("suite 'critiques' needs context.traces, the runs that were criticized")
    if suite == "prompts" and context.tensors is None:
        raise ConfigError("suite 'prompts' needs context.tensors, the safetensors file of the prompts")


def open_signatures(tools: ToolsConfig) -> FindSignature:
    """The catalogue's tools and those of plugins, as the toolbox of this configuration has them; no tool is loaded."""
    known = {**SIGNATURES, **{name: plugin.signature for name, plugin in load_plugins(tools.plugins).items()}}
    return lambda name: known.get(ALIASES.get(name, name))
