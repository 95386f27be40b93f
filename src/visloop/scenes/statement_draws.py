"""How statements about three pictures are drawn: words first, then three boxes that make them true or false."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Final

from visloop.scenes.box_layouts import TOWER_COLUMNS, WALLS, Wall, scatter_objects, stack_towers
from visloop.scenes.filters import Filter
from visloop.scenes.workshop_families import Case, Draw, draw_others, draw_phrase, fill_object, finish_scene, list_words, name_slots
from visloop.scenes.world import Objects

INPUTS: Final = ("LEFT", "MIDDLE", "RIGHT")
_BLOCK_COLORS: Final = ("yellow", "black", "blue")
_BLOCK_SHAPES: Final = ("square", "triangle", "circle")
NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six")
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


def draw_total_count(draw: Draw) -> Case | None:
    """How many objects there are in all three boxes together; a false statement is off by one."""
    number = draw.words.randint(2, 4)
    total = number if draw.positive else draw.rng.choice((number - 1, number + 1))
    phrase = draw_phrase(draw, focus=draw.focus)
    counts = draw.rng.choice([counts for counts in product(range(4), repeat=3) if sum(counts) == total])
    return _finish(draw, _show(draw, phrase, counts), name_slots(a=phrase) | number_slots(number), list_words(phrase))


def number_slots(number: int) -> dict[str, str]:
    """The slots of a number of pictures, and of the words that agree with it."""
    one = number == 1
    agreeing = {"pictures": "picture" if one else "pictures", "contain": "contains" if one else "contain"}
    return {"number": NUMBERS[number], "digit": str(number), **agreeing, "have": "has" if one else "have", "are": "is" if one else "are"}


def draw_any_picture(draw: Draw) -> Case | None:
    """Whether at least one box has such an object."""
    return _draw_scattered(draw, lambda counts: any(counts))


def draw_every_picture(draw: Draw) -> Case | None:
    """Whether every box has one."""
    return _draw_scattered(draw, lambda counts: all(counts))


def draw_same_number(draw: Draw) -> Case | None:
    """Whether the boxes have equally many."""
    return _draw_scattered(draw, lambda counts: len(set(counts)) == 1)


def draw_more_in(draw: Draw) -> Case | None:
    """Whether one box has more of them than another."""
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


def draw_touching(draw: Draw) -> Case | None:
    """Whether exactly so many boxes have an object that touches a wall; others of its kind stand away from it."""
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
    slots = name_slots(a=phrase) | number_slots(number) | {"target": target}
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
        places = sorted(draw.rng.sample(TOWER_COLUMNS, len(towers)))
        boxes.append(stack_towers(towers, places=places))
    return tuple(boxes)


def draw_tower_end(draw: Draw) -> Case | None:
    """Whether a tower has a colour at its top or bottom."""
    color = _block_color(draw)
    end = draw.words.choice(("top", "bottom"))
    boxes = _draw_towers(draw, lambda tower: tower[-1 if end == "top" else 0] == color)
    phrase = Filter(color=color, shape="square")
    return _finish(draw, boxes, name_slots(a=phrase) | {"end": end, "END": end.upper(), "color": color}, list_words(phrase))


def draw_block_on(draw: Draw) -> Case | None:
    """Whether somewhere a block of one colour lies directly on one of another."""
    upper = _block_color(draw)
    lower = draw.words.choice([color for color in _BLOCK_COLORS if color != upper])
    if draw.focus is not None and draw.words.random() < 0.5:
        upper, lower = lower, upper
    boxes = _draw_towers(draw, lambda tower: (lower, upper) in list(pairwise(tower)))
    first, second = Filter(color=upper, shape="square"), Filter(color=lower, shape="square")
    return _finish(draw, boxes, name_slots(a=first, b=second) | {"color": upper, "other": lower}, list_words(first, second))
