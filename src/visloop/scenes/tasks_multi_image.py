"""The families of statements about three pictures, true or false (NLVR's kind of task): scattered objects, walls and towers."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Final

from visloop.scenes.box_layouts import WALLS, Wall, scatter_objects, stack_towers
from visloop.scenes.filters import Filter
from visloop.scenes.workshop_families import (
    Case,
    Draw,
    TaskFamily,
    draw_others,
    draw_phrase,
    fill_object,
    finish_scene,
    list_words,
    name_slots,
)
from visloop.scenes.world import Objects

INPUTS: Final = ("LEFT", "MIDDLE", "RIGHT")
_LAST = "Show the result."
_BLOCK_COLORS: Final = ("yellow", "black", "blue")
_BLOCK_SHAPES: Final = ("square", "triangle", "circle")
_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six")
_MOST: Final = 6


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _show(draw: Draw, phrase: Filter, counts: Sequence[int]) -> tuple[Objects, ...] | None:
    """Three boxes that hold so many objects of the phrase each, and others."""
    boxes = []
    for count in counts:
        planted = [fill_object(draw, phrase) for _ in range(count)]
        others = draw_others(draw, avoid=[phrase], cells=[(1, 1)] * draw.rng.randint(1, max(1, min(3, _MOST - count))))
        box = scatter_objects(draw.rng, planted + others)
        if box is None:
            return None
        boxes.append(box)
    return tuple(boxes)


def _finish(draw: Draw, boxes: tuple[Objects, ...] | None, slots: dict[str, str], concepts: tuple[str, ...]) -> Case | None:
    if boxes is None:
        return None
    return Case(slots=slots, scene=finish_scene(draw, boxes), answer=_truth(draw.positive), concepts=concepts)


def _draw_counts(draw: Draw, rule: Callable[[Sequence[int]], bool], *, most: int = 2) -> list[int]:
    """Counts for three boxes for which the rule gives the wanted answer; never a statement that is true only because nothing is there."""
    while True:
        counts = [draw.rng.randint(0, most) for _ in INPUTS]
        if rule(counts) == draw.positive and (any(counts) or not rule([0, 0, 0])):
            return counts


def _draw_scattered(draw: Draw, rule: Callable[[Sequence[int]], bool], slots: dict[str, str] | None = None) -> Case | None:
    phrase = draw_phrase(draw, focus=draw.focus)
    counts = _draw_counts(draw, rule)
    return _finish(draw, _show(draw, phrase, counts), name_slots(a=phrase) | (slots or {}), list_words(phrase))


def _draw_total(draw: Draw) -> Case | None:
    number = draw.words.randint(2, 4)
    # A false statement is off by one.
    total = number if draw.positive else draw.rng.choice((number - 1, number + 1))
    phrase = draw_phrase(draw, focus=draw.focus)
    counts = draw.rng.choice([counts for counts in product(range(4), repeat=3) if sum(counts) == total])
    return _finish(draw, _show(draw, phrase, counts), name_slots(a=phrase) | _number(number), list_words(phrase))


def _number(number: int) -> dict[str, str]:
    return {"number": _NUMBERS[number], "digit": str(number)}


def _draw_any(draw: Draw) -> Case | None:
    return _draw_scattered(draw, lambda counts: any(counts))


def _draw_every(draw: Draw) -> Case | None:
    return _draw_scattered(draw, lambda counts: all(counts))


def _draw_same_number(draw: Draw) -> Case | None:
    return _draw_scattered(draw, lambda counts: len(set(counts)) == 1)


def _draw_more(draw: Draw) -> Case | None:
    first, second = draw.words.sample(range(3), 2)
    slots = {
        "p": INPUTS[first].lower(),
        "P": INPUTS[first],
        "q": INPUTS[second].lower(),
        "Q": INPUTS[second],
    }
    return _draw_scattered(draw, lambda counts: counts[first] > counts[second], slots)


def _block_color(draw: Draw) -> str:
    return draw.focus or draw.words.choice(_BLOCK_COLORS)


def _palette(draw: Draw) -> list[str]:
    """The colours of a statement's blocks: NLVR's three, and the novel one."""
    return [*_BLOCK_COLORS, *([draw.focus] if draw.focus else [])]


def _draw_touching(draw: Draw) -> Case | None:
    phrase = Filter(color=_block_color(draw), shape=draw.words.choice(_BLOCK_SHAPES))
    target = draw.words.choice(("wall", "wall", "top", "bottom"))
    number = draw.words.randint(1, 2)
    walls: tuple[Wall, ...] = WALLS if target == "wall" else (target,)  # type: ignore[assignment]
    hits = _draw_counts(draw, lambda counts: sum(count > 0 for count in counts) == number, most=1)
    boxes = []
    for hit in hits:
        entries: list[Filter] = []
        places: list[Wall | None] = []
        others: list[Wall | None] = [None, *(wall for wall in WALLS if wall not in walls)]
        if hit:
            entries.append(phrase)
            places.append(draw.rng.choice(walls))
        for _ in range(draw.rng.randint(0 if hit else 1, 2)):
            # The right object, but away from the wall: the hardest way to be wrong.
            entries.append(phrase)
            places.append(draw.rng.choice(others))
        for _ in range(draw.rng.randint(1, 2)):
            entries.append(_draw_other_block(draw, phrase))
            places.append(draw.rng.choice([None, *WALLS]))
        box = scatter_objects(
            draw.rng, [fill_object(draw, Filter(pattern="plain", color=entry.color, shape=entry.shape)) for entry in entries], walls=places
        )
        if box is None:
            return None
        boxes.append(box)
    one = number == 1
    slots = name_slots(a=phrase) | _number(number) | {"target": target, "pictures": "picture" if one else "pictures"}
    slots |= {"contain": "contains" if one else "contain", "have": "has" if one else "have", "are": "is" if one else "are"}
    return _finish(draw, tuple(boxes), slots, list_words(phrase))


def _draw_other_block(draw: Draw, phrase: Filter) -> Filter:
    while True:
        other = Filter(color=draw.rng.choice(_palette(draw)), shape=draw.rng.choice(_BLOCK_SHAPES))
        if other != phrase:
            return other


def _draw_towers(draw: Draw, accept: Callable[[Sequence[str]], bool]) -> tuple[Objects, ...]:
    """Three boxes of one to three towers of two to four blocks. ``accept`` says whether a tower makes the statement true; where it is
    to be true one or two boxes have such a tower."""
    good = set(draw.rng.sample(range(3), draw.rng.randint(1, 2))) if draw.positive else set()
    boxes = []
    for index in range(3):
        while True:
            towers = [[draw.rng.choice(_palette(draw)) for _ in range(draw.rng.randint(2, 4))] for _ in range(draw.rng.randint(1, 3))]
            if any(accept(tower) for tower in towers) == (index in good):
                break
        places = sorted(draw.rng.sample((20, 50, 80), len(towers)))
        boxes.append(stack_towers(towers, places=places))
    return tuple(boxes)


def _draw_tower_end(draw: Draw) -> Case | None:
    color = _block_color(draw)
    end = draw.words.choice(("top", "bottom"))
    boxes = _draw_towers(draw, lambda tower: tower[-1 if end == "top" else 0] == color)
    phrase = Filter(color=color, shape="square")
    return _finish(draw, boxes, name_slots(a=phrase) | {"end": end, "END": end.upper(), "color": color}, list_words(phrase))


def _draw_on(draw: Draw) -> Case | None:
    upper = _block_color(draw)
    lower = draw.words.choice([color for color in _BLOCK_COLORS if color != upper])
    if draw.focus is not None and draw.words.random() < 0.5:
        upper, lower = lower, upper
    boxes = _draw_towers(draw, lambda tower: (lower, upper) in list(pairwise(tower)))
    first, second = Filter(color=upper, shape="square"), Filter(color=lower, shape="square")
    return _finish(draw, boxes, name_slots(a=first, b=second) | {"color": upper, "other": lower}, list_words(first, second))


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
        draw=_draw_total,
    ),
    TaskFamily(
        name="any_picture",
        kind="multi_image",
        base=("At least one picture shows <an_a>.", "There is at least one picture with <an_a>."),
        new=("<an_a_start> can be seen in one or more of the pictures.", "Some picture has <an_a> in it."),
        plan=(*_PLAN_EACH, "Check that one of the counts of Step4, Step5 and Step6 is above zero.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide(_ANY)),
        draw=_draw_any,
    ),
    TaskFamily(
        name="every_picture",
        kind="multi_image",
        base=("Every picture shows <an_a>.", "All three pictures contain <an_a>."),
        new=("No picture is without <an_a>.", "Wherever you look, each picture has <an_a>."),
        plan=(*_PLAN_EACH, "Check that all counts of Step4, Step5 and Step6 are above zero.", _LAST),
        program=(*_LOCATE_EACH, *_COUNT_EACH, *_decide(_ALL)),
        draw=_draw_every,
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
        draw=_draw_more,
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
        draw=_draw_touching,
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
        draw=_draw_tower_end,
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
        draw=_draw_same_number,
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
        draw=_draw_on,
        focuses=("color",),
    ),
)
