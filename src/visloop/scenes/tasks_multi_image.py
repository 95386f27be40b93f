"""The families of statements about three pictures, true or false (NLVR's kind of task): scattered objects, walls and towers."""

from typing import Final

from visloop.scenes.statement_draws import (
    INPUTS,
    draw_any_picture,
    draw_block_on,
    draw_every_picture,
    draw_more_in,
    draw_same_number,
    draw_total_count,
    draw_touching,
    draw_tower_end,
)
from visloop.scenes.workshop_families import TaskFamily

_LAST = "Show the result."


def _each(*lines: str) -> tuple[str, ...]:
    """Lines for each of the three pictures. ``<I>`` is the input, ``<k>`` its place from 0, ``<3k+1>`` and the like numbered variables."""
    made = []
    for place, name in enumerate(INPUTS):
        for line in lines:
            for multiple, offset in ((4, 0), (4, 1), (4, 2), (4, 3), (3, 0), (3, 1), (3, 2), (1, 0)):
                line = line.replace(f"<{multiple}k+{offset}>", str(multiple * place + offset))
            made.append(line.replace("<I>", name).replace("<i>", name.lower()))
    return tuple(made)


_LOCATE_EACH = tuple(f"BOX{place}=LOC(image={name},object='<a>')" for place, name in enumerate(INPUTS))
_COUNT_EACH = tuple(f"ANSWER{place}=COUNT(box=BOX{place})" for place in range(3))
_PLAN_EACH = (
    *(f"Locate every <a> in the {name.lower()} picture." for name in INPUTS),
    *(f"Count the boxes of Step{step}." for step in (1, 2, 3)),
)
_ONE_EACH = " + ".join(f"(1 if {{ANSWER{place}}} > 0 else 0)" for place in range(3))
_ANY = " or ".join(f"{{ANSWER{place}}} > 0" for place in range(3))
_ALL = " and ".join(f"{{ANSWER{place}}} > 0" for place in range(3))
_RESULT = "FINAL_ANSWER=RESULT(var=ANSWER3)"


def _decide(expression: str) -> tuple[str, str]:
    return f"ANSWER3=EVAL(expr='{expression}')", _RESULT


def _plan_objects(*lines: str) -> tuple[str, ...]:
    """Plan lines for each picture; ``<+n>`` is the number of the n-th step of that picture."""
    made = []
    for place, name in enumerate(INPUTS):
        for line in lines:
            for index in range(1, len(lines) + 1):
                line = line.replace(f"<+{index}>", str(place * len(lines) + index))
            made.append(line.replace("<i>", name.lower()))
    return tuple(made)


MULTI_IMAGE_FAMILIES: Final[tuple[TaskFamily, ...]] = (
    TaskFamily(
        name="total_count",
        kind="multi_image",
        base=("There are exactly <number> <as> in total.", "In total there are exactly <number> <as>."),
        new=("Together the pictures hold <number> <as>, no more and no less.", "All in all one finds exactly <number> <as>."),
        plan=(*_PLAN_EACH, "Check that the counts of Step4, Step5 and Step6 add up to <digit>.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide("{ANSWER0} + {ANSWER1} + {ANSWER2} == <digit>")),
        draw=draw_total_count,
    ),
    TaskFamily(
        name="any_picture",
        kind="multi_image",
        base=("At least one picture shows <an_a>.", "There is at least one picture with <an_a>."),
        new=("<an_a_start> can be seen in one or more of the pictures.", "Some picture has <an_a> in it."),
        plan=(*_PLAN_EACH, "Check that one of the counts of Step4, Step5 and Step6 is above zero.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide(_ANY)),
        draw=draw_any_picture,
    ),
    TaskFamily(
        name="every_picture",
        kind="multi_image",
        base=("Every picture shows <an_a>.", "All three pictures contain <an_a>."),
        new=("No picture is without <an_a>.", "Wherever you look, each picture has <an_a>."),
        plan=(*_PLAN_EACH, "Check that all counts of Step4, Step5 and Step6 are above zero.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide(_ALL)),
        draw=draw_every_picture,
    ),
    TaskFamily(
        name="more_in",
        kind="multi_image",
        base=("The <p> picture shows more <as> than the <q> picture.", "There are more <as> in the <p> picture than in the <q> picture."),
        new=("Counting <as>, the <p> picture beats the <q> one.", "The <q> picture has fewer <as> than the <p> one."),
        plan=(
            "Locate every <a> in the <p> picture.",
            "Locate every <a> in the <q> picture.",
            "Count the boxes of Step1.",
            "Count the boxes of Step2.",
            "Check that Step3's count is above Step4's.",
            _LAST,
        ),
        program=(
            "BOX0=LOC(image=<P>,object='<a>')",
            "BOX1=LOC(image=<Q>,object='<a>')",
            "ANSWER0=COUNT(box=BOX0)",
            "ANSWER1=COUNT(box=BOX1)",
            "ANSWER2=EVAL(expr='{ANSWER0} > {ANSWER1}')",
            "FINAL_ANSWER=RESULT(var=ANSWER2)",
        ),
        draw=draw_more_in,
    ),
    TaskFamily(
        name="touching",
        kind="multi_image",
        base=(
            "Exactly <number> <pictures> <contain> <an_a> touching the <target>.",
            "Exactly <number> <pictures> <have> <an_a> that touches the <target>.",
        ),
        new=(
            "<an_a_start> lies against the <target> in exactly <number> <pictures>.",
            "The <target> is touched by <an_a> in exactly <number> <pictures>.",
        ),
        plan=(
            *_plan_objects(
                "Segment the objects of the <i> picture.",
                "Keep each <a> of Step<+1>.",
                "Keep those of Step<+2> that touch the <target>.",
                "Count the objects of Step<+3>.",
            ),
            "Check that exactly <digit> of the counts of Step4, Step8 and Step12 <are> above zero.",
            _LAST,
        ),
        program=(
            *_each(
                "OBJ<3k+0>=SEG(image=<I>)",
                "OBJ<3k+1>=FILTER(image=<I>,object=OBJ<3k+0>,query='<a>')",
                "OBJ<3k+2>=TOUCHING(image=<I>,object=OBJ<3k+1>,target='<target>')",
                "ANSWER<1k+0>=COUNT(box=OBJ<3k+2>)",
            ),
            *_decide(f"{_ONE_EACH} == <digit>"),
        ),
        draw=draw_touching,
        focuses=("color",),
    ),
    TaskFamily(
        name="tower_end",
        kind="multi_image",
        base=("There is a tower with <an_a> at the <end>.", "At least one tower has <an_a> at the <end>."),
        new=("One of the towers carries a block that is <color> at its <end>.", "Some stack's <end> is formed by <an_a>."),
        plan=(
            *_plan_objects(
                "Segment the objects of the <i> picture.",
                "Keep the <end> object of every tower of Step<+1>.",
                "Keep each <a> of Step<+2>.",
                "Count the objects of Step<+3>.",
            ),
            "Check that one of the counts of Step4, Step8 and Step12 is above zero.",
            _LAST,
        ),
        program=(
            *_each(
                "OBJ<3k+0>=SEG(image=<I>)",
                "OBJ<3k+1>=<END>(object=OBJ<3k+0>)",
                "OBJ<3k+2>=FILTER(image=<I>,object=OBJ<3k+1>,query='<a>')",
                "ANSWER<1k+0>=COUNT(box=OBJ<3k+2>)",
            ),
            *_decide(_ANY),
        ),
        draw=draw_tower_end,
        focuses=("color",),
    ),
    TaskFamily(
        name="same_number",
        kind="multi_image",
        held_out=True,
        base=("All pictures show the same number of <as>.", "The number of <as> is the same in all three pictures."),
        new=("The pictures do not differ in how many <as> they hold.", "Each picture holds equally many <as>."),
        plan=(*_PLAN_EACH, "Check that the counts of Step4, Step5 and Step6 are equal.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide("{ANSWER0} == {ANSWER1} and {ANSWER1} == {ANSWER2}")),
        draw=draw_same_number,
    ),
    TaskFamily(
        name="block_on",
        kind="multi_image",
        held_out=True,
        base=("There is <an_a> directly on <an_b>.", "In some picture <an_a> is stacked directly on <an_b>."),
        new=("<an_b_start> carries <an_a> right on its back somewhere.", "Right beneath some <a> there is <an_b>."),
        plan=(
            *_plan_objects(
                "Segment the objects of the <i> picture.",
                "Keep each <a> of Step<+1>.",
                "Keep each <b> of Step<+1>.",
                "Keep those of Step<+2> that lie directly on one of Step<+3>.",
                "Count the objects of Step<+4>.",
            ),
            "Check that one of the counts of Step5, Step10 and Step15 is above zero.",
            _LAST,
        ),
        program=(
            *_each(
                "OBJ<4k+0>=SEG(image=<I>)",
                "OBJ<4k+1>=FILTER(image=<I>,object=OBJ<4k+0>,query='<a>')",
                "OBJ<4k+2>=FILTER(image=<I>,object=OBJ<4k+0>,query='<b>')",
                "OBJ<4k+3>=ON(object=OBJ<4k+1>,other=OBJ<4k+2>)",
                "ANSWER<1k+0>=COUNT(box=OBJ<4k+3>)",
            ),
            *_decide(_ANY),
        ),
        draw=draw_block_on,
        focuses=("color",),
    ),
)
