"""What every planner takes and gives, and how a proposed program is judged before it is run."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from visloop.assistant.checks import check_program
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import Lexicon, split_words
from visloop.assistant.program import Literal, Program, Reference
from visloop.assistant.search_judgements import JudgedRun, Judgement, JudgementPool
from visloop.errors import ConfigError, ProgramError
from visloop.records.assistant import Critique, Proposal, Task
from visloop.tools.base import FindSignature, ToolRunner

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """A proposal that gave a wrong result, and who is to blame for it: what a planner must do better (CLOVA 3.4). ``tried`` are further
    programs that were wrong as well."""

    proposal: Proposal
    critique: Critique
    tried: tuple[str, ...] = ()


class Planner(Protocol):
    """Anything that writes plans and programs. One proposal per task, in order; a task that fails is a proposal with its status, never
    an exception. ``attempts`` are the failed ones of the same tasks (None for a first try): the same program is not proposed again."""

    @property
    def name(self) -> str: ...

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]: ...


@runtime_checkable
class LearningPlanner(Planner, Protocol):
    """A planner that learns from right and wrong itself, not from demonstrations only."""

    def judge(self, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
        """What it can learn from feedback on runs: at most one judgement per run."""
        ...

    def with_judgements(self, pool: JudgementPool) -> Self:
        """The planner that has learned from all judgements of a pool, and from no others."""
        ...


def judge_runs(planner: Planner, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
    """What a planner can learn from feedback on runs; nothing where it does not learn from right and wrong itself."""
    return planner.judge(runs, tools=tools) if isinstance(planner, LearningPlanner) else []


def teach(planner: Planner, pool: JudgementPool) -> Planner:
    """The planner that has learned from a pool; the same one where it does not learn from judgements."""
    return planner.with_judgements(pool) if isinstance(planner, LearningPlanner) else planner


def pair_attempts(tasks: Sequence[Task], attempts: Sequence[FailedAttempt | None] | None) -> list[FailedAttempt | None]:
    """One attempt or None per task.

    Raises:
        ConfigError: the two do not belong together.
    """
    paired: list[FailedAttempt | None] = list(attempts) if attempts is not None else [None] * len(tasks)
    if len(paired) != len(tasks) or any(
        attempt and attempt.proposal.task_id != task.id for task, attempt in zip(tasks, paired, strict=True)
    ):
        raise ConfigError(f"planner: {len(paired)} attempts for {len(tasks)} tasks; give each task its own attempt, or None")
    return paired


def find_problems(text: str, *, task: Task, find_signature: FindSignature) -> tuple[str, ...]:
    """What is wrong with a program for a task before it is run, each with its line; empty if it can be run."""
    try:
        program = parse_program(text)
    except ProgramError as error:
        return (str(error),)
    problems = check_program(program, kind=task.kind, find_signature=find_signature, inputs=task.inputs)
    return tuple(problem.describe() for problem in problems)


def find_unused(instruction: str, program: str, *, lexicon: Lexicon) -> tuple[str, ...]:
    """Concept words of the instruction that the program does not speak of, in normal form."""
    used = {word.norm for word in split_words(program)}
    return tuple(word.norm for word in split_words(instruction) if lexicon.is_sure(word.norm) and word.norm not in used)


def normalize_program(text: str) -> str:
    """A form that is equal for programs that differ only in the names of their variables and in spaces. Text that is no program is its
    own form."""
    try:
        program = parse_program(text)
    except ProgramError:
        return text.strip()
    return _print_form(program)


def list_failed_programs(task: Task, *, pool: DemonstrationPool, attempt: FailedAttempt | None) -> frozenset[str]:
    """Forms (``normalize_program``) of the programs that are known to be wrong for the task's very instruction."""
    failures: Iterable[str] = (
        entry.program for entry in pool.find("program", "failure", task.kind) if entry.instruction == task.instruction
    )
    tried = () if attempt is None else (attempt.proposal.program, *attempt.tried)
    return frozenset(normalize_program(program) for program in (*failures, *tried) if program)


def _print_form(program: Program) -> str:
    names: dict[str, str] = {}
    lines: list[str] = []
    for number, statement in enumerate(program.statements):
        shown: list[str] = []
        for key, argument in statement.arguments:
            match argument:
                case Reference(name):
                    shown.append(f"{key}={names.get(name, name)}")
                case Literal(str() as text):
                    shown.append(f"{key}={_PLACEHOLDER.sub(lambda found: '{' + names.get(found[1], found[1]) + '}', text)!r}")
                case Literal(value):
                    shown.append(f"{key}={value!r}")
        names[statement.variable] = f"v{number}"
        lines.append(f"v{number}={statement.tool}({','.join(shown)})")
    return "\n".join(lines)
