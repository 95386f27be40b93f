"""Runs visual programs (CLOVA 3.2): step by step, every value kept, many programs side by side.

In each round every program that still runs gives its next step; steps of one tool are one batch. A program's own fault, and a tool's, is
a state of its ``Execution``; nothing is raised for them and no other program notices.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from visloop.assistant.binding import TypedValue, bind_call, read_results, read_value
from visloop.assistant.checks import RESULT_TOOL, check_program
from visloop.assistant.data_flow import list_asked_words
from visloop.assistant.grammar import ProgramSyntaxError, parse_program
from visloop.assistant.program import Program, Reference, Statement
from visloop.errors import DataError, ProgramError, ToolError
from visloop.records.assistant import Proposal, Task, TraceStatus
from visloop.tools.base import ToolCall, ToolResult, ToolRunner, ToolSignature
from visloop.tools.expressions import EXPRESSION_TOOL
from visloop.tools.values import Value, ValueType

SHOWN_PROBLEMS = 3
"""As many problems of a program that does not pass its checks are in the error; the first decides ``error_step``."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A proposal to run: ``inputs`` are the pictures by variable (``Task.inputs`` in order). They are read, never changed."""

    task: Task
    proposal: Proposal
    inputs: Mapping[str, Image.Image]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExecutedStep:
    """One line that was run. ``step`` counts from 1; ``call`` is None where not even its arguments could be put together; ``seconds``
    is the call's share of its batch."""

    step: int
    statement: Statement
    call: ToolCall | None = None
    value: Value | None = None
    result_type: ValueType | None = None
    confidence: float | None = None
    prompts: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Execution:
    """One run. ``values`` holds inputs and variables; ``error_step`` (from 1) is the line at fault, also where nothing was run because
    the program does not pass its checks."""

    job: Job
    program: Program | None
    values: Mapping[str, Value]
    steps: tuple[ExecutedStep, ...]
    status: TraceStatus
    error: str | None = None
    error_step: int | None = None

    @property
    def result(self) -> Value | None:
        """The value of the last line, or None for a run that did not finish."""
        return self.steps[-1].value if self.status == "finished" else None


def run_programs(jobs: Sequence[Job], *, tools: ToolRunner) -> list[Execution]:
    """One execution per job, in order. Every program starts from its own copy of its inputs (CLOVA's code shares it between runs)."""
    runs = [_start_run(job, tools=tools) for job in jobs]
    _finish_runs(runs, tools=tools)
    return [run.close() for run in runs]


def run_substitutions(items: Sequence[tuple[Execution, int, Value]], *, tools: ToolRunner) -> list[Execution]:
    """Each execution again with another value of one of its steps (from 1): earlier steps are taken over, later ones are run anew.

    The substituted step keeps its call, and has no confidence, prompts or error. A value of another type than the step's tool gives is a
    program error at that step.

    Raises:
        DataError: the step was not run in that execution.
    """
    runs = []
    for execution, step, value in items:
        if execution.program is None or not 1 <= step <= len(execution.steps):
            raise DataError(f"task {execution.job.task.id}: step {step} cannot be replaced; {len(execution.steps)} steps were run")
        run = _Run(execution.job, execution.program, tools=tools)
        for known in execution.steps[: step - 1]:
            run.keep(known)
        run.substitute(execution.steps[step - 1], value)
        runs.append(run)
    _finish_runs(runs, tools=tools)
    return [run.close() for run in runs]


def _start_run(job: Job, *, tools: ToolRunner) -> "_Run":
    run = _Run(job, None, tools=tools)
    if job.proposal.status != "ok" or not job.proposal.program.strip():
        return run.stop("no_program", job.proposal.error or "the proposal holds no program", step=None)
    try:
        program = parse_program(job.proposal.program)
    except ProgramSyntaxError as error:
        return run.stop("program_error", str(error), step=error.step)
    run = _Run(job, program, tools=tools)
    problems = check_program(program, kind=job.task.kind, find_signature=tools.find_signature, inputs=tuple(job.inputs))
    if problems:
        shown = "; ".join(problem.describe() for problem in problems[:SHOWN_PROBLEMS])
        left = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        lines = [statement.line for statement in program.statements]
        return run.stop("program_error", shown + left, step=lines.index(problems[0].line) + 1)
    return run


def _finish_runs(runs: Iterable["_Run"], *, tools: ToolRunner) -> None:
    """Rounds until every run has stopped. A round never gives a program two steps, so that there are at most as many as lines."""
    live = list(runs)
    while live:
        batches: dict[str, list[tuple[_Run, ToolCall]]] = {}
        for run in live:
            call = run.prepare_call()
            if call is not None:
                batches.setdefault(call.tool, []).append((run, call))
        for tool, batch in batches.items():
            started = time.perf_counter()
            results = read_results(partial(tools.run, tool), [call for _, call in batch])
            share = (time.perf_counter() - started) / len(batch)
            for (run, call), result in zip(batch, results, strict=True):
                run.take_result(call, result, seconds=share)
        live = [run for run in live if run.status is None]


class _Run:
    """The state of one program while it runs."""

    def __init__(self, job: Job, program: Program | None, *, tools: ToolRunner) -> None:
        self._job, self._program, self._tools = job, program, tools
        self._values = {name: TypedValue(image, "Image") for name, image in job.inputs.items()}
        self._steps: list[ExecutedStep] = []
        self._error: str | None = None
        self._error_step: int | None = None
        self.status: TraceStatus | None = None

    @property
    def _statement(self) -> Statement:
        assert self._program is not None
        return self._program.statements[len(self._steps)]

    @property
    def _signature(self) -> ToolSignature:
        signature = self._tools.find_signature(self._statement.tool)
        if signature is None:
            raise ProgramError(f"there is no tool {self._statement.tool}")
        return signature

    def stop(self, status: TraceStatus, error: str | None = None, *, step: int | None) -> "_Run":
        self.status, self._error, self._error_step = status, error, step
        return self

    def prepare_call(self) -> ToolCall | None:
        """The call of the next step; None where there is none to make: RESULT is answered here, and a step may fail before its call."""
        if self.status is not None:
            return None
        try:
            call = bind_call(self._statement, self._signature, self._values)
        except ProgramError as error:
            self._fail("program_error", str(error), self._open_step(None))
            return None
        if call.tool != RESULT_TOOL:
            return self._tell_words(call)
        self.take_result(call, ToolResult(value=call.arguments["var"]), seconds=0.0)
        return None

    def _tell_words(self, call: ToolCall) -> ToolCall:
        """The call, for a tool that learns and is given no words, with what later steps ask of its result."""
        if self._signature.concept != "":
            return call
        assert self._program is not None
        values = {name: typed.value for name, typed in self._values.items()}
        step = len(self._steps) + 1
        return replace(call, concepts=list_asked_words(self._program, step, find_signature=self._tools.find_signature, values=values))

    def take_result(self, call: ToolCall, result: ToolResult, *, seconds: float) -> None:
        """Add what the call of the present step gave."""
        step = ExecutedStep(
            step=len(self._steps) + 1,
            statement=self._statement,
            call=call,
            confidence=result.confidence,
            prompts=result.prompts,
            seconds=seconds,
        )
        if result.error is not None:
            self._fail("program_error" if call.tool == EXPRESSION_TOOL else "tool_error", result.error, step)
            return
        try:
            value = read_value(result.value, declared=self._signature.returns, maker=call.tool)
        except ToolError as error:
            self._fail("tool_error", str(error), step)
            return
        passed = step.statement.find_argument("var") if call.tool == RESULT_TOOL else None
        kind = self._values[passed.name].type if isinstance(passed, Reference) else value.type
        self.keep(replace(step, value=value.value, result_type=kind))

    def keep(self, step: ExecutedStep) -> None:
        """Add a step that has its value, and stop behind the last one."""
        assert self._program is not None and step.value is not None and step.result_type is not None
        self._values[step.statement.variable] = TypedValue(step.value, step.result_type)
        self._steps.append(step)
        if len(self._steps) == len(self._program.statements):
            self.stop("finished", step=None)

    def substitute(self, step: ExecutedStep, value: Value) -> None:
        """Add a step with another value."""
        try:
            typed = read_value(value, declared=self._signature.returns, maker="the substitution")
        except ToolError as error:
            self._fail("program_error", str(error), self._open_step(step.call))
            return
        self.keep(replace(self._open_step(step.call), value=typed.value, result_type=typed.type))

    def _open_step(self, call: ToolCall | None) -> ExecutedStep:
        return ExecutedStep(step=len(self._steps) + 1, statement=self._statement, call=call)

    def _fail(self, status: TraceStatus, error: str, step: ExecutedStep) -> None:
        self._steps.append(replace(step, error=error))
        self.stop(status, f"step {step.step} ({step.statement.tool}): {error}", step=step.step)

    def close(self) -> Execution:
        """The record of the run."""
        assert self.status is not None
        return Execution(
            job=self._job,
            program=self._program,
            values={name: typed.value for name, typed in self._values.items()},
            steps=tuple(self._steps),
            status=self.status,
            error=self._error,
            error_step=self._error_step,
        )
