"""A planner that searches a typed space of programs with a scorer that feedback has taught (author ``search``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.proposals import FailedAttempt, list_failed_programs, normalize_program, pair_attempts
from visloop.assistant.search_learning import Judgement, TrainingSettings, learn
from visloop.assistant.search_programs import write_program
from visloop.assistant.search_scorer import Scorer, load_scorer, start_scorer
from visloop.assistant.search_space import load_pack
from visloop.errors import ConfigError
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import FindSignature
from visloop.tools.signatures import find_signature

AUTHOR = "search"
_MOST_TRIES = 50


@dataclass(frozen=True, slots=True)
class SearchPlanner:
    """Proposes the likeliest program of a scorer's space. It shows no demonstrations to anyone; of the pool it reads which programs have
    failed for an instruction. A planner is a value: ``learn`` gives another one."""

    scorer: Scorer
    name: str = AUTHOR

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]:
        """One proposal per task, in order; nothing is drawn, so ``seed`` changes nothing. ``confidence`` is the program's probability
        among all candidates."""
        paired = pair_attempts(tasks, attempts)
        return [self._propose(task, pool=pool, attempt=attempt) for task, attempt in zip(tasks, paired, strict=True)]

    def _propose(self, task: Task, *, pool: DemonstrationPool, attempt: FailedAttempt | None) -> Proposal:
        if task.inputs != self.scorer.space.inputs:
            wanted = ", ".join(self.scorer.space.inputs)
            return _fail(task, f"programs of the space {self.scorer.space.name} are about {wanted}, the task has {', '.join(task.inputs)}")
        failed = list_failed_programs(task, pool=pool, attempt=attempt)
        for candidate, share in self.scorer.rank(task.instruction)[:_MOST_TRIES]:
            program, plan = write_program(candidate.meaning, space=self.scorer.space)
            if not failed or normalize_program(program) not in failed:
                return Proposal(task_id=task.id, plan=plan, program=program, author=AUTHOR, confidence=share)
        return _fail(task, "no program of the space fits the instruction's words" + (", but those that failed" if failed else ""))

    def learn(self, judgements: Sequence[Judgement], *, settings: TrainingSettings | None = None) -> "SearchPlanner":
        """A planner that has learned from all the judgements given (see ``search_learning.learn``)."""
        return SearchPlanner(learn(self.scorer, judgements, settings=settings))


def _fail(task: Task, error: str) -> Proposal:
    return Proposal(task_id=task.id, plan=(), program="", author=AUTHOR, status="failed", error=error)


def open_search_planner(
    pack: str | Path = "nlvr", *, scorer: Path | None = None, find_tool: FindSignature = find_signature
) -> SearchPlanner:
    """The planner of a task pack that has learned nothing, or that of a saved scorer.

    Raises:
        ConfigError: no such pack, or a tool of its space is unknown.
        DataError: the scorer cannot be read.
    """
    opened = load_scorer(scorer) if scorer is not None else start_scorer(load_pack(pack))
    places, relations = opened.space.places.values(), opened.space.relations.values()
    needed = {"SEG", "FILTER", "COUNT", "EVAL", *(place.tool for place in places), *(relation.tool for relation in relations)}
    unknown = sorted(tool for tool in needed if find_tool(tool) is None)
    if unknown:
        raise ConfigError(f"planner: the space {opened.space.name} needs tools that there are not: {', '.join(unknown)}")
    return SearchPlanner(opened)
