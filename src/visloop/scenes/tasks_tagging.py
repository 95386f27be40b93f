"""The families of tagging instructions, which need knowledge that no picture shows (LIST): sets of shapes and flags of colours.

The knowledge is ``facts.json``: a question for LIST, and the names that answer it. Every name of a set occurs in the picture exactly once
among the objects that are asked for, so that the best object of every name is the right one.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Final

from visloop.errors import DataError
from visloop.records.assistant import LabelledBox
from visloop.scenes.filters import Filter
from visloop.scenes.regions import locate_objects
from visloop.scenes.workshop import BASE_WORDS, NOUN, NOVEL_CONCEPTS, WORKSHOP
from visloop.scenes.workshop_families import (
    Case,
    Draw,
    TaskFamily,
    draw_phrase,
    draw_picture,
    list_words,
    name_slots,
    overlaps,
    share_focus,
)
from visloop.scenes.world import Attribute, Scene

FACTS = Path(__file__).parent / "facts.json"
"""What LIST knows of the drawn world: a question and the names that answer it."""
_LAST = "Visualize results."
_FACT = re.compile(r"(shapes|colors) of the (\w+) (?:set|flag)")


@cache
def load_facts() -> dict[str, tuple[str, ...]]:
    """The shipped knowledge of LIST: a question and the names that answer it.

    Raises:
        DataError: the file is damaged.
    """
    text = FACTS.read_text(encoding="utf-8")
    try:
        return {question: tuple(map(str, names)) for question, names in json.loads(text).items()}
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise DataError(f"scenes/facts.json: expected an object of questions and lists of names: {error}") from error


def _list_sets(attribute: Attribute, focus: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """Names and members of the sets of one attribute: those with the novel word, or those of base words only."""
    found = []
    for question, members in load_facts().items():
        match = _FACT.fullmatch(question)
        if match is None or match.group(1) != f"{attribute}s":
            continue
        if focus in members if focus is not None else not set(members) & set(NOVEL_CONCEPTS):
            found.append((match.group(2), members))
    return found


def _tag(scene: Scene, labels: dict[Filter, str]) -> tuple[LabelledBox, ...]:
    """The boxes of all objects that fit one of the filters, with its label."""
    (located,) = locate_objects(scene, spec=WORKSHOP)
    return tuple(
        LabelledBox(box=found.box, label=label) for found in located for wanted, label in labels.items() if wanted.matches(found.entry)
    )


def _draw_set(draw: Draw, attribute: Attribute) -> Case | None:
    name, members = draw.words.choice(_list_sets(attribute, draw.focus))
    wanted = [Filter(**{attribute: member}) for member in members]
    scene = draw_picture(draw, wanted)
    boxes = _tag(scene, {phrase: str(phrase.value(attribute)) for phrase in wanted})
    return Case(slots={"set": name}, scene=scene, boxes=boxes, concepts=members)


def _draw_shape_set(draw: Draw) -> Case | None:
    return _draw_set(draw, "shape")


def _draw_color_set(draw: Draw) -> Case | None:
    return _draw_set(draw, "color")


def _draw_one(draw: Draw) -> Case | None:
    phrase = draw_phrase(draw, focus=draw.focus)
    if phrase.shape is None:
        return None
    slots = name_slots(a=phrase)
    scene = draw_picture(draw, [phrase])
    return Case(slots=slots, scene=scene, boxes=_tag(scene, {phrase: slots["a"]}), concepts=list_words(phrase))


def _draw_part_of_set(draw: Draw) -> Case | None:
    """The members of a set that have one colour; members of other colours are there as well."""
    name, members = draw.words.choice(_list_sets("shape", draw.focus))
    color = draw.words.choice(BASE_WORDS["color"])
    wanted = [Filter(shape=member, color=color) for member in members]
    others = [
        Filter(shape=draw.rng.choice(members), color=draw.rng.choice([word for word in BASE_WORDS["color"] if word != color]))
        for _ in range(draw.rng.randint(1, 2))
    ]
    scene = draw_picture(draw, [*wanted, *others], avoid=[Filter(color=color)])
    boxes = _tag(scene, {phrase: str(phrase.shape) for phrase in wanted})
    return Case(slots={"set": name, "color": color, "a": f"{color} {NOUN}"}, scene=scene, boxes=boxes, concepts=(color, *members))


def _draw_pair(draw: Draw) -> Case | None:
    first, second = (draw_phrase(draw, focus=focus) for focus in share_focus(draw, 2))
    if overlaps(first, second) or first.shape is None or second.shape is None:
        return None
    slots = name_slots(a=first, b=second)
    scene = draw_picture(draw, [first, second])
    boxes = _tag(scene, {first: slots["a"], second: slots["b"]})
    return Case(slots=slots, scene=scene, boxes=boxes, concepts=list_words(first, second))


_SEGMENT, _PLAN_SEGMENT = "OBJ0=SEG(image=IMAGE)", "Segment the objects of the picture."
_TAGGED = ("IMAGE0=TAG(image=IMAGE,object=OBJ1)", "FINAL_RESULT=RESULT(var=IMAGE0)")
_CLASSIFY = "OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories=LIST0)"

TAGGING_FAMILIES: Final[tuple[TaskFamily, ...]] = (
    TaskFamily(
        name="shape_set",
        kind="tagging",
        base=("Tag the shapes of the <set> set.", "Tag all shapes of the <set> set."),
        new=("Which objects belong to the <set> set? Mark them.", "Put a label on whatever is in the <set> set."),
        plan=(
            _PLAN_SEGMENT,
            "List the shapes of the <set> set.",
            "Classify Step1's objects by Step2's names.",
            "Tag Step3's objects.",
            _LAST,
        ),
        program=(_SEGMENT, "LIST0=LIST(query='shapes of the <set> set',max=5)", _CLASSIFY, *_TAGGED),
        draw=_draw_shape_set,
        focuses=("shape",),
    ),
    TaskFamily(
        name="color_set",
        kind="tagging",
        base=("Tag the colors of the <set> flag.", "Tag all colors of the <set> flag."),
        new=("Mark what is colored like a part of the <set> flag.", "Show me, with labels, the <set> flag's colors."),
        plan=(
            _PLAN_SEGMENT,
            "List the colors of the <set> flag.",
            "Classify Step1's objects by Step2's names.",
            "Tag Step3's objects.",
            _LAST,
        ),
        program=(_SEGMENT, "LIST0=LIST(query='colors of the <set> flag',max=5)", _CLASSIFY, *_TAGGED),
        draw=_draw_color_set,
        focuses=("color",),
    ),
    TaskFamily(
        name="tag_one",
        kind="tagging",
        base=("Tag the <a>.", "Put a tag on the <a>."),
        new=("Mark where the <a> is and write its name.", "Point out the <a> by a labelled box."),
        plan=("Locate the <a>.", "Classify Step1's boxes as <a>.", "Tag Step2's objects.", _LAST),
        program=(
            "BOX0=LOC(image=IMAGE,object='<a>')",
            "OBJ0=CLASSIFY(image=IMAGE,object=BOX0,categories='<a>')",
            "IMAGE0=TAG(image=IMAGE,object=OBJ0)",
            "FINAL_RESULT=RESULT(var=IMAGE0)",
        ),
        draw=_draw_one,
    ),
    TaskFamily(
        name="part_of_set",
        kind="tagging",
        base=("Tag the <color> shapes of the <set> set.", "Tag all <color> shapes of the <set> set."),
        new=("Of the <set> set, mark just what is <color>.", "Label every <color> member of the <set> set."),
        plan=(
            "Locate every <a>.",
            "List the shapes of the <set> set.",
            "Classify Step1's boxes by Step2's names.",
            "Tag Step3's objects.",
            _LAST,
        ),
        program=(
            "BOX0=LOC(image=IMAGE,object='<a>')",
            "LIST0=LIST(query='shapes of the <set> set',max=5)",
            "OBJ1=CLASSIFY(image=IMAGE,object=BOX0,categories=LIST0)",
            *_TAGGED,
        ),
        draw=_draw_part_of_set,
        focuses=("shape",),
    ),
    TaskFamily(
        name="tag_pair",
        kind="tagging",
        held_out=True,
        base=("Tag the <a> and the <b>.", "Put tags on the <a> and the <b>."),
        new=("Mark two things, the <a> and the <b>, by name.", "The <a> and the <b> each need a labelled box."),
        plan=(_PLAN_SEGMENT, "Classify Step1's objects as <a> or <b>.", "Tag Step2's objects.", _LAST),
        program=(_SEGMENT, "OBJ1=CLASSIFY(image=IMAGE,object=OBJ0,categories='<a>,<b>')", *_TAGGED),
        draw=_draw_pair,
    ),
)
