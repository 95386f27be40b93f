"""What the gates measure on tasks, runs and critiques of the assistant: ``ok``, or the words that a person needs to find the fault."""

import math
from collections.abc import Callable, Sequence

from flows._assistant_context import AssistantContext
from flows._facts import Facts, Row, name_splits
from flows._learned_facts import LEARNED_FACTS, LEARNED_MEASURES
from flows._pictures import OK, PictureCheck
from visloop.assistant.grammar import parse_program
from visloop.assistant.program import TASK_INPUTS, Program
from visloop.errors import ProgramError
from visloop.records.assistant import Critique, StepTrace, Task, Trace


def _measure_tasks(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    pictures = PictureCheck(context)
    splits_of_group: dict[str, set[str]] = {}
    splits_of_picture: dict[str, set[str]] = {}
    for row in rows:
        if row.record is not None:
            splits_of_group.setdefault(row.record.group, set()).add(row.record.split)
            for digest in row.record.image_hashes:
                splits_of_picture.setdefault(digest, set()).add(row.record.split)
    facts: list[Facts] = []
    for row in rows:
        if row.record is None:
            facts.append({})
            continue
        task: Task = row.record
        shared = next((splits_of_picture[digest] for digest in task.image_hashes if len(splits_of_picture[digest]) > 1), {task.split})
        facts.append(
            {
                "instruction_text": OK if task.instruction.strip() else "empty",
                "pictures": pictures.check_sample(task),
                "input_names": _check_inputs(task),
                "group_splits": name_splits(splits_of_group[task.group]),
                "picture_splits": name_splits(shared),
            }
        )
    return facts


def _check_inputs(task: Task) -> str:
    allowed, shown = TASK_INPUTS[task.kind], ", ".join(task.inputs) or "none"
    if len(task.inputs) != len(task.images):
        return f"{len(task.images)} pictures, {len(task.inputs)} variables ({shown})"
    if len(set(task.inputs)) < len(task.inputs):
        return f"a variable twice ({shown})"
    return OK if set(task.inputs) <= set(allowed) else f"{shown}; a {task.kind} task has {', '.join(allowed)}"


def _measure_traces(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    pictures = PictureCheck(context)
    return [{} if row.record is None else _describe_trace(row.record, context, pictures) for row in rows]


def _describe_trace(trace: Trace, context: AssistantContext, pictures: PictureCheck) -> Facts:
    numbers = [step.step for step in trace.steps]
    strangers = [step for step in trace.steps if context.find_signature(step.tool) is None]
    return {
        "task_known": _find_task(trace, context),
        "step_numbers": OK if numbers == list(range(1, len(numbers) + 1)) else f"steps {', '.join(map(str, numbers))}",
        "status_fits": _check_status(trace),
        "program": _check_program(trace) if trace.status == "finished" else OK,
        "tools_known": f"step {strangers[0].step} calls {strangers[0].tool}" if strangers else OK,
        "measures": next((fault for step in trace.steps if (fault := _check_measures(step)) != OK), _check_tokens(trace)),
        "result_picture": OK if trace.result_image is None else pictures.check_paths([trace.result_image]),
    }


def _find_task(trace: Trace, context: AssistantContext) -> str:
    if trace.task_id not in context.tasks:
        return f"no task {trace.task_id}"
    return OK if trace.proposal.task_id == trace.task_id else f"its program was written for task {trace.proposal.task_id}"


def _check_status(trace: Trace) -> str:
    """A finished run has a result and no error; any other one an error and no result, and its last step is the one at fault."""
    failed = [step.step for step in trace.steps if step.error is not None]
    if trace.status == "finished":
        if trace.error is not None or trace.error_step is not None or failed:
            return f"finished with an error: {trace.error or f'step {failed[0] if failed else trace.error_step}'}"
        return OK if trace.steps and trace.result is not None else "finished without a result"
    if trace.result is not None or trace.result_image is not None or trace.result_boxes:
        return f"{trace.status} with a result"
    if not trace.error:
        return f"{trace.status} without an error"
    if trace.status == "no_program":
        return OK if not trace.steps and trace.error_step is None else "no program, but a step of it"
    if trace.error_step is None or trace.error_step < 1:
        return f"{trace.status} without the step at fault"
    if not trace.steps:
        return OK if trace.status == "program_error" else "a tool failed, but no step was run"
    last = trace.steps[-1].step
    return (
        OK
        if failed == [last] == [trace.error_step]
        else f"step {trace.error_step} is at fault, {failed or 'none'} failed, {last} is the last"
    )


def _check_program(trace: Trace) -> str:
    try:
        program = parse_program(trace.proposal.program)
    except ProgramError as error:
        return str(error)
    lines = len(program.statements)
    return OK if lines == len(trace.steps) else f"a program of {lines} lines, {len(trace.steps)} steps were run"


def _check_measures(step: StepTrace) -> str:
    if step.confidence is not None and not 0 <= step.confidence <= 1:
        return f"step {step.step}: confidence {step.confidence}"
    return OK if math.isfinite(step.seconds) and step.seconds >= 0 else f"step {step.step}: {step.seconds} seconds"


def _check_tokens(trace: Trace) -> str:
    read, written = trace.proposal.prompt_tokens, trace.proposal.new_tokens
    return OK if read >= 0 and written >= 0 else f"a program of {read} and {written} tokens"


def _measure_critiques(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    return [{} if row.record is None else _describe_critique(row.record, context) for row in rows]


def _describe_critique(critique: Critique, context: AssistantContext) -> Facts:
    trace = (context.traces or {}).get(critique.trace_id)
    program = _read_program(trace)
    return {
        "trace_known": OK if trace is not None else f"no trace {critique.trace_id}",
        "step_place": OK if trace is None else _check_place(critique, trace, program),
        "step_tool": OK if trace is None else _check_tool(critique, program, context),
        "blame": _check_blame(critique),
        "reply": critique.status,
    }


def _read_program(trace: Trace | None) -> Program | None:
    try:
        return None if trace is None else parse_program(trace.proposal.program)
    except ProgramError:
        return None


def _check_place(critique: Critique, trace: Trace, program: Program | None) -> str:
    written = [line for line in trace.proposal.program.splitlines() if line.strip()]
    lines = len(written) if program is None else len(program.statements)
    return OK if critique.step is None or 1 <= critique.step <= lines else f"step {critique.step} of a program of {lines} lines"


def _check_tool(critique: Critique, program: Program | None, context: AssistantContext) -> str:
    """The tool is that of the blamed line as the program writes it or as the catalogue names it; without such a line there is none."""
    inside = program is not None and critique.step is not None and 1 <= critique.step <= len(program.statements)
    if program is None or critique.step is None or not inside:
        return OK if critique.tool is None else f"tool {critique.tool} of no line"
    written = program.statements[critique.step - 1].tool
    signature = context.find_signature(written)
    names = {written, signature.name if signature else written}
    return OK if critique.tool in names else f"tool {critique.tool}; step {critique.step} calls {written}"


def _check_blame(critique: Critique) -> str:
    if critique.status != "ok":
        blames = critique.culprit != "nothing" or critique.step is not None or critique.tool is not None or critique.concept is not None
        return f"{critique.status}, and blames {critique.culprit}" if blames else OK
    if critique.culprit == "tool" and (critique.step is None or critique.tool is None):
        return "a tool is blamed, but not which"
    if critique.culprit != "tool" and critique.concept is not None:
        return f"{critique.culprit} is blamed, with the concept {critique.concept!r} of a tool"
    return OK


ASSISTANT_MEASURES: dict[str, Callable[[Sequence[Row], AssistantContext], list[Facts]]] = {
    "tasks": _measure_tasks,
    "traces": _measure_traces,
    "critiques": _measure_critiques,
    **LEARNED_MEASURES,
}

ASSISTANT_FACTS: dict[str, tuple[str, ...]] = {
    "tasks": ("instruction_text", "pictures", "input_names", "group_splits", "picture_splits"),
    "traces": ("task_known", "step_numbers", "status_fits", "program", "tools_known", "measures", "result_picture"),
    "critiques": ("trace_known", "step_place", "step_tool", "blame", "reply"),
    **LEARNED_FACTS,
}
"""Names of the measured columns, suite by suite: an empty table has them too."""
