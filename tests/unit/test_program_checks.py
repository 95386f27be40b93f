"""Static checks: every code with its place and what would be right, and silence about programs that may run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from visloop.assistant.checks import MAX_PROBLEMS, Problem, ProblemCode, check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.program import Literal, Program, Statement
from visloop.records.assistant import TaskKind
from visloop.tools.base import ToolSignature
from visloop.tools.signatures import SIGNATURES, find_signature

END = "FINAL_RESULT=RESULT(var={})"


def check(*lines: str, kind: TaskKind = "vqa", inputs: Sequence[str] | None = None) -> list[Problem]:
    return list(check_program(parse_program("\n".join(lines)), kind=kind, find_signature=find_signature, inputs=inputs))


GOOD: list[tuple[TaskKind, str]] = [
    (
        "vqa",
        """BOX0=LOC(image=IMAGE,object='TOP')
        IMAGE0=CROP_BEHIND(image=IMAGE,box=BOX0)
        BOX1=LOC(image=IMAGE0, object='street lamps')
        ANSWER0=COUNT(box=BOX1)
        ANSWER1=EVAL(expr="'front' if {ANSWER0} > 0 else 'behind' if len({BOX0}) > 0 else 'neither'")
        FINAL_RESULT=RESULT(var=ANSWER1)""",
    ),
    (
        "vqa",
        """ANSWER0=VQA(image=IMAGE,question='What color is the girl's hat?')
        ANSWER1=VQA(image=IMAGE,question='Is the {ANSWER0} hat large?')
        FINAL_RESULT=RESULT(var=ANSWER1)""",
    ),
    (
        "multi_image",
        """ANSWER0=VQA(image=LEFT,question='How many birds are there?')
        ANSWER1=VQA(Image=RIGHT,question='How many birds are there?')
        ANSWER2=EVAL(expr='{ANSWER0} + {ANSWER1} == 1')
        FINAL_ANSWER=RESULT(var=ANSWER2)""",
    ),
    (
        "editing",
        """OBJ0=SEG(image=IMAGE)
        OBJ1=SELECT(image=IMAGE,object=OBJ0,query='red bus',category=None)
        IMAGE0=REPLACE(image=IMAGE,object=OBJ1,prompt='truck')
        OBJ2=SEG(image=IMAGE0)
        OBJ3=SELECT(image=IMAGE0,object=OBJ2,query='road')
        IMAGE1=COLORPOP(image=IMAGE0,object=OBJ3)
        FINAL_RESULT=RESULT(var=IMAGE1)""",
    ),
    (
        "tagging",
        """OBJ0=LOC(image=IMAGE,object='flag')
        LIST0=LIST(query='flags of Europe',max=20)
        OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)
        IMAGE0=TAG(image=IMAGE,object=OBJ1)
        FINAL_RESULT=RESULT(var=IMAGE0)""",
    ),
]


@pytest.mark.parametrize(("kind", "program"), GOOD)
def test_programs_of_every_kind_of_task_pass(kind: TaskKind, program: str) -> None:
    assert check(*program.split("\n"), kind=kind) == []


@pytest.mark.parametrize(
    ("lines", "place", "code", "what"),
    [
        (["BOX0=LOCATE(image=IMAGE,object='x')"], (1, 6), "unknown_tool", "there is no tool LOCATE"),
        (["IMAGE0=CROP_LEFT(image=IMAGE,box=BOX0)"], (1, 8), "unknown_tool", "did you mean CROP_LEFTOF?"),
        (["BOX0=loc(image=IMAGE,object='x')"], (1, 6), "unknown_tool", "did you mean LOC?"),
        (["OBJ0=__import__(image=IMAGE)"], (1, 6), "unknown_tool", "tools are: LOC, VQA, COUNT"),
        (["OBJ0=SEG(image=IMAGE)"], (1, 6), "tool_not_allowed", "SEG may not be used in tasks of kind vqa; tools that may: LOC, VQA"),
        (["BOX0=LOC(image=IMAGE,objects='x',object='y')"], (1, 22), "unknown_argument", "no argument objects; did you mean object?"),
        (["BOX0=LOC(image=IMAGE,object='y',zzz=1)"], (1, 33), "unknown_argument", "its arguments are: image, object"),
        (["BOX0=LOC(image=IMAGE)"], (1, 6), "missing_argument", "LOC lacks its argument object (Text)"),
        (["BOX0=LOC(image=IMAGE,object=None)"], (1, 22), "missing_argument", "object of LOC may not be None; it takes Text"),
        (["BOX0=LOC(image=IMAGE,object='x',Image=IMAGE)"], (1, 33), "duplicate_argument", "image is given twice"),
        (["BOX0=LOC(image=IMAGE0,object='x')"], (1, 10), "undefined_variable", "IMAGE0 is not defined; did you mean IMAGE?"),
        (["BOX0=LOC(image=LEFT,object='x')"], (1, 10), "undefined_variable", "defined here are: IMAGE"),
        (["BOX0=LOC(image=IMAGE,object=kite)"], (1, 22), "undefined_variable", "a text stands in quotes: 'kite'"),
        (["BOX0=LOC(image=BOX0,object='x')"], (1, 10), "undefined_variable", "BOX0 is not defined"),
        (["BOX0=LOC(image=IMAGE,object='x')", "BOX0=LOC(image=IMAGE,object='y')"], (2, 1), "reassigned_variable", "on line 1 already"),
        (["IMAGE=LOC(image=IMAGE,object='x')"], (1, 1), "reassigned_variable", "IMAGE is defined as an input already"),
        (["BOX0=LOC(image=IMAGE,object=3)"], (1, 22), "wrong_type", "object of LOC takes Text, but 3 is Number"),
        (["BOX0=LOC(image=IMAGE,object=True)"], (1, 22), "wrong_type", "but True is Bool"),
        (["BOX0=LOC(image=IMAGE,object=IMAGE)"], (1, 22), "wrong_type", "but IMAGE is Image; made by VQA"),
        (["A=COUNT(box=IMAGE)"], (1, 9), "wrong_type", "box of COUNT takes Boxes or Objects, but IMAGE is Image; made by LOC"),
        (["A=VQA(image=IMAGE,question='{B}?')"], (1, 19), "undefined_placeholder", "{B} is not defined; defined here are: IMAGE"),
        (["A=VQA(image=IMAGE,question='{IMAGE}?')"], (1, 19), "wrong_type", "{IMAGE} is Image; a text takes Text or Number"),
        (["A=VQA(image=IMAGE,question='{IMAGE.size}?')"], (1, 19), "malformed_placeholder", "'{IMAGE.size}?' is no placeholder"),
        (["A=VQA(image=IMAGE,question='{}')"], (1, 19), "malformed_placeholder", "is no placeholder"),
        (["A=EVAL(expr='{B} > 0')"], (1, 8), "undefined_placeholder", "{B} is not defined"),
        (["A=EVAL(expr='{IMAGE} > 0')"], (1, 8), "wrong_type", "{IMAGE} is Image; an expression takes Text or Number"),
        (["A=EVAL(expr=\"'yes' if 1 > 0 and else 'no'\")"], (1, 8), "malformed_expression", "character 20"),
        (["A=EVAL(expr='__import__(1)')"], (1, 8), "malformed_expression", "unknown word '__import__'"),
        (["A=VQA(image=IMAGE,question='x')", "B=EVAL(expr=A)"], (2, 8), "malformed_expression", "write expr='{A}'"),
        (["A=EVAL(expr=1)"], (1, 8), "wrong_type", "expr of EVAL takes Text, but 1 is Number"),
    ],
)  # fmt: skip
def test_a_fault_has_a_code_a_place_and_a_remedy(lines: list[str], place: tuple[int, int], code: str, what: str) -> None:
    variable = lines[-1].split("=")[0]
    problems = check(*lines, END.format(variable))
    first = next(problem for problem in problems if problem.code == code)
    assert (first.line, first.column) == place
    assert what in first.message
    assert first.describe() == f"line {place[0]}, column {place[1]}: {first.message}"
    followers = {"BOX0"} if "CROP_LEFT" in lines[0] else set()
    others = [problem for problem in problems if problem is not first and not any(name in problem.message for name in followers)]
    assert others == [], "one fault, one problem"


def test_every_code_is_tested() -> None:
    marks = test_a_fault_has_a_code_a_place_and_a_remedy.pytestmark  # type: ignore[attr-defined]
    assert {case[2] for case in marks[0].args[1]} | {"no_result"} == set(get_args(ProblemCode))


def test_the_last_line_is_the_result() -> None:
    [problem] = check("A=VQA(image=IMAGE,question='x')", "  B=EVAL(expr='{A}')")
    assert (problem.line, problem.column, problem.code) == (2, 5, "no_result")
    assert "add a last line FINAL_RESULT=RESULT(var=B)" in problem.message
    assert [item.code for item in check_program(Program(()), kind="vqa", find_signature=find_signature)] == ["no_result"]


def test_an_unknown_tool_says_nothing_about_lines_that_use_its_variable() -> None:
    problems = check("A=LOOK(image=IMAGE)", "B=COUNT(box=A)", "C=LOC(image=A,object=A)", END.format("B"))
    assert [(problem.line, problem.code) for problem in problems] == [(1, "unknown_tool")]


def test_the_type_of_an_expression_is_left_to_the_run_and_that_of_a_result_is_known() -> None:
    assert check("A=EVAL(expr='1')", "B=LOC(image=IMAGE,object=A)", END.format("B")) == []
    problems = check("A=RESULT(var=IMAGE)", "B=COUNT(box=A)", END.format("B"))
    assert [(problem.line, problem.code) for problem in problems] == [(2, "wrong_type")]


def test_problems_come_in_order_of_place() -> None:
    problems = check("A=COUNT(bxo=Q,box=R)", "A=SEG(image=S)", "IMAGE=EVAL(expr='(')")
    assert [(problem.line, problem.column) for problem in problems] == sorted((problem.line, problem.column) for problem in problems)
    assert len(problems) == 8


def test_only_the_inputs_of_the_task_are_defined() -> None:
    line = "A=VQA(image=MIDDLE,question='x')"
    assert check(line, END.format("A"), kind="multi_image") == []
    [problem] = check(line, END.format("A"), kind="multi_image", inputs=("LEFT", "RIGHT"))
    assert (problem.code, problem.message) == ("undefined_variable", "MIDDLE is not defined; defined here are: LEFT, RIGHT")


def test_plugins_are_checked_by_their_signatures() -> None:
    plugin = replace(SIGNATURES["COUNT"], name="AREA", kinds=("vqa",))

    def find(name: str) -> ToolSignature | None:
        return plugin if name == "AREA" else find_signature(name)

    program = parse_program("BOX0=LOC(image=IMAGE,object='x')\nA=AREA(box=BOX0)\nB=AREA(box=A)\nFINAL_RESULT=RESULT(var=B)")
    [problem] = check_program(program, kind="vqa", find_signature=find)
    assert (problem.line, problem.code) == (3, "wrong_type")


def test_checking_ends_where_there_are_too_many_problems() -> None:
    many = tuple((f"key{index}", Literal(1)) for index in range(5000))
    program = Program(
        (Statement(variable="A", tool="COUNT", arguments=many, line=1), Statement(variable="A", tool="Q", arguments=(), line=2))
    )
    problems = check_program(program, kind="vqa", find_signature=find_signature)
    assert MAX_PROBLEMS <= len(problems) <= MAX_PROBLEMS + 2 and all(problem.line == 1 for problem in problems)


def test_values_that_no_text_can_hold_do_not_stop_a_check() -> None:
    for value in (float("nan"), 10**400, "\ud800" * 5000):
        program = Program((Statement(variable="A", tool="COUNT", arguments=(("box", Literal(value)),), line=1),))
        problem, _ = check_program(program, kind="vqa", find_signature=find_signature)
        assert problem.code in ("wrong_type", "no_result") and len(problem.message) < 200
