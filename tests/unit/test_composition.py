"""Two programs as one: where an instruction is cut, how results are joined, and that every line keeps its meaning."""

import pytest

from visloop.assistant.composition import Split, asks_yes_no, compose_programs, split_instruction
from visloop.assistant.lexicon import Lexicon
from visloop.records.assistant import TaskKind
from visloop.tools.signatures import find_signature

LEXICON = Lexicon(
    concepts=frozenset({"red", "blue", "circle", "square"}),
    modifiers=frozenset({"red", "blue"}),
    template=frozenset({"blur", "background", "hide", "tag", "smile"}),
)


def edit(query: str, tool: str, more: str = "") -> tuple[tuple[str, ...], str]:
    return ("Segment.", f"Select the {query} from Step1's objects.", "Change Step2's object.", "Show it."), (
        f"OBJ0=SEG(image=IMAGE)\nOBJ1=SELECT(image=IMAGE,object=OBJ0,query='{query}')\n"
        f"IMAGE0={tool}(image=IMAGE,object=OBJ1{more})\nFINAL_RESULT=RESULT(var=IMAGE0)"
    )


def count(words: str) -> tuple[tuple[str, ...], str]:
    program = f"BOX0=LOC(image=IMAGE,object='{words}')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
    return ("Locate it.", "Count Step1's boxes.", "Show it."), program


def compose(
    first: tuple[tuple[str, ...], str], second: tuple[tuple[str, ...], str], kind: TaskKind = "vqa", *, yes_no: bool = False
) -> list[tuple[tuple[str, ...], str]]:
    return compose_programs(first, second, kind=kind, find_signature=find_signature, yes_no=yes_no)


def test_pictures_are_chained_and_objects_found_where_they_were() -> None:
    (plan, program), (_, changed) = compose(edit("red circle", "BGBLUR"), edit("square", "EMOJI", ",emoji='smile'"), "editing")
    assert program.splitlines() == [
        "OBJ0=SEG(image=IMAGE)",
        "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='red circle')",
        "IMAGE0=BGBLUR(image=IMAGE,object=OBJ1)",
        "OBJ2=SELECT(image=IMAGE,object=OBJ0,query='square')",
        "IMAGE1=EMOJI(image=IMAGE0,object=OBJ2,emoji='smile')",
        "FINAL_RESULT=RESULT(var=IMAGE1)",
    ]
    assert plan[3:] == ("Select the square from Step1's objects.", "Change Step4's object in Step3's picture.", "Show it.")
    assert changed.splitlines()[3:5] == ["OBJ2=SEG(image=IMAGE0)", "OBJ3=SELECT(image=IMAGE0,object=OBJ2,query='square')"]


@pytest.mark.parametrize(
    ("yes_no", "expression"),
    [(False, "'{ANSWER0} + {ANSWER1}'"), (True, "\"'yes' if {ANSWER0} > 0 and {ANSWER1} > 0 else 'no'\"")],
)
def test_numbers_are_added_or_both_asked_for(yes_no: bool, expression: str) -> None:
    [(plan, program)] = compose(count("circle"), count("square"), yes_no=yes_no)
    assert program.splitlines()[2:] == [
        "BOX1=LOC(image=IMAGE,object='square')",
        "ANSWER1=COUNT(box=BOX1)",
        f"ANSWER2=EVAL(expr={expression})",
        "FINAL_RESULT=RESULT(var=ANSWER2)",
    ]
    assert plan[3] == "Count Step3's boxes." and "Step2 and Step4" in plan[4]


def test_answers_are_joined_by_their_conditions_and_a_weak_one_in_brackets() -> None:
    def ask(words: str, condition: str) -> tuple[tuple[str, ...], str]:
        lines = count(words)[1].splitlines()
        return (), "\n".join([*lines[:2], f"ANSWER1=EVAL(expr=\"'yes' if {condition} else 'no'\")", "FINAL_RESULT=RESULT(var=ANSWER1)"])

    [(plan, program)] = compose(ask("circle", "{ANSWER0} > 0"), ask("square", "{ANSWER0} == 1 or {ANSWER0} == 3"), yes_no=True)
    assert "'yes' if {ANSWER0} > 0 and ({ANSWER1} == 1 or {ANSWER1} == 3) else 'no'" in program
    assert plan == (), "no plan is made up where there was none"


def test_results_of_different_types_are_not_joined() -> None:
    look = ("", "", ""), "ANSWER0=VQA(image=IMAGE,question='What is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
    assert compose(count("circle"), look) == compose(look, look) == []


def test_instructions_are_cut_at_joints_and_said_of_each_thing() -> None:
    cut = split_instruction("Blur the background of the red circle, then hide the square with smile.", lexicon=LEXICON)
    assert Split("Blur the background of the red circle", "hide the square with smile.", "sequence") in cut
    assert split_instruction("Tag the red circle and the pink square.", lexicon=LEXICON)[0] == Split(
        "Tag the red circle.", "Tag the pink square.", "pair"
    )
    assert split_instruction("Tag the red blue circle.", lexicon=LEXICON) == ()


def test_yes_no_questions_begin_with_an_auxiliary() -> None:
    assert asks_yes_no("Is there both a circle and a square?")
    assert not asks_yes_no("How many circles are there?") and not asks_yes_no("")
