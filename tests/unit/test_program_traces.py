"""The record of a run: values in words, the result as text, picture or boxes, and ids."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures.fake_tools import ScriptedTools, make_box, make_image, make_job, make_object
from visloop.assistant.interpreter import Execution, Job, run_programs
from visloop.assistant.traces import describe_value, make_trace
from visloop.records.assistant import LabelledBox, Trace
from visloop.records.shards import read_shard, write_shard
from visloop.tools.base import ToolResult
from visloop.tools.values import Value, ValueType

TAGGING = """OBJ0=LOC(image=IMAGE,object='flag')
LIST0=LIST(query='flags',max=2)
OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)
IMAGE0=TAG(image=IMAGE,object=OBJ1)
OBJ2=FACEDET(image=IMAGE)
IMAGE1=TAG(image=IMAGE0,object=OBJ2)
FINAL_RESULT=RESULT(var=IMAGE1)"""
FLAGS = (make_object(1.4, 2.6, 5, 7, label="Chile"), make_object(0, 0, 3, 3, label="Peru"))
TOOLS = ScriptedTools(
    {
        "LOC": (make_box(1.4, 2.6, 5, 7, label="flag"), make_box(0, 0, 3, 3)),
        "LIST": ("Chile", "Peru"),
        "CLASSIFY": FLAGS,
        "TAG": lambda call: make_image(color="red"),
        "FACEDET": (),
        "VQA": lambda call: ToolResult(value="yes", confidence=0.9, prompts=("p1", "p2")),
    }
)


class Album:
    """Captions and stores pictures, and counts both."""

    def __init__(self) -> None:
        self.described: list[Image.Image] = []
        self.saved: list[Image.Image] = []

    def describe(self, image: Image.Image) -> str:
        self.described.append(image)
        return f"a {image.width} x {image.height} picture"

    def save(self, image: Image.Image) -> str:
        self.saved.append(image)
        return f"results/{len(self.saved)}.png"


def trace(job: Job, *, album: Album | None = None, tools: ScriptedTools = TOOLS, key: str = "") -> tuple[Trace, Execution]:
    album = album or Album()
    [execution] = run_programs([job], tools=tools)
    return make_trace(execution, describe_image=album.describe, save_image=album.save, key=key), execution


@pytest.mark.parametrize(
    ("value", "type", "expected"),
    [
        (make_image(4), "Image", "The description of V: a 4 x 4 picture"),
        ((make_box(0.4, 1.6, 3, 4, label="x"),), "Boxes", "The coordinate of V: [[0, 2, 3, 4]]"),
        (FLAGS, "Objects", "The coordinate of V: [[1, 3, 5, 7] Chile, [0, 0, 3, 3] Peru]"),
        ((make_object(0, 0, 3, 3),), "Objects", "The coordinate of V: [[0, 0, 3, 3]]"),
        ((), "Boxes", "V is empty"),
        ((), "Objects", "V is empty"),
        ((), "List", "V is empty"),
        (("a", "b"), "List", "a, b"),
        ("yes", "Text", "yes"),
        (3, "Number", "3"),
        (True, "Bool", "True"),
    ],
)
def test_values_in_words(value: Value, type: ValueType, expected: str) -> None:
    assert describe_value(value, type, name="V", describe_image=Album().describe) == expected


def test_a_tagging_run_keeps_its_picture_and_all_that_was_tagged() -> None:
    album = Album()
    record, execution = trace(make_job(TAGGING, "t7", kind="tagging"), album=album)
    assert (record.status, record.task_id, record.result) == ("finished", "t7", "The description of FINAL_RESULT: a 8 x 8 picture")
    assert record.result_image == "results/1.png" and album.saved == [execution.result]
    assert record.result_boxes == (
        LabelledBox(box=(1.4, 2.6, 5, 7), label="Chile"),
        LabelledBox(box=(0, 0, 3, 3), label="Peru"),
    )
    assert len(album.described) == 3, "the input and two tagged pictures, each once"
    third, last = record.steps[2], record.steps[-1]
    assert (third.step, third.variable, third.tool, third.output_type) == (3, "OBJ1", "CLASSIFY", "Objects")
    assert third.line == "OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)"
    assert third.arguments == {
        "image": "The description of IMAGE: a 8 x 8 picture",
        "object": "The coordinate of OBJ0: [[1, 3, 5, 7], [0, 0, 3, 3]]",
        "categories": "Chile, Peru",
    }
    assert third.output == "The coordinate of OBJ1: [[1, 3, 5, 7] Chile, [0, 0, 3, 3] Peru]"
    assert record.steps[5].arguments["object"] == "OBJ2 is empty"
    assert last.arguments == {"var": "The description of IMAGE1: a 8 x 8 picture"}
    assert record.steps[1].arguments == {"query": "flags", "max": "2"}
    assert record.seconds == sum(step.seconds for step in record.steps) > 0


def test_a_text_result_is_the_plain_answer() -> None:
    program = "A=VQA(image=IMAGE,question='Is it?')\nB=EVAL(expr='{A} or 1 > 2')\nR=RESULT(var=B)"
    record, _ = trace(make_job(program))
    assert (record.result, record.result_image, record.result_boxes) == ("True", None, ())
    ask, evaluation, _ = record.steps
    assert (ask.confidence, ask.prompts, ask.error) == (0.9, ("p1", "p2"), None)
    assert evaluation.arguments == {"expr": "{A} or 1 > 2", "{A}": "yes"}


def test_boxes_as_the_result_are_kept_as_boxes() -> None:
    record, _ = trace(make_job("A=LOC(image=IMAGE,object='x')\nR=RESULT(var=A)"))
    assert record.result == "The coordinate of R: [[1, 3, 5, 7], [0, 0, 3, 3]]"
    assert [box.label for box in record.result_boxes] == ["flag", ""]
    edited, _ = trace(make_job("R=RESULT(var=IMAGE)"))
    assert (edited.result_image, edited.result_boxes) == ("results/1.png", ())


def test_a_run_that_failed_keeps_its_steps_and_its_error() -> None:
    program = "A=LOC(image=IMAGE,object='x')\nB=EVAL(expr='{A} > 1')\nR=RESULT(var=B)"
    record, _ = trace(make_job(program))
    assert (record.status, record.error_step, record.result, record.result_image) == ("program_error", 2, None, None)
    assert record.error is not None and "write len(...)" in record.error
    first, second = record.steps
    assert (second.output, second.output_type) == ("", "") and second.error is not None and first.error is None
    assert second.arguments == {"expr": "{A} > 1", "{A}": "The coordinate of A: [[1, 3, 5, 7], [0, 0, 3, 3]]"}
    nothing, _ = trace(make_job("A=(", "t1"))
    assert (nothing.status, nothing.steps, nothing.error_step) == ("program_error", (), 1)


def test_an_alias_is_named_by_its_tool_and_printed_as_written() -> None:
    tools = ScriptedTools({"LOC": (), "CROP_ABOVE": make_image(4)})
    program = "A=LOC(image=IMAGE,object='x')\nB = CROP_BEHIND(Image=IMAGE, box=A)\nR=RESULT(var=B)"
    record, _ = trace(make_job(program), tools=tools)
    assert (record.steps[1].tool, record.steps[1].line) == ("CROP_ABOVE", "B=CROP_BEHIND(image=IMAGE,box=A)")


def test_equal_runs_have_equal_ids_and_others_have_not() -> None:
    job = make_job(TAGGING, kind="tagging")
    base = trace(job)[0].id
    assert trace(job)[0].id == base
    taught = ScriptedTools({**TOOLS.scripts, "LIST": ("Chile", "Cuba")})
    others = [
        trace(job, key="cycle 2")[0].id,
        trace(job, tools=taught)[0].id,
        trace(make_job(TAGGING, "t1", kind="tagging"))[0].id,
        trace(Job(job.task, replace(job.proposal, plan=("other",)), job.inputs))[0].id,
    ]
    assert len({base, *others}) == 5


def test_a_record_can_be_written_whatever_a_tool_says(tmp_path: Path) -> None:
    tools = ScriptedTools({"VQA": "half \ud800 a pair \0"})
    record, _ = trace(make_job("A=VQA(image=IMAGE,question='x')\nR=RESULT(var=A)"), tools=tools)
    broken, _ = trace(
        make_job("A=VQA(image=IMAGE,question='x')\nR=RESULT(var=A)"), tools=ScriptedTools({"VQA": ToolResult(value=None, error="\udfff")})
    )
    write_shard(tmp_path / "traces.jsonl", [record, broken])
    assert list(read_shard(tmp_path / "traces.jsonl", Trace)) == [record, broken]
    assert record.result == "half ? a pair \0"
