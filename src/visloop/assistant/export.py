"""Accepted runs as examples to fine-tune an LLM on: the prompts that the LLM planner would ask with, and what turned out right.

Whoever wrote the program (slot filling, an LM, an LLM), the prompt is the LLM planner's, over the demonstrations from before the cycle:
none of them was learned from the run itself or from a later one. Entries about the very same instruction are not shown, they would give
the answer away.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.lexicon import build_lexicon
from visloop.assistant.planner_prompts import choose_demonstrations, write_prompt
from visloop.assistant.pools import Pools
from visloop.assistant.proposals import find_problems
from visloop.assistant.retrieval import Encoder, MaskedEncoder
from visloop.config_assistant import PlannerConfig
from visloop.errors import DataError
from visloop.ids import make_id
from visloop.prompts.render import PromptSet
from visloop.records.assistant import DemonstrationKind, Feedback, Provenance, Task, Trace
from visloop.records.programs import ProgramExample
from visloop.records.reasoning import ChatTurn
from visloop.tools.base import ToolCatalogue

LeftOut = Literal["unjudged", "refused", "not finished", "held out", "breaks a rule", "repeated"]
"""Why a run is no example. ``breaks a rule``: its program is none that the prompt allows, as with a tool that is no longer there.
``repeated``: an earlier run has the same instruction, plan and program; a prompt without pictures would be the same example."""


@dataclass(frozen=True, kw_only=True)
class CycleRuns:
    """What a finished cycle leaves to export. ``pools`` are those that it started with; ``tasks`` by id."""

    cycle: int
    pools: Pools
    tasks: Mapping[str, Task]
    traces: Sequence[Trace]
    feedback: Sequence[Feedback]


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """What became of the runs of one cycle: examples by kind (``plan``, ``program``); exported runs by kind of task, author and provenance;
    the other runs by reason."""

    cycle: int
    traces: int
    exported: int
    examples: dict[str, int]
    kinds: dict[str, int]
    authors: dict[str, int]
    provenances: dict[str, int]
    left_out: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ExportParts:
    """How prompts are written: by the planner's settings, with the tools that it may use; ``vocabulary`` is masked for retrieval. ``seed``
    is the planner's: demonstrations that are drawn at random are those that it draws."""

    planner: PlannerConfig
    prompts: PromptSet
    encoder: Encoder
    tools: ToolCatalogue
    vocabulary: frozenset[str] = frozenset()
    seed: int = 0


def export_runs(cycles: Iterable[CycleRuns], *, parts: ExportParts) -> tuple[list[ProgramExample], list[ExportRow]]:
    """Examples of all cycles in order, and a row per cycle.

    A run is exported if the feedback accepted it, it ran to its end, and its task may be learned from (split ``train``).

    Raises:
        DataError: a run is of no task that is given.
        ConfigError: no number of demonstrations for a task's kind.
    """
    examples: list[ProgramExample] = []
    rows: list[ExportRow] = []
    known: set[tuple[str, ...]] = set()
    for runs in cycles:
        writer = _Writer(runs, parts)
        left_out: Counter[str] = Counter()
        made: dict[str, list[ProgramExample]] = {}
        for trace in runs.traces:
            task = runs.tasks.get(trace.task_id)
            if task is None:
                raise DataError(f"cycle {runs.cycle}: run {trace.id} is of task {trace.task_id}, which is neither drawn nor a person's")
            reason = writer.find_reason(task, trace)
            found = [] if reason else [item for item in writer.write(task, trace) if _name(task, item) not in known]
            if not found:
                left_out[reason or "repeated"] += 1
                continue
            known |= {_name(task, item) for item in found}
            made[trace.id] = found
        written = [item for found in made.values() for item in found]
        firsts = [found[0] for found in made.values()]
        examples += written
        rows.append(
            ExportRow(
                cycle=runs.cycle,
                traces=len(runs.traces),
                exported=len(firsts),
                examples=_count(item.kind for item in written),
                kinds=_count(item.task_kind for item in firsts),
                authors=_count(item.author for item in firsts),
                provenances=_count(item.provenance for item in firsts),
                left_out=_count(left_out.elements()),
            )
        )
    return examples, rows


class _Writer:
    """Writes the examples of one cycle."""

    def __init__(self, runs: CycleRuns, parts: ExportParts) -> None:
        self._parts, self._cycle, self._pool = parts, runs.cycle, runs.pools.demonstrations
        self._hashes = {"demonstrations": self._pool.hash, "prompts": runs.pools.prompts.hash}
        self._encoder = MaskedEncoder(parts.encoder, build_lexicon(self._pool, vocabulary=parts.vocabulary))
        self._words = {entry.trace_id: entry for entry in runs.feedback}
        self._refused = {entry.trace_id for entry in runs.feedback if not entry.accepted}
        self._repaired = _find_repaired(runs.traces, self._refused)

    def find_reason(self, task: Task, trace: Trace) -> LeftOut | None:
        """Why a run is no example; None: it is one."""
        if trace.id not in self._words:
            return "unjudged"
        if trace.id in self._refused:
            return "refused"
        if trace.status != "finished":
            return "not finished"
        if task.split != "train":
            return "held out"
        problems = find_problems(trace.proposal.program, task=task, find_signature=self._parts.tools.find_signature)
        return "breaks a rule" if problems else None

    def write(self, task: Task, trace: Trace) -> list[ProgramExample]:
        """The plan, where the planner asks for one and the run has one, and the program."""
        plan = trace.proposal.plan if self._parts.planner.use_plan else ()
        steps = "\n".join(f"Step {number}: {step}" for number, step in enumerate(plan, start=1))
        answers: list[tuple[DemonstrationKind, str]] = [*([("plan", steps)] if plan else []), ("program", trace.proposal.program)]  # type: ignore[list-item]
        return [self._write_one(task, trace, kind=kind, plan=plan, answer=answer) for kind, answer in answers]

    def _write_one(self, task: Task, trace: Trace, *, kind: DemonstrationKind, plan: Sequence[str], answer: str) -> ProgramExample:
        parts = self._parts
        others = DemonstrationPool(tuple(entry for entry in self._pool.entries if entry.instruction != task.instruction))
        shown = choose_demonstrations(task, kind, pool=others, encoder=self._encoder, config=parts.planner, seed=parts.seed)
        prompt = write_prompt(task, kind, shown=shown, prompts=parts.prompts, tools=parts.tools, use_plan=bool(plan), plan=plan)
        provenance: Provenance = "repaired" if trace.id in self._repaired else "accepted"
        return ProgramExample(
            id=make_id("program example", trace.id, kind),
            sample_id=task.id,
            kind=kind,
            images=(),
            turns=(ChatTurn(role="user", text=prompt), ChatTurn(role="assistant", text=answer)),
            path_id=trace.id,
            task_kind=task.kind,
            cycle=self._cycle,
            author=trace.proposal.author,
            provenance=provenance,
            source=self._words[trace.id].source,
            pools=self._hashes,
            shown=tuple(entry.id for entries in shown for entry in entries),
            prompts_hash=parts.prompts.hash,
        )


def _find_repaired(traces: Sequence[Trace], refused: set[str]) -> set[str]:
    """The runs that follow a refused one of the same task."""
    wrong: set[str] = set()
    repaired: set[str] = set()
    for trace in traces:
        if trace.task_id in wrong:
            repaired.add(trace.id)
        if trace.id in refused:
            wrong.add(trace.task_id)
    return repaired


def _name(task: Task, example: ProgramExample) -> tuple[str, ...]:
    """What makes two examples one."""
    return (task.kind, task.instruction, example.kind, example.turns[-1].text)


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
