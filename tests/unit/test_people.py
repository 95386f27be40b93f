"""What a person's word on one run says about other runs of its task."""

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from visloop.assistant.interpreter import ExecutedStep, Execution, Job
from visloop.assistant.program import Reference, Statement
from visloop.evaluation.people import complete_word, count_edited, judge_by_word
from visloop.records.assistant import Feedback, LabelledBox, Proposal, Task, Trace
from visloop.tools.base import ToolCall
from visloop.tools.values import Box

PICTURE = Image.new("RGB", (8, 8))
PROPOSAL = Proposal(task_id="t", plan=(), program="", author="a")


def make_task(kind: Any) -> Task:
    return Task(
        id="t",
        kind=kind,
        instruction="i",
        images=("p.png",),
        inputs=("IMAGE",),
        family="page",
        wording="new",
        split="train",
        group="g",
        source="page",
    )


def make_trace(**changes: Any) -> Trace:
    return replace(Trace(id="seen", task_id="t", proposal=PROPOSAL, steps=(), status="finished", result="0"), **changes)


def make_word(accepted: bool, answer: str | None = None, text: str = "") -> Feedback:
    return Feedback(id="w", task_id="t", trace_id="seen", accepted=accepted, answer=answer, text=text, source="person")


def make_execution(kind: Any, *edits: int) -> Execution:
    """A run whose steps edited as many objects."""
    box = Box(left=0, top=0, right=1, bottom=1)
    statement = Statement(variable="IMAGE0", tool="REPLACE", arguments=(("object", Reference("OBJ0")),))
    steps = tuple(
        ExecutedStep(step=number, statement=statement, call=ToolCall(tool="REPLACE", arguments={"object": (box,) * count}), value=PICTURE)
        for number, count in enumerate(edits, start=1)
    )
    return Execution(job=Job(make_task(kind), PROPOSAL, {}), program=None, values={}, steps=steps, status="finished")


@pytest.mark.parametrize(
    ("kind", "said", "result", "answer"),
    [
        ("vqa", True, "teal", "teal"),
        ("vqa", False, "teal", None),
        ("multi_image", False, "False", "yes"),
        ("multi_image", False, "True", "no"),
        ("editing", True, None, None),
    ],
)
def test_answer_that_is_implied(kind: str, said: bool, result: str | None, answer: str | None) -> None:
    assert complete_word(make_word(said), task=make_task(kind), seen=make_trace(result=result)).answer == answer


def test_given_answer_stays() -> None:
    assert complete_word(make_word(False, "3"), task=make_task("vqa"), seen=make_trace(result="yes")).answer == "3"


@pytest.mark.parametrize(("result", "right"), [("3", True), ("three", True), ("0", False), (None, False)])
def test_answers_are_compared_with_the_right_one(result: str | None, right: bool) -> None:
    said = judge_by_word(make_execution("vqa"), make_trace(id="now", result=result), word=make_word(False, "3"), seen=make_trace())
    assert (said.accepted, said.answer, said.source, said.trace_id) == (right, "3", "person", "now")
    assert ("should be 3" in said.text) is not right


def test_refused_answer_without_the_right_one_proves_nothing() -> None:
    for result in ("0", "1"):
        word = make_word(False, text="look again")
        said = judge_by_word(make_execution("vqa"), make_trace(result=result), word=word, seen=make_trace())
        assert not said.accepted and said.text == "look again"


@pytest.mark.parametrize(
    ("answer", "labels", "right"),
    [("2", ["star", "star"], True), ("2", ["star"], False), ("star, Star", ["star", "star"], True), ("star, bar", ["star", "star"], False)],
)
def test_tags_are_counted_or_compared(answer: str, labels: list[str], right: bool) -> None:
    boxes = tuple(LabelledBox(box=(0.0, 0.0, 1.0, 1.0), label=label) for label in labels)
    now, seen = make_trace(result_image="new.png", result_boxes=boxes), make_trace(result_image="old.png")
    said = judge_by_word(make_execution("tagging"), now, word=make_word(False, answer), seen=seen)
    assert said.accepted is right and said.answer is None  # a number of tags is no answer that a critic could compare with


@pytest.mark.parametrize(
    ("edits", "image", "right"), [((2,), "new", True), ((1, 1), "new", True), ((1,), "new", False), ((2,), "old", False)]
)
def test_edit_needs_its_objects_and_another_picture(edits: tuple[int, ...], image: str, right: bool) -> None:
    execution = make_execution("editing", *edits)
    assert count_edited(execution) == sum(edits)
    now, seen = make_trace(result_image=f"a/{image}.png"), make_trace(result_image="b/old.png")
    assert judge_by_word(execution, now, word=make_word(False, "2"), seen=seen).accepted is right


def test_accepted_picture_is_right_when_it_comes_again() -> None:
    for name, right in (("a.png", True), ("b.png", False)):
        said = judge_by_word(
            make_execution("editing"), make_trace(result_image=f"x/{name}"), word=make_word(True), seen=make_trace(result_image="y/a.png")
        )
        assert said.accepted is right


def test_run_that_stopped_is_wrong() -> None:
    now = make_trace(status="tool_error", result=None, error="step 1 (LOC): nothing")
    said = judge_by_word(make_execution("vqa"), now, word=make_word(True, "0"), seen=make_trace())
    assert not said.accepted and "step 1 (LOC)" in said.text
