"""From an execution to its record: every value told in words for people and critics (CLOVA 3.3), the result kept as a picture or boxes.

Pictures become captions, boxes coordinates, nothing "... is empty", everything else its text.
"""

from collections.abc import Callable

from PIL import Image

from visloop.assistant.grammar import format_statement
from visloop.assistant.interpreter import ExecutedStep, Execution
from visloop.assistant.program import Reference, Statement
from visloop.ids import make_id
from visloop.records.assistant import LabelledBox, StepTrace, Trace
from visloop.tools.values import Box, Value, ValueType, VisualObject

TAG_TOOL = "TAG"


def make_trace(
    execution: Execution, *, describe_image: Callable[[Image.Image], str], save_image: Callable[[Image.Image], str], key: str = ""
) -> Trace:
    """The record of a run. ``describe_image`` gives a caption (asked once per picture), ``save_image`` stores the result's picture and
    gives its path in the data folder.

    The id depends on ``key``, the task, the proposal and what every step gave: equal runs have equal ids, so that ``key`` has to tell
    apart those that should not.
    """
    teller = _Teller(describe_image)
    steps = tuple(_trace_step(step, execution, teller) for step in execution.steps)
    proposal, result = execution.job.proposal, execution.result
    outcome = [(step.output, step.prompts, step.error) for step in steps]
    identity = (execution.job.task.id, "trace", key, proposal.author, proposal.plan, proposal.program, outcome, execution.error)
    return Trace(
        id=make_id(*(_make_writable(str(part)) for part in identity)),
        task_id=execution.job.task.id,
        proposal=proposal,
        steps=steps,
        status=execution.status,
        result=None if result is None else steps[-1].output,
        result_image=save_image(result) if isinstance(result, Image.Image) else None,
        result_boxes=_find_result_boxes(execution),
        error=None if execution.error is None else _make_writable(execution.error),
        error_step=execution.error_step,
        seconds=sum(step.seconds for step in steps),
    )


def describe_value(value: Value, type: ValueType, *, name: str, describe_image: Callable[[Image.Image], str]) -> str:
    """A variable's value in words, as a critic reads it. Coordinates are whole pixels (left, top, right, bottom); the labels of objects
    stand behind theirs."""
    if isinstance(value, Image.Image):
        return f"The description of {name}: {describe_image(value)}"
    if isinstance(value, tuple):
        if not value:
            return f"{name} is empty"
        if type in ("Boxes", "Objects"):
            shown = ", ".join(_describe_region(entry, labelled=type == "Objects") for entry in value if not isinstance(entry, str))
            return f"The coordinate of {name}: [{shown}]"
        return ", ".join(str(entry) for entry in value)
    return str(value)


def _describe_region(region: Box | VisualObject, *, labelled: bool) -> str:
    box = region.box if isinstance(region, VisualObject) else region
    corners = "[" + ", ".join(str(round(corner)) for corner in box.corners) + "]"
    label = _find_label(region)
    return f"{corners} {label}" if labelled and label else corners


def _find_label(region: Box | VisualObject) -> str:
    return (region.label or region.box.label) if isinstance(region, VisualObject) else region.label


class _Teller:
    """Tells values in words and captions every picture once."""

    def __init__(self, describe_image: Callable[[Image.Image], str]) -> None:
        self._describe_image = describe_image
        self._captions: dict[int, str] = {}

    def tell(self, value: Value, type: ValueType, *, name: str) -> str:
        return _make_writable(describe_value(value, type, name=name, describe_image=self._caption))

    def _caption(self, image: Image.Image) -> str:
        if id(image) not in self._captions:  # the execution keeps the picture alive: its id stays its own
            self._captions[id(image)] = self._describe_image(image)
        return self._captions[id(image)]


def _make_writable(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _trace_step(step: ExecutedStep, execution: Execution, teller: _Teller) -> StepTrace:
    """The record of a step. Arguments that are variables are told as their values, and so are the variables of a text, as ``{VAR}``.
    The tool is named as the catalogue names it, the line as the program does."""
    types: dict[str, ValueType] = {known.statement.variable: known.result_type for known in execution.steps if known.result_type}
    types |= dict.fromkeys(execution.job.inputs, "Image")
    arguments: dict[str, str] = {}
    for key, value in ({} if step.call is None else step.call.arguments).items():
        source = step.statement.find_argument(key)
        name = source.name if isinstance(source, Reference) else key
        if value is not None:
            arguments[key] = teller.tell(value, types.get(name, "Any"), name=name)
    for name, value in ({} if step.call is None else step.call.variables).items():
        arguments[f"{{{name}}}"] = teller.tell(value, types.get(name, "Any"), name=name)
    output = ""
    if step.value is not None and step.result_type is not None:
        output = teller.tell(step.value, step.result_type, name=step.statement.variable)
    return StepTrace(
        step=step.step,
        line=format_statement(step.statement),
        variable=step.statement.variable,
        tool=step.statement.tool if step.call is None else step.call.tool,
        arguments=arguments,
        output=output,
        output_type=step.result_type or "",
        seconds=step.seconds,
        confidence=step.confidence,
        prompts=step.prompts,
        error=None if step.error is None else _make_writable(step.error),
    )


def _find_result_boxes(execution: Execution) -> tuple[LabelledBox, ...]:
    """The labelled boxes of the result: its own if it is boxes or objects, else those of the objects that were tagged into the picture."""
    result = execution.result
    if isinstance(result, tuple):
        return _label_boxes(result)
    if not isinstance(result, Image.Image):
        return ()
    makers = {step.statement.variable: step for step in execution.steps}
    boxes: list[LabelledBox] = []
    step = _find_maker(makers, execution.steps[-1].statement, "var")
    while step is not None and step.call is not None and step.call.tool == TAG_TOOL:
        objects = step.call.arguments["object"]
        boxes = [*(_label_boxes(objects) if isinstance(objects, tuple) else ()), *boxes]
        step = _find_maker(makers, step.statement, "image")
    return tuple(boxes)


def _find_maker(makers: dict[str, ExecutedStep], statement: Statement, key: str) -> ExecutedStep | None:
    """The step that made the variable behind an argument; None for an input."""
    source = statement.find_argument(key)
    return makers.get(source.name) if isinstance(source, Reference) else None


def _label_boxes(regions: tuple[object, ...]) -> tuple[LabelledBox, ...]:
    return tuple(
        LabelledBox(box=region.box.corners if isinstance(region, VisualObject) else region.corners, label=_find_label(region))
        for region in regions
        if isinstance(region, Box | VisualObject)
    )
