"""Programs about things in a relation to other things, from programs about these things alone."""

from tests.unit.test_composition import LEXICON
from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.relations import Relation, find_relations, relate_program
from visloop.tools.signatures import find_signature

PROGRAM = (
    "BOX0=LOC(image=LEFT,object='red square')\nBOX1=LOC(image=RIGHT,object='red square')\n"
    "ANSWER0=COUNT(box=BOX0)\nANSWER1=COUNT(box=BOX1)\n"
    "ANSWER2=EVAL(expr='{ANSWER0} > 0 or {ANSWER1} > 0')\nFINAL_ANSWER=RESULT(var=ANSWER2)"
)
PLAN = ("Locate it.", "Locate it.", "Count Step1's boxes.", "Count Step2's boxes.", "Check Step3 and Step4.", "Show it.")
ON = Relation(first="There is a red square.", other="blue circle", tool="ON")


def test_the_words_between_two_things_name_the_tool() -> None:
    assert list(find_relations("There is a red square directly on a blue circle.", lexicon=LEXICON)) == [ON]
    (above,) = find_relations("A red square is anywhere above the blue circle", lexicon=LEXICON)
    assert (above.tool, above.first) == ("ABOVE", "A red square")
    assert not list(find_relations("There is a red square and a blue circle.", lexicon=LEXICON))
    assert not list(find_relations("There is a red square.", lexicon=LEXICON))


def test_every_place_is_narrowed_and_the_rest_stays() -> None:
    related = relate_program(PLAN, PROGRAM, relation=ON, find_signature=find_signature)
    assert related is not None
    plan, program = related
    assert program.splitlines()[:4] == [
        "OBJ0=SEG(image=LEFT)",
        "OBJ1=FILTER(image=LEFT,object=OBJ0,query='red square')",
        "OBJ2=FILTER(image=LEFT,object=OBJ0,query='blue circle')",
        "OBJ3=ON(object=OBJ1,other=OBJ2)",
    ]
    assert program.splitlines()[8:] == [
        "ANSWER0=COUNT(box=OBJ3)",
        "ANSWER1=COUNT(box=OBJ7)",
        "ANSWER2=EVAL(expr='{ANSWER0} > 0 or {ANSWER1} > 0')",
        "FINAL_ANSWER=RESULT(var=ANSWER2)",
    ]
    assert plan[8:] == ("Count Step4's boxes.", "Count Step8's boxes.", "Check Step9 and Step10.", "Show it.")
    assert not check_program(parse_program(program), kind="multi_image", find_signature=find_signature, inputs=("LEFT", "MIDDLE", "RIGHT"))


def test_without_a_place_or_the_tool_there_is_no_such_program() -> None:
    assert relate_program(("Show it.",), "FINAL_RESULT=RESULT(var=IMAGE)", relation=ON, find_signature=find_signature) is None
    unknown = Relation(first=ON.first, other=ON.other, tool="UNDER")
    assert relate_program(PLAN, PROGRAM, relation=unknown, find_signature=find_signature) is None
