"""Faults put into right runs on purpose: an instrument for measuring critics (``blame_scores``), never part of a cycle.

A tool fault is one step with a wrong result, an LLM fault a program that is wrong in one place. Only faults that change the final result
count: others would get no negative feedback. The wrong step's confidence is the tool's own for another word, or drawn from a range that the
caller assumes; the right steps keep theirs.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from visloop.answers import read_boolean, read_number
from visloop.assistant.cases import Case, list_learnable_steps
from visloop.assistant.data_flow import list_references
from visloop.assistant.grammar import format_program
from visloop.assistant.interpreter import Execution, Job, run_programs, run_substitutions
from visloop.assistant.program import Argument, Program, Reference, Statement
from visloop.assistant.program import Literal as Constant
from visloop.assistant.traces import make_trace
from visloop.ids import make_id, seed_for
from visloop.records.assistant import Culprit, Feedback
from visloop.tools.base import FindSignature, ToolRunner
from visloop.tools.values import Value

FaultKind = Literal["wrong_result", "wrong_tool", "wrong_argument", "wrong_constant", "missing_step"]
LLM_FAULTS: Final[tuple[FaultKind, ...]] = ("wrong_tool", "wrong_argument", "wrong_constant", "missing_step")
_TWINS: Final = (
    ("CROP", "CROP_LEFTOF", "CROP_RIGHTOF", "CROP_ABOVE", "CROP_BELOW"),
    ("COLORPOP", "BGBLUR"),
    ("TOP", "BOTTOM"),
    ("ABOVE", "ON"),
)
_OPERATORS: Final = (
    (" > ", " < "), (" < ", " > "), (" == ", " != "), (" != ", " == "), (" and ", " or "), (" or ", " and "), (" xor ", " or "),
    (" + ", " - "), (" >= ", " < "), (" <= ", " > "),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTruth:
    """What was done: the guilty part, the step (from 1, in the faulty program) and its tool."""

    culprit: Culprit
    step: int
    tool: str
    fault: FaultKind


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyCase:
    """A failed run whose fault is known (a ``KnownGuilt``). ``group`` is what results are told apart by (known and unseen families)."""

    case: Case
    truth: FaultTruth
    group: str

    @property
    def culprit(self) -> Culprit:
        return self.truth.culprit

    @property
    def steps(self) -> tuple[int, ...]:
        return (self.truth.step,)

    @property
    def tools(self) -> tuple[str, ...]:
        return (self.truth.tool,)


def inject_fault(
    execution: Execution,
    *,
    culprit: Literal["tool", "program"],
    tools: ToolRunner,
    words: Sequence[str],
    answers: Sequence[str] = (),
    wrong_confidence: tuple[float, float] | None = None,
    group: str = "",
    seed: int,
) -> FaultyCase | None:
    """A faulty variant of a right run; None where no tried fault changes the result.

    Args:
        words: concept words to confuse a concept with.
        answers: answers to questions, to confuse an answer with one of the same sort.
        wrong_confidence: range of the wrong step's confidence, drawn evenly; None keeps what the tool gave for the other word.
    """
    if execution.status != "finished" or execution.program is None:
        return None
    draw = random.Random(seed_for(seed, "fault", execution.job.task.id, culprit))
    if culprit == "tool":
        found = _break_result(execution, draw, tools=tools, words=words, answers=answers, wrong_confidence=wrong_confidence)
    else:
        found = _break_program(execution, draw, tools=tools, words=words)
    if found is None:
        return None
    faulty, truth = found
    trace = make_trace(
        faulty, describe_image=lambda picture: f"{picture.width}x{picture.height} pixels", save_image=lambda _: "", key="fault"
    )
    feedback = Feedback(
        id=make_id("feedback", trace.id),
        task_id=trace.task_id,
        trace_id=trace.id,
        accepted=False,
        answer=None if isinstance(execution.result, tuple) or hasattr(execution.result, "size") else str(execution.result),
    )
    return FaultyCase(case=Case(execution=faulty, trace=trace, feedback=feedback), truth=truth, group=group)


def _break_result(
    execution: Execution,
    draw: random.Random,
    *,
    tools: ToolRunner,
    words: Sequence[str],
    answers: Sequence[str],
    wrong_confidence: tuple[float, float] | None,
) -> tuple[Execution, FaultTruth] | None:
    steps = list(list_learnable_steps(execution.program, find_signature=tools.find_signature))
    draw.shuffle(steps)
    for step in steps:
        for value, confidence in _list_wrong_results(execution, step, draw, tools=tools, words=words, answers=answers):
            [faulty] = run_substitutions([(execution, step, value)], tools=tools)
            if faulty.status != "finished" or _same(faulty.result, execution.result):
                continue
            shown = draw.uniform(*wrong_confidence) if wrong_confidence else confidence
            marked = tuple(replace(entry, confidence=shown) if entry.step == step else entry for entry in faulty.steps)
            tool = execution.steps[step - 1].statement.tool
            return replace(faulty, steps=marked), FaultTruth(culprit="tool", step=step, tool=tool, fault="wrong_result")
    return None


def _list_wrong_results(
    execution: Execution, step: int, draw: random.Random, *, tools: ToolRunner, words: Sequence[str], answers: Sequence[str]
) -> Iterator[tuple[Value, float | None]]:
    """What the step's tool says when it is asked for something else, or another answer of the same sort."""
    executed = execution.steps[step - 1]
    signature = tools.find_signature(executed.statement.tool)
    if executed.call is None or signature is None:
        return
    if isinstance(executed.value, str):
        own, sort = executed.value, _sort_of(executed.value)
        others = sorted({answer for answer in answers if answer != own and _sort_of(answer) == sort})
        yield from ((answer, executed.confidence) for answer in draw.sample(others, len(others)))
    elif signature.concept and signature.returns in ("Boxes", "Objects"):
        for word in draw.sample(list(words), len(words)):
            call = replace(executed.call, arguments={**executed.call.arguments, signature.concept: word})
            [result] = tools.run(call.tool, [call])
            if result.error is None and result.value is not None:
                yield result.value, result.confidence


def _sort_of(answer: str) -> str:
    if read_boolean(answer) is not None:
        return "boolean"
    return "number" if read_number(answer) is not None else "words"


def _break_program(
    execution: Execution, draw: random.Random, *, tools: ToolRunner, words: Sequence[str]
) -> tuple[Execution, FaultTruth] | None:
    assert execution.program is not None
    for fault in draw.sample(LLM_FAULTS, len(LLM_FAULTS)):
        changes = list(_CHANGES[fault](execution, words, tools.find_signature))
        for step, statements in draw.sample(changes, len(changes)):
            program = Program(tuple(statements))
            proposal = replace(execution.job.proposal, program=format_program(program))
            [faulty] = run_programs([Job(execution.job.task, proposal, execution.job.inputs)], tools=tools)
            if faulty.status == "finished" and not _same(faulty.result, execution.result):
                return faulty, FaultTruth(culprit="program", step=step, tool=statements[step - 1].tool, fault=fault)
    return None


Change = tuple[int, list[Statement]]


def _swap_tools(execution: Execution, words: Sequence[str], find_signature: FindSignature) -> Iterator[Change]:
    for step, statement in _enumerate(execution):
        for twins in _TWINS:
            for other in twins if statement.tool in twins else ():
                if other != statement.tool:
                    yield step, _put(execution, step, replace(statement, tool=other))


def _swap_arguments(execution: Execution, words: Sequence[str], find_signature: FindSignature) -> Iterator[Change]:
    types: dict[str, str] = dict.fromkeys(execution.job.inputs, "Image")
    for step, statement in _enumerate(execution):
        for name, value in statement.arguments:
            if isinstance(value, Reference):
                for other, kind in types.items():
                    if other != value.name and kind == types.get(value.name):
                        yield step, _put(execution, step, _set(statement, name, Reference(other)))
        types[statement.variable] = execution.steps[step - 1].result_type or ""


def _swap_constants(execution: Execution, words: Sequence[str], find_signature: FindSignature) -> Iterator[Change]:
    for step, statement in _enumerate(execution):
        signature = find_signature(statement.tool)
        for name, value in statement.arguments:
            if not isinstance(value, Constant) or not isinstance(value.value, str):
                continue
            if signature is not None and name == signature.concept and "{" not in value.value and " " not in value.value.strip():
                for word in words:
                    if word != value.value:
                        yield step, _put(execution, step, _set(statement, name, Constant(word)))
            elif statement.tool == "EVAL":
                for old, new in _OPERATORS:
                    if old in value.value:
                        yield step, _put(execution, step, _set(statement, name, Constant(value.value.replace(old, new, 1))))


def _drop_steps(execution: Execution, words: Sequence[str], find_signature: FindSignature) -> Iterator[Change]:
    """A step is left out; who used its result takes its input of the same type in its place."""
    types: dict[str, str] = dict.fromkeys(execution.job.inputs, "Image")
    statements = [statement for _, statement in _enumerate(execution)]
    for step, statement in _enumerate(execution):
        kind = execution.steps[step - 1].result_type or ""
        stand_in = next((name for name in list_references(statement) if types.get(name) == kind), None)
        types[statement.variable] = kind
        users = [number for number, later in enumerate(statements[step:], start=step) if statement.variable in list_references(later)]
        if stand_in is None or not users:
            continue
        rest = [_rename(other, statement.variable, stand_in) for number, other in enumerate(statements, start=1) if number != step]
        yield users[0], rest


_CHANGES: Final[Mapping[FaultKind, Callable[[Execution, Sequence[str], FindSignature], Iterator[Change]]]] = {
    "wrong_tool": _swap_tools,
    "wrong_argument": _swap_arguments,
    "wrong_constant": _swap_constants,
    "missing_step": _drop_steps,
}


def _enumerate(execution: Execution) -> Iterator[tuple[int, Statement]]:
    assert execution.program is not None
    return iter(enumerate(execution.program.statements, start=1))


def _put(execution: Execution, step: int, statement: Statement) -> list[Statement]:
    return [statement if number == step else other for number, other in _enumerate(execution)]


def _set(statement: Statement, name: str, value: Argument) -> Statement:
    return replace(statement, arguments=tuple((key, value if key == name else old) for key, old in statement.arguments))


def _rename(statement: Statement, old: str, new: str) -> Statement:
    def rename(value: Argument) -> Argument:
        if isinstance(value, Reference):
            return Reference(new) if value.name == old else value
        return Constant(value.value.replace(f"{{{old}}}", f"{{{new}}}")) if isinstance(value.value, str) else value

    return replace(statement, arguments=tuple((key, rename(value)) for key, value in statement.arguments))


def _same(first: Value | None, second: Value | None) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return [repr(getattr(item, "box", item)) for item in first] == [repr(getattr(item, "box", item)) for item in second]
    return type(first) is type(second) and bool(first == second)
