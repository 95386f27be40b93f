"""The contract of every tool: a signature, and batched calls that never raise for one bad call. No heavy library here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from visloop.records.assistant import Instance, TaskKind
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.values import Value, ValueType


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One argument of a tool. ``types`` are those it takes; an optional one may be left out or be ``None``. Placeholders ``{VAR}`` in
    a text argument are filled in by the interpreter where ``template`` is set."""

    name: str
    types: tuple[ValueType, ...]
    required: bool = True
    template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSignature:
    """What a planner and a checker know of a tool. ``doc`` is its line in the prompt; ``kinds`` are the tasks that may use it. For a
    learnable tool ``concept`` names the parameter that holds what it may have to learn; empty: another step's argument says it (SEG
    learns what a later SELECT asks for)."""

    name: str
    parameters: tuple[Parameter, ...]
    returns: ValueType
    doc: str
    kinds: tuple[TaskKind, ...]
    concept: str | None = None

    @property
    def learnable(self) -> bool:
        """Whether prompts can be learned for the tool (CLOVA 3.4: LOC, SEG, SELECT, CLASSIFY, VQA, REPLACE)."""
        return self.concept is not None

    def find_parameter(self, name: str) -> Parameter | None:
        """The parameter of this name, or None."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def describe(self) -> str:
        """The tool's line in a prompt: ``NAME(a: Image, b: Text) -> Boxes: what it does``."""
        shown = ", ".join(f"{item.name}: {'|'.join(item.types)}{'' if item.required else ' (optional)'}" for item in self.parameters)
        return f"{self.name}({shown}) -> {self.returns}: {self.doc}"


FindSignature = Callable[[str], ToolSignature | None]
"""What is known of a tool, by name; None for an unknown one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call with checked arguments. ``variables`` are the values behind the placeholders of template arguments: their texts are
    already filled in, except for EVAL, which computes with the values themselves. ``concepts`` is what later steps ask of the result,
    where the tool learns and has no argument for words (SEG)."""

    tool: str
    arguments: Mapping[str, Value | None]
    variables: Mapping[str, Value] = field(default_factory=dict)
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call gave: a value, or an error in words. ``confidence`` 0-1 where the tool has one; ``prompts`` are the ids of the
    learned prompts that were used."""

    value: Value | None
    error: str | None = None
    confidence: float | None = None
    prompts: tuple[str, ...] = ()


class Tool(Protocol):
    """Anything that answers calls. Results come in the order of the calls; a call that fails is a result with ``error``."""

    signature: ToolSignature

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """What tuning one concept of one tool gave. ``pool`` is the pool with the kept prompts (the given pool if none was kept);
    accuracies are fractions on the validation instances and on the replay set, before and after."""

    pool: PromptPool
    kept: tuple[str, ...]
    refused: int
    reason: str
    validation_before: float
    validation_after: float
    base_before: float
    base_after: float
    seconds: float


class LearnableTool(Tool, Protocol):
    """A tool whose weights stay frozen and whose prompts can be learned. With an empty pool it gives exactly its plain outputs.

    ``owner`` is the name under which its prompts lie in the pool: tools that share a model and a placement share their prompts.
    ``learns_questions``: it is taught by questions with their answers (BLIP), and not by pictures of a word.
    """

    owner: str
    learns_questions: bool
    pool: PromptPool

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """What the call speaks of and prompts can be learned for: single words or phrases of its concept argument, in order."""
        ...

    def with_pool(self, pool: PromptPool) -> "LearnableTool":
        """The same loaded model with another snapshot of prompts; nothing is loaded again."""
        ...

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn prompts for ``concept`` from train instances, keep those that pass the validation instances and do not hurt the
        replay set (training-validation prompt tuning, CLOVA 3.4)."""
        ...


class ToolCatalogue(Protocol):
    """What is known of a set of tools before any of them is loaded: what planners and critics are told, plugins with it."""

    def find_signature(self, name: str) -> ToolSignature | None:
        """The signature of a tool, an alias or a plugin; None for an unknown name."""
        ...

    def list_signatures(self, kind: TaskKind) -> Sequence[ToolSignature]:
        """The tools that tasks of this kind may use, in the order in which prompts show them."""
        ...


class ToolRunner(ToolCatalogue, Protocol):
    """A set of tools by name: what the interpreter runs programs with. ``visloop.tools.toolbox.Toolbox`` is the real one."""

    def run(self, tool: str, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Results of calls of one tool, in order. A tool that raises is turned into results with ``error``."""
        ...
