"""Running programs: values step by step, faults as states, batches over programs, substitutions."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.fake_tools import ScriptedTools, make_box, make_image, make_job, make_object
from visloop.assistant.interpreter import Execution, Job, run_programs, run_substitutions
from visloop.config_assistant import RegionBackend, ToolsConfig, VisionConfig
from visloop.errors import DataError, ModelError
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.signatures import SIGNATURES
from visloop.tools.toolbox import open_toolbox
from visloop.tools.values import Value

ABOVE = """BOX0=LOC(image=IMAGE,object='boat')
IMAGE0=CROP_BEHIND(image=IMAGE,box=BOX0)
BOX1=LOC(image=IMAGE0,object='kite')
ANSWER0=COUNT(box=BOX1)
ANSWER1=EVAL(expr="'yes' if {ANSWER0} > 0 else 'no'")
FINAL_RESULT=RESULT(var=ANSWER1)"""
BLURRED = "OBJ0=SEG(image=IMAGE)\nIMAGE0=BGBLUR(image=IMAGE,object=OBJ0)\nFINAL_RESULT=RESULT(var=IMAGE0)"
ASK = "ANSWER0=VQA(image=IMAGE,question='What is this?')\nFINAL_RESULT=RESULT(var=ANSWER0)"


def count(call: ToolCall) -> int:
    box = call.arguments["box"]
    assert isinstance(box, tuple)
    return len(box)


def make_tools(**scripts: object) -> ScriptedTools:
    known: dict[str, object] = {"LOC": (make_box(),), "CROP_ABOVE": make_image(4), "COUNT": count, "VQA": "yes", "SEG": (make_object(),)}
    return ScriptedTools(known | scripts)  # type: ignore[arg-type]


def run(program: str, tools: ScriptedTools | None = None, **job: object) -> Execution:
    [execution] = run_programs([make_job(program, **job)], tools=tools or make_tools())  # type: ignore[arg-type]
    return execution


def test_a_program_runs_to_its_result_and_keeps_every_value() -> None:
    crop = make_image(4)
    boxes = {"boat": (make_box(), make_box(0, 0, 1, 1)), "kite": (make_box(2, 2, 3, 3),)}
    tools = make_tools(LOC=lambda call: ToolResult(value=boxes[call.arguments["object"]], confidence=0.5, prompts=("p1",)), CROP_ABOVE=crop)
    execution = run(ABOVE, tools)
    assert (execution.status, execution.error, execution.error_step, execution.result) == ("finished", None, None, "yes")
    assert list(execution.values) == ["IMAGE", "BOX0", "IMAGE0", "BOX1", "ANSWER0", "ANSWER1", "FINAL_RESULT"]
    assert execution.values["BOX0"] == boxes["boat"] and execution.values["IMAGE0"] is crop and execution.values["ANSWER0"] == 1
    assert [step.step for step in execution.steps] == [1, 2, 3, 4, 5, 6]
    assert [step.result_type for step in execution.steps] == ["Boxes", "Image", "Boxes", "Number", "Text", "Text"]
    assert (execution.steps[0].confidence, execution.steps[0].prompts, execution.steps[1].confidence) == (0.5, ("p1",), None)
    assert [tool for tool, _ in tools.batches] == ["LOC", "CROP_ABOVE", "LOC", "COUNT", "EVAL"], "aliases are called by the tool's name"
    assert tools.calls[1].arguments == {"image": execution.values["IMAGE"], "box": boxes["boat"]}
    assert execution.steps[2].call is tools.calls[2] and execution.program is not None
    assert execution.steps[3].statement is execution.program.statements[3]


def test_a_tool_without_words_is_told_what_later_steps_ask_of_its_result() -> None:
    tools = make_tools(
        SELECT=(make_object(),), LIST=("pug", "poodle"), CLASSIFY=(make_object(),), REPLACE=make_image(4), BGBLUR=make_image(4)
    )
    select = """OBJ0=SEG(image=IMAGE)
    OBJ1=SELECT(image=IMAGE,object=OBJ0,query='old sofa, lamp',category=None)
    OBJ2=SELECT(image=IMAGE,object=OBJ1,query='grey')
    IMAGE0=REPLACE(image=IMAGE,object=OBJ2,prompt='a star')
    FINAL_RESULT=RESULT(var=IMAGE0)"""
    classify = """LIST0=LIST(query='dogs',max=2)
    OBJ0=SEG(image=IMAGE)
    OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)
    IMAGE0=TAG(image=IMAGE,object=OBJ1)
    FINAL_RESULT=RESULT(var=IMAGE0)"""
    jobs = [make_job(select, kind="editing"), make_job(classify, kind="tagging"), make_job(BLURRED, kind="editing")]
    two = """OBJ0=SEG(image=IMAGE)
    OBJ1=SELECT(image=IMAGE,object=OBJ0,query='cat')
    IMAGE0=REPLACE(image=IMAGE,object=OBJ1,prompt='a dog')
    OBJ2=SEG(image=IMAGE0)
    OBJ3=SELECT(image=IMAGE0,object=OBJ2,query='lamp')
    IMAGE1=BGBLUR(image=IMAGE0,object=OBJ3)
    FINAL_RESULT=RESULT(var=IMAGE1)"""
    run_programs([make_job(two, kind="editing")], tools=tools)
    assert [call.concepts for call in tools.calls if call.tool == "SEG"] == [("cat",), ("lamp",)], "another picture has other regions"
    tools.batches.clear()
    run_programs(jobs, tools=tools)
    told = [call.concepts for call in tools.calls if call.tool == "SEG"]
    assert sorted(told) == [(), ("old sofa, lamp", "grey"), ("pug", "poodle")]
    assert not any(call.concepts for call in tools.calls if call.tool != "SEG"), "the others have an argument that says it"


def test_texts_are_filled_in_once_and_expressions_are_not() -> None:
    answers = iter(["{IMAGE} {ANSWER1} red", "done"])
    tools = make_tools(VQA=lambda call: next(answers), LOC=())
    program = """ANSWER0=VQA(image=IMAGE,question='What colour?')
    BOX0=LOC(image=IMAGE,object='{ANSWER0}')
    ANSWER1=COUNT(box=BOX0)
    ANSWER2=VQA(image=IMAGE,question='Is {ANSWER1} of { ANSWER0 } here?')
    ANSWER3=EVAL(expr='{ANSWER0} == {ANSWER2} or {ANSWER1}')
    FINAL_RESULT=RESULT(var=ANSWER3)"""
    execution = run(program, tools)
    assert execution.status == "finished" and execution.result == 0
    first, loc, _, second, evaluation = tools.calls
    assert (first.variables, loc.variables) == ({}, {})
    assert loc.arguments["object"] == "{ANSWER0}", "not a template"
    assert second.arguments["question"] == "Is 0 of {IMAGE} {ANSWER1} red here?", "braces in a value are text"
    assert evaluation.arguments["expr"] == "{ANSWER0} == {ANSWER2} or {ANSWER1}"
    assert evaluation.variables == {"ANSWER0": "{IMAGE} {ANSWER1} red", "ANSWER2": "done", "ANSWER1": 0}


def test_an_argument_that_is_left_out_is_none() -> None:
    tools = make_tools(SELECT=(make_object(),), COLORPOP=make_image())
    lines = ["OBJ0=SEG(image=IMAGE)", "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='cat')"]
    lines += ["IMAGE0=COLORPOP(image=IMAGE,object=OBJ1)", "R=RESULT(var=IMAGE0)"]
    assert run("\n".join(lines), tools, kind="editing").status == "finished"
    assert tools.calls[1].arguments["category"] is None


@pytest.mark.parametrize(
    ("program", "status", "step", "what"),
    [
        ("hello", "program_error", 1, "line 1, column 6"),
        ("BOX0=LOC(image=IMAGE,object='x')\n\nBOX1=LOC(image=IMAGE", "program_error", 2, "line 3, column 21"),
        ("\nA=LOOK(image=IMAGE)\nR=RESULT(var=A)", "program_error", 1, "line 2, column 3: there is no tool LOOK"),
        ("A=VQA(image=IMAGE,question='x')\n\nB=COUNT(box=Q)\nR=RESULT(var=B)", "program_error", 2, "line 3, column 9: Q is not defined"),
        ("A=VQA(image=IMAGE,question='x')", "program_error", 1, "FINAL_RESULT=RESULT(var=A)"),
        ("A=SEG(image=IMAGE)\nR=RESULT(var=A)", "program_error", 1, "may not be used"),
        ("A=EVAL(expr='1 / 0')\nR=RESULT(var=A)", "program_error", 1, "step 1 (EVAL): division by zero"),
        ("A=VQA(image=IMAGE,question='x')\nB=EVAL(expr='{A} > 1 + \\'a\\'')\nR=RESULT(var=B)", "program_error", 2, "step 2 (EVAL)"),
        ("A=EVAL(expr='1')\nB=LOC(image=IMAGE,object=A)\nR=RESULT(var=B)", "program_error", 2, "takes Text, but the value of A is Number"),
        ("A=EVAL(expr='1')\nB=COUNT(box=A)\nR=RESULT(var=B)", "program_error", 2, "takes Boxes or Objects"),
        ("", "no_program", None, "no program"),
        (" \n ", "no_program", None, "no program"),
    ],
)
def test_a_programs_fault_is_a_state(program: str, status: str, step: int | None, what: str) -> None:
    execution = run(program)
    assert (execution.status, execution.error_step, execution.result) == (status, step, None)
    assert execution.error is not None and what in execution.error


def test_a_program_with_problems_is_not_run_at_all_and_names_the_first_three() -> None:
    tools = make_tools()
    execution = run("A=VQA(image=IMAGE,question='x')\nB=P(a=1)\nC=P(a=1)\nD=P(a=1)\nE=P(a=1)\nR=RESULT(var=A)", tools)
    assert (tools.batches, execution.steps, execution.error_step) == ([], (), 2)
    assert execution.error is not None and execution.error.count("there is no tool P") == 3 and execution.error.endswith("; and 1 more")
    assert list(execution.values) == ["IMAGE"]


def test_a_proposal_without_a_program_is_not_run() -> None:
    execution = run(ASK, status="unreadable", error="no line could be read")
    assert (execution.status, execution.error, execution.program) == ("no_program", "no line could be read", None)


def raise_error(call: ToolCall) -> Value:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (ToolResult(value=None, error="the picture is too small"), "step 1 (VQA): the picture is too small"),
        (ToolResult(value="yes", error=""), "step 1 (VQA): "),
        (raise_error, "step 1 (VQA): RuntimeError: out of memory"),
        (ToolResult(value=None), "neither a value nor an error"),
        (3, "VQA gave Number, its signature says Text"),
        ((), "VQA gave Objects"),
        (np.float32(1.0), "float32 is not a value of programs"),
        ((1, 2), "tuple is not a value of programs"),
        ({"answer": "yes"}, "dict is not a value"),
    ],
)
def test_a_tools_fault_is_a_state(answer: object, what: str) -> None:
    execution = run(ASK, make_tools(VQA=answer))
    assert (execution.status, execution.error_step, execution.result, "ANSWER0" in execution.values) == ("tool_error", 1, None, False)
    assert execution.error is not None and what in execution.error
    [step] = execution.steps
    assert step.value is None and step.error is not None and step.call is not None, "the call that failed is in the trace"


def test_a_tool_that_breaks_its_contract_fails_its_calls_only() -> None:
    class ShortTools(ScriptedTools):
        def run(self, tool: str, calls: list[ToolCall]) -> list[ToolResult]:  # type: ignore[override]
            return super().run(tool, calls)[:-1]

    execution = run(ASK, ShortTools({"VQA": "yes"}))
    assert (execution.status, execution.error) == ("tool_error", "step 1 (VQA): the tool did not give one result per call")


def test_a_tool_that_cannot_be_loaded_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tools = open_toolbox(ToolsConfig(loc=RegionBackend.owlvit, detector=VisionConfig(model=str(tmp_path))))
    program = "BOX0=LOC(image=IMAGE,object='boat')\nFINAL_RESULT=RESULT(var=BOX0)"
    with pytest.raises(ModelError, match=re.escape(str(tmp_path))):
        run_programs([make_job(program), make_job(program)], tools=tools)


def test_an_empty_value_has_the_type_of_its_tool() -> None:
    execution = run(ABOVE, make_tools(LOC=()))
    assert [step.result_type for step in execution.steps][:3] == ["Boxes", "Image", "Boxes"]
    assert execution.result == "no"
    listed = run("L=LIST(query='x',max=2)\nR=RESULT(var=L)", make_tools(LIST=()), kind="tagging")
    assert [step.result_type for step in listed.steps] == ["List", "List"]


def test_no_run_sees_the_state_of_another() -> None:
    """CLOVA's programs share the dictionary of their caller: a second run sees the first one's variables."""
    job = make_job(ASK)
    stale = Job(job.task, replace(job.proposal, program="R=RESULT(var=ANSWER0)"), job.inputs)
    inputs = dict(job.inputs)
    first = run_programs([job, stale], tools=make_tools())
    again = run_programs([job, stale], tools=make_tools(VQA="no"))
    assert [execution.status for execution in first + again] == ["finished", "program_error"] * 2
    assert [execution.result for execution in (first[0], again[0])] == ["yes", "no"]
    assert dict(job.inputs) == inputs and first[0].values is not again[0].values


def test_programs_run_side_by_side_in_one_batch_per_tool_and_round() -> None:
    jobs = [make_job(ABOVE, f"a{index}") for index in range(5)] + [make_job(ASK, f"b{index}") for index in range(3)]
    tools = make_tools(VQA="a kite")
    executions = run_programs(jobs, tools=tools)
    assert [(tool, len(batch)) for tool, batch in tools.batches] == [
        ("LOC", 5),
        ("VQA", 3),
        ("CROP_ABOVE", 5),
        ("LOC", 5),
        ("COUNT", 5),
        ("EVAL", 5),
    ]
    assert [execution.job for execution in executions] == jobs
    assert [execution.result for execution in executions] == ["yes"] * 5 + ["a kite"] * 3


def test_every_result_goes_to_its_own_program_whatever_its_neighbours_do() -> None:
    """Side by side and one by one give the same, with faults of all sorts among the neighbours."""

    def answer(call: ToolCall) -> object:
        question = str(call.arguments["question"])
        if "raise" in question:
            raise ValueError(question)
        return 7 if "type" in question else f"about {question}"

    ask = "A=VQA(image=IMAGE,question='{}')\nB=VQA(image=IMAGE,question='again {{A}}')\nR=RESULT(var=B)"
    questions = ["one", "raise", "two", "type", "three", "raise again"]
    jobs = [make_job(ask.format(question), f"t{index}") for index, question in enumerate(questions)]
    jobs.insert(2, make_job("A=(", "broken"))
    together = run_programs(jobs, tools=make_tools(VQA=answer))
    alone = [run_programs([job], tools=make_tools(VQA=answer))[0] for job in jobs]
    for first, second in zip(together, alone, strict=True):
        assert (first.status, first.error, first.error_step, first.result) == (
            second.status,
            second.error,
            second.error_step,
            second.result,
        )
        assert [step.value for step in first.steps] == [step.value for step in second.steps]
    assert [execution.status for execution in together] == [
        "finished",
        "tool_error",
        "program_error",
        "finished",
        "tool_error",
        "finished",
        "tool_error",
    ]
    assert together[0].result == "about again about one"


def test_seconds_are_the_share_of_the_batch() -> None:
    executions = run_programs([make_job(ASK, f"t{index}") for index in range(4)], tools=make_tools())
    shares = {execution.steps[0].seconds for execution in executions}
    assert len(shares) == 1 and 0 < shares.pop() < 1
    assert {execution.steps[1].seconds for execution in executions} == {0.0}, "RESULT is no call"


def test_a_substitution_keeps_what_came_before_and_runs_what_comes_after() -> None:
    original = run(ABOVE, make_tools(LOC=()))
    assert original.result == "no"
    tools = make_tools()
    found = (make_box(), make_box(3, 3, 4, 4))
    late, early, same, last = run_substitutions(
        [(original, 4, 2), (original, 1, found), (original, 3, ()), (original, 6, "maybe")], tools=tools
    )
    assert [execution.result for execution in (late, early, same, last)] == ["yes", "yes", "no", "maybe"]
    assert late.steps[:3] == original.steps[:3] and late.steps[3].value == 2 and late.steps[3].call is original.steps[3].call
    assert early.values["BOX0"] == found and tools.calls[1].arguments["box"] == found
    assert (same.steps[2].value, same.steps[2].result_type, last.status) == ((), "Boxes", "finished")
    assert [tool for tool, _ in tools.batches] == ["EVAL", "CROP_ABOVE", "COUNT", "LOC", "EVAL", "COUNT", "EVAL"]
    assert original.result == "no" and original.values["ANSWER0"] == 0, "the original is as it was"


def test_a_failed_step_can_be_substituted() -> None:
    original = run(ABOVE, make_tools(COUNT=raise_error))
    assert (original.status, original.error_step) == ("tool_error", 4)
    [repaired] = run_substitutions([(original, 4, 0)], tools=make_tools(COUNT=raise_error))
    assert (repaired.status, repaired.error, repaired.result, repaired.steps[3].error) == ("finished", None, "no", None)


def test_a_substitution_of_the_wrong_type_is_a_state_and_one_of_no_step_is_refused() -> None:
    original = run(ABOVE)
    [wrong] = run_substitutions([(original, 4, "two")], tools=make_tools())
    assert (wrong.status, wrong.error_step, wrong.result) == ("program_error", 4, None)
    assert wrong.error == "step 4 (COUNT): the substitution gave Text, its signature says Number"
    for execution, step in ((original, 0), (original, 7), (run("A=("), 1)):
        with pytest.raises(DataError, match=f"step {step} cannot be replaced"):
            run_substitutions([(execution, step, 1)], tools=make_tools())


def test_plugins_run_by_their_signatures() -> None:
    plugin = replace(SIGNATURES["COUNT"], name="AREA", returns="Any")
    tools = ScriptedTools({"LOC": (), "AREA": ("a", "b")}, signatures={"AREA": plugin})
    execution = run("B=LOC(image=IMAGE,object='x')\nA=AREA(box=B)\nR=RESULT(var=A)", tools)
    assert (execution.result, [step.result_type for step in execution.steps]) == (("a", "b"), ["Boxes", "List", "List"])


def test_no_jobs_are_no_executions() -> None:
    assert run_programs([], tools=make_tools()) == []
    assert run_substitutions([], tools=make_tools()) == []
