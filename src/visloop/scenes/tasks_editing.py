"""The families of instructions to edit one picture, in CLOVA's programs over SEG, SELECT, REPLACE, COLORPOP, BGBLUR and EMOJI."""

from typing import Final

from visloop.scenes.edits import EMOJIS, EditStep
from visloop.scenes.filters import Filter
from visloop.scenes.workshop import BASE_WORDS, find_attribute
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
from visloop.scenes.world import Objects

_LAST = "Visualize results."


def _place(objects: Objects, phrase: Filter) -> int:
    """The place of the only object that fits."""
    (found,) = (index for index, entry in enumerate(objects) if phrase.matches(entry))
    return found


def _draw_new_object(draw: Draw, focus: str | None) -> Filter:
    """What is put into the picture: always with colour and shape, so that there is one right result."""
    values = {"color": draw.words.choice(BASE_WORDS["color"]), "shape": draw.words.choice(BASE_WORDS["shape"])}
    if focus is not None:
        values[str(find_attribute(focus))] = focus
    elif draw.words.random() < 0.2:
        values["pattern"] = draw.words.choice(BASE_WORDS["pattern"][1:])
    return Filter(**values)


def _draw_replace(draw: Draw) -> Case | None:
    focuses = share_focus(draw, 2)
    old, new = draw_phrase(draw, focus=focuses[0]), _draw_new_object(draw, focuses[1])
    if overlaps(old, new):
        return None
    scene = draw_picture(draw, [old], avoid=[old, new])
    steps = (EditStep(operation="replace", objects=(_place(scene.boxes[0], old),), words=new),)
    return Case(slots=name_slots(a=old, b=new), scene=scene, edits=steps, concepts=list_words(old, new))


def _draw_one(draw: Draw, operation: str) -> Case | None:
    phrase = draw_phrase(draw, focus=draw.focus)
    scene = draw_picture(draw, [phrase])
    places = (_place(scene.boxes[0], phrase),)
    if operation == "hide":
        emoji = draw.words.choice(EMOJIS)
        step = EditStep(operation="hide", objects=places, emoji=emoji)
    else:
        emoji = ""
        step = EditStep(operation="color_pop" if operation == "color_pop" else "blur", objects=places)
    return Case(slots=name_slots(a=phrase) | {"emoji": emoji}, scene=scene, edits=(step,), concepts=list_words(phrase))


def _draw_color_pop(draw: Draw) -> Case | None:
    return _draw_one(draw, "color_pop")


def _draw_blur(draw: Draw) -> Case | None:
    return _draw_one(draw, "blur")


def _draw_hide(draw: Draw) -> Case | None:
    return _draw_one(draw, "hide")


def _draw_two(draw: Draw) -> tuple[Filter, Filter] | None:
    first, second = (draw_phrase(draw, focus=focus) for focus in share_focus(draw, 2))
    return None if overlaps(first, second) else (first, second)


def _draw_pop_two(draw: Draw) -> Case | None:
    pair = _draw_two(draw)
    if pair is None:
        return None
    scene = draw_picture(draw, pair)
    places = tuple(_place(scene.boxes[0], phrase) for phrase in pair)
    return Case(
        slots=name_slots(a=pair[0], b=pair[1]),
        scene=scene,
        edits=(EditStep(operation="color_pop", objects=places),),
        concepts=list_words(*pair),
    )


def _draw_blur_and_hide(draw: Draw) -> Case | None:
    pair = _draw_two(draw)
    if pair is None:
        return None
    scene = draw_picture(draw, pair)
    first, second = (_place(scene.boxes[0], phrase) for phrase in pair)
    emoji = draw.words.choice(EMOJIS)
    steps = (EditStep(operation="blur", objects=(first,)), EditStep(operation="hide", objects=(second,), emoji=emoji))
    return Case(slots=name_slots(a=pair[0], b=pair[1]) | {"emoji": emoji}, scene=scene, edits=steps, concepts=list_words(*pair))


_SEGMENT = "OBJ0=SEG(image=IMAGE)"
_SELECT_A = "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='<a>',category=None)"
_PLAN_SELECT = ("Segment the objects of the picture.", "Select the <a> from Step1's objects.")
_RESULT = "FINAL_RESULT=RESULT(var=IMAGE0)"

EDITING_FAMILIES: Final[tuple[TaskFamily, ...]] = (
    TaskFamily(
        name="replace",
        kind="editing",
        base=("Replace the <a> with <an_b>.", "Exchange the <a> for <an_b>."),
        new=("Swap out the <a> and put <an_b> in its place.", "Where the <a> is now, I want <an_b>."),
        plan=(*_PLAN_SELECT, "Replace Step2's object with <an_b>.", _LAST),
        program=(_SEGMENT, _SELECT_A, "IMAGE0=REPLACE(image=IMAGE,object=OBJ1,prompt='<b>')", _RESULT),
        draw=_draw_replace,
    ),
    TaskFamily(
        name="color_pop",
        kind="editing",
        base=("Create a color pop of the <a>.", "Make a color pop of the <a>."),
        new=("Only the <a> shall keep its color.", "Turn everything except the <a> gray."),
        plan=(*_PLAN_SELECT, "Make a color pop of Step2's object.", _LAST),
        program=(_SEGMENT, _SELECT_A, "IMAGE0=COLORPOP(image=IMAGE,object=OBJ1)", _RESULT),
        draw=_draw_color_pop,
    ),
    TaskFamily(
        name="blur",
        kind="editing",
        base=("Blur the background of the <a>.", "Blur everything behind the <a>."),
        new=("Put only the <a> in focus.", "Make the surroundings of the <a> look out of focus."),
        plan=(*_PLAN_SELECT, "Blur the background of Step2's object.", _LAST),
        program=(_SEGMENT, _SELECT_A, "IMAGE0=BGBLUR(image=IMAGE,object=OBJ1)", _RESULT),
        draw=_draw_blur,
    ),
    TaskFamily(
        name="hide",
        kind="editing",
        base=("Hide the <a> with <emoji>.", "Cover the <a> with <emoji>."),
        new=("Nobody should see the <a>, use <emoji>.", "Stick <emoji> onto the <a>."),
        plan=(*_PLAN_SELECT, "Put <emoji> on Step2's object.", _LAST),
        program=(_SEGMENT, _SELECT_A, "IMAGE0=EMOJI(image=IMAGE,object=OBJ1,emoji='<emoji>')", _RESULT),
        draw=_draw_hide,
    ),
    TaskFamily(
        name="pop_two",
        kind="editing",
        base=("Create a color pop of the <a> and the <b>.", "Make a color pop of both the <a> and the <b>."),
        new=("Gray out all but the <a> and the <b>.", "Let the <a> and the <b> stay colorful, nothing else."),
        plan=(
            "Segment the objects of the picture.",
            "Select the <a> and the <b> from Step1's objects.",
            "Make a color pop of Step2's objects.",
            _LAST,
        ),
        program=(
            _SEGMENT,
            "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='<a>,<b>',category=None)",
            "IMAGE0=COLORPOP(image=IMAGE,object=OBJ1)",
            _RESULT,
        ),
        draw=_draw_pop_two,
    ),
    TaskFamily(
        name="blur_and_hide",
        kind="editing",
        held_out=True,
        base=(
            "Blur the background of the <a> and then hide the <b> with <emoji>.",
            "Blur all but the <a>, then cover the <b> with <emoji>.",
        ),
        new=(
            "First put just the <a> in focus, next stick <emoji> onto the <b>.",
            "Make all around the <a> unsharp and conceal the <b> by <emoji>.",
        ),
        plan=(
            *_PLAN_SELECT,
            "Blur the background of Step2's object.",
            "Select the <b> from Step1's objects.",
            "Put <emoji> on Step4's object in Step3's picture.",
            _LAST,
        ),
        program=(
            _SEGMENT,
            _SELECT_A,
            "IMAGE0=BGBLUR(image=IMAGE,object=OBJ1)",
            "OBJ2=SELECT(image=IMAGE,object=OBJ0,query='<b>',category=None)",
            "IMAGE1=EMOJI(image=IMAGE0,object=OBJ2,emoji='<emoji>')",
            "FINAL_RESULT=RESULT(var=IMAGE1)",
        ),
        draw=_draw_blur_and_hide,
    ),
)
