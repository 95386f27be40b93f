"""A failed run as critics see it, what its program says about each step, and when a result counts as right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from visloop.answers import normalize_answer, read_boolean, read_number
from visloop.assistant.data_flow import find_concept_step, list_concept_texts, list_references
from visloop.assistant.interpreter import Execution
from visloop.assistant.program import Program, Statement
from visloop.records.assistant import Critique, Feedback, Trace
from visloop.tools.base import FindSignature, ToolRunner
from visloop.tools.values import Value

ReflectionGrain = Literal["interrupt", "global", "local"]
Judge = Callable[[Execution, Feedback], bool | None]
"""Whether the result of a re-run would be accepted, by what the feedback told; None where it does not tell."""

ANSWERED_LATER: Final = "VQA"
"""The tool whose concept is the answer that it should have given: only learning finds it out (CLOVA 3.4)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One failed run with its feedback. ``captions`` describe the input pictures by variable; ``earlier`` are critiques of the same
    task whose repair did not make the result right."""

    execution: Execution
    trace: Trace
    feedback: Feedback
    captions: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[Critique, ...] = ()

    @property
    def steps(self) -> int:
        """Number of program lines, also where the program could not be read."""
        if self.execution.program is not None:
            return len(self.execution.program.statements)
        return len([line for line in self.trace.proposal.program.splitlines() if line.strip()])


class Critic(Protocol):
    """Anything that blames. One critique per case, in order; a critic never raises for one bad case."""

    name: str

    def criticize(self, cases: Sequence[Case], *, grain: ReflectionGrain, tools: ToolRunner, seed: int) -> list[Critique]: ...


def find_statement(program: Program | None, step: int | None) -> Statement | None:
    """The statement of a step counted from 1, or None."""
    if program is None or step is None or not 1 <= step <= len(program.statements):
        return None
    return program.statements[step - 1]


def read_concept(execution: Execution, step: int, *, find_signature: FindSignature) -> str | None:
    """The words of the concept argument behind a step, from the syntax tree; None where it names none, and for VQA."""
    program = execution.program
    where = find_concept_step(program, step, find_signature=find_signature) if program else None
    statement = find_statement(program, where)
    if statement is None or program is None or program.statements[step - 1].tool == ANSWERED_LATER:
        return None
    return ", ".join(list_concept_texts(statement, find_signature=find_signature, values=execution.values)) or None


def is_tool_fault_possible(program: Program | None, step: int | None, *, find_signature: FindSignature) -> bool:
    """Whether a step calls a tool that can learn."""
    statement = find_statement(program, step)
    signature = find_signature(statement.tool) if statement else None
    return signature is not None and signature.learnable


def list_learnable_steps(program: Program | None, *, find_signature: FindSignature) -> tuple[int, ...]:
    """Steps that call a learnable tool, in order."""
    count = len(program.statements) if program else 0
    return tuple(step for step in range(1, count + 1) if is_tool_fault_possible(program, step, find_signature=find_signature))


def find_used_steps(program: Program | None) -> frozenset[int]:
    """Steps that the last one depends on, itself included."""
    statements = program.statements if program else ()
    where = {statement.variable: step for step, statement in enumerate(statements, start=1)}
    used: set[int] = set()
    queue = [len(statements)] if statements else []
    while queue:
        step = queue.pop()
        if step not in used:
            used.add(step)
            queue += [where[name] for name in list_references(statements[step - 1]) if name in where]
    return frozenset(used)


def match_answer(value: Value | None, answer: str) -> bool:
    """Whether a result is the right answer: truth values and numbers by value, words by their normal form; anything else is not."""
    if isinstance(value, bool):
        return read_boolean(answer) is value
    if isinstance(value, int | float):
        return read_number(answer) == float(value)
    if not isinstance(value, str):
        return False
    if normalize_answer(value) == normalize_answer(answer) != "":
        return True
    shown, wanted = read_boolean(value), read_boolean(answer)
    return shown is not None and shown == wanted and {normalize_answer(value), normalize_answer(answer)} <= {"yes", "no", "true", "false"}


def judge_by_answer(execution: Execution, feedback: Feedback) -> bool | None:
    """Right if the run finished with the feedback's answer; None where the feedback has no answer (editing, tagging)."""
    if feedback.answer is None:
        return None
    return execution.status == "finished" and match_answer(execution.result, feedback.answer)
