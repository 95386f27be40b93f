"""Random programs (typed questions) per family, drawn from what a scene allows and with balanced answers.

Each ``draw_*`` returns None when the scene does not allow its family. Where answers are yes/no or true/false the wanted
answer is drawn first, so that neither the family nor the form of a question tells the answer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from visloop.records.reasoning import AnswerType
from visloop.scenes.filters import Filter, change_value, describe_object, excludes, index_filters, select_objects
from visloop.scenes.steps import (
    COMPARISONS,
    DIRECTIONS,
    Bound,
    Conclusion,
    Direction,
    Find,
    Operation,
    compare_numbers,
    coordinate_of,
    find_objects,
    holds_for,
)
from visloop.scenes.world import ATTRIBUTES, Attribute, Objects, SceneObject, WorldSpec

Family = Literal["exist", "count", "compare", "query", "relation", "hop", "statement"]
FAMILIES: tuple[Family, ...] = ("exist", "count", "compare", "query", "relation", "hop", "statement")

FILTER_SIZES = {1: 0.4, 2: 0.4, 3: 0.2}
"""How often a filter constrains 1, 2 or 3 attributes, where there is a choice."""

BOX_BOUNDS: tuple[tuple[Bound, int], ...] = (
    ("at least", 1),
    ("at least", 2),
    ("at most", 1),
    ("exactly", 0),
    ("exactly", 1),
    ("exactly", 2),
    ("exactly", 3),
)
CONDITIONS: tuple[tuple[Bound, int] | None, ...] = (("at least", 1), ("at least", 2), ("at most", 1), ("exactly", 1), ("exactly", 2), None)
"""What a statement says of a box: a bound on the number of matching objects, or (None) that it holds nothing else."""


@dataclass(frozen=True, slots=True)
class Program:
    """A typed question. ``form`` names its wordings; ``condition`` those of a statement's condition."""

    family: Family
    form: str
    operations: tuple[Operation, ...]
    answer_type: AnswerType
    first: Filter
    second: Filter | None = None
    attribute: Attribute | None = None
    direction: Direction | None = None
    condition: str = field(default="")


def draw_filter_by_size(rng: random.Random, candidates: Sequence[Filter]) -> Filter:
    """One of the candidates: first how many attributes it constrains (``FILTER_SIZES``), then uniformly."""
    by_size: dict[int, list[Filter]] = {}
    for wanted in candidates:
        by_size.setdefault(len(wanted.attributes()), []).append(wanted)
    sizes = sorted(by_size)
    return rng.choice(by_size[rng.choices(sizes, [FILTER_SIZES.get(size, 0.2) for size in sizes])[0]])


def draw_near_miss(rng: random.Random, objects: Objects, *, attributes: Sequence[Attribute], spec: WorldSpec) -> Filter | None:
    """A filter over ``attributes`` that no object matches, one value away from an object where possible."""
    for _ in range(8):
        wanted = describe_object(rng.choice(objects), attributes)
        attribute = rng.choice(attributes)
        changed = change_value(wanted, attribute, rng.choice(spec.values(attribute)))
        if not select_objects(objects, changed):
            return changed
    return None


def _draw_attributes(rng: random.Random) -> list[Attribute]:
    return rng.sample(ATTRIBUTES, rng.choices(list(FILTER_SIZES), list(FILTER_SIZES.values()))[0])


def draw_exist(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """Is there an F? Half of the questions ask for something that is almost there.

    Both halves constrain attributes for which a near miss exists: otherwise "Is there a small thing?" were always true.
    """
    for _ in range(8):
        attributes = _draw_attributes(rng)
        wanted = draw_near_miss(rng, boxes[0], attributes=attributes, spec=spec)
        if wanted is not None:
            break
    else:
        return None
    if rng.random() < 0.5:
        wanted = describe_object(rng.choice(boxes[0]), attributes)
    return Program("exist", "exist", (Find(wanted), Conclusion("exist")), "boolean", wanted)


def _add_near_misses(rng: random.Random, objects: Objects, *, spec: WorldSpec, most: int) -> dict[Filter, int]:
    """How many objects each filter picks, with up to ``most`` filters that pick none."""
    counts = {wanted: len(found) for wanted, found in index_filters(objects).items()}
    for _ in range(most):
        if missing := draw_near_miss(rng, objects, attributes=_draw_attributes(rng), spec=spec):
            counts[missing] = 0
    return counts


def _draw_counted(rng: random.Random, counts: dict[Filter, int]) -> Filter:
    """A filter whose count is drawn uniformly from the counts that occur."""
    wanted_count = rng.choice(sorted(set(counts.values())))
    return draw_filter_by_size(rng, [wanted for wanted, count in counts.items() if count == wanted_count])


def draw_count(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """How many F are there? The count is uniform over those the scene offers, zero included."""
    wanted = _draw_counted(rng, _add_near_misses(rng, boxes[0], spec=spec, most=2))
    return Program("count", "count", (Find(wanted), Conclusion("count")), "number", wanted)


def draw_compare(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """Are there more / fewer / as many A than B? A and B exclude each other."""
    word, truth = rng.choice(COMPARISONS), rng.random() < 0.5
    counts = _add_near_misses(rng, boxes[0], spec=spec, most=2)
    for _ in range(40):
        first = _draw_counted(rng, counts)
        rivals = [other for other in counts if excludes(first, other)]
        if not rivals:
            continue
        second = draw_filter_by_size(rng, rivals)
        if holds_for(word, compare_numbers(counts[first], counts[second])) == truth:
            operations = (Find(first), Find(second), Conclusion("compare", word))
            return Program("compare", f"compare {word}", operations, "boolean", first, second)
    return None


def _draw_asked(rng: random.Random, unique: dict[Filter, SceneObject], spec: WorldSpec) -> tuple[Filter, Attribute] | None:
    """A filter of one object and an attribute it does not mention; the attribute's value (the answer) is drawn first."""
    weights = [len(spec.values(attribute)) for attribute in ATTRIBUTES]
    attribute = rng.choices(ATTRIBUTES, weights)[0]
    by_value: dict[str, list[Filter]] = {}
    for wanted, entry in unique.items():
        if wanted.value(attribute) is None:
            by_value.setdefault(getattr(entry, attribute), []).append(wanted)
    if not by_value:
        return None
    return draw_filter_by_size(rng, by_value[rng.choice(sorted(by_value))]), attribute


def _list_unique(objects: Objects) -> dict[Filter, SceneObject]:
    return {wanted: found[0] for wanted, found in index_filters(objects).items() if len(found) == 1}


def draw_query(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """What colour, shape, size or pattern has the only F?"""
    asked = _draw_asked(rng, _list_unique(boxes[0]), spec)
    if asked is None:
        return None
    wanted, attribute = asked
    form = "query choice" if len(spec.values(attribute)) == 2 and rng.random() < 0.5 else "query"
    return Program("query", form, (Find(wanted), Conclusion("query", attribute)), "phrase", wanted, attribute=attribute)


def draw_relation(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """Is the only A left of / right of / above / below the only B?"""
    unique = _list_unique(boxes[0])
    if len(set(unique.values())) < 2:
        return None
    first = draw_filter_by_size(rng, list(unique))
    second = draw_filter_by_size(rng, [other for other, entry in unique.items() if entry != unique[first]])
    truth = rng.random() < 0.5
    places = [(unique[wanted].column, unique[wanted].row) for wanted in (first, second)]
    fitting = []
    for direction in DIRECTIONS:
        sign = compare_numbers(*(coordinate_of(place, direction) for place in places))
        if holds_for(direction, sign) == truth:
            fitting.append(direction)
    direction = rng.choice(fitting)
    operations = (Find(first), Find(second), Conclusion("relation", direction))
    return Program("relation", "relation", operations, "boolean", first, second, direction=direction)


def draw_hop(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """What has / how many are the F left of (right of, above, below) the only R?"""
    unique = _list_unique(boxes[0])
    asks_count = rng.random() < 0.4
    for _ in range(6):
        if not unique:
            return None
        first = draw_filter_by_size(rng, list(unique))
        direction = rng.choice(DIRECTIONS)
        limit = coordinate_of((unique[first].column, unique[first].row), direction)
        beyond = find_objects(boxes[0], Find(Filter(), direction=direction, limit=limit))
        if not beyond:
            continue
        if asks_count:
            counts = {wanted: len(select_objects(beyond, wanted)) for wanted in (Filter(), *index_filters(boxes[0], most=2))}
            second = _draw_counted(rng, counts)
            counted = (Find(first), Find(second, direction=direction, limit=limit), Conclusion("count"))
            return Program("hop", "hop count", counted, "number", first, second, direction=direction)
        candidates = _list_unique(beyond) | ({Filter(): beyond[0]} if len(beyond) == 1 else {})
        asked = _draw_asked(rng, candidates, spec)
        if asked:
            second, attribute = asked
            queried = (Find(first), Find(second, direction=direction, limit=limit), Conclusion("query", attribute))
            return Program("hop", "hop query", queried, "phrase", first, second, attribute, direction)
    return None


def draw_statement(rng: random.Random, boxes: tuple[Objects, ...], spec: WorldSpec) -> Program | None:
    """A true or false statement about three boxes: a bound on how many of them satisfy a condition."""
    truth = rng.random() < 0.5
    known = _add_near_misses(rng, tuple(entry for box in boxes for entry in box), spec=spec, most=2)
    per_box = {wanted: [len(select_objects(box, wanted)) for box in boxes] for wanted in known}
    for _ in range(20):
        bound, number = rng.choice(BOX_BOUNDS)
        condition = rng.choice(CONDITIONS)
        check_word, check_number = condition or ("exactly", 0)
        fitting = []
        for wanted, counts in per_box.items():
            if condition is None:
                if len(wanted.attributes()) > 1:
                    continue
                counts = [len(box) - count for box, count in zip(boxes, counts, strict=True)]
            passing = sum(holds_for(check_word, compare_numbers(count, check_number)) for count in counts)
            if holds_for(bound, compare_numbers(passing, number)) == truth:
                fitting.append(wanted)
        if fitting:
            wanted = draw_filter_by_size(rng, fitting)
            finds = tuple(Find(wanted, box, negated=condition is None) for box in range(1, len(boxes) + 1))
            operations: tuple[Operation, ...] = (
                *finds,
                Conclusion("check", check_word, check_number),
                Conclusion("statement", bound, number),
            )
            name = "has only" if condition is None else f"has {check_word} {check_number}"
            return Program("statement", f"boxes {bound} {number}", operations, "boolean", wanted, condition=name)
    return None


DRAW_PROGRAM: dict[Family, Callable[[random.Random, tuple[Objects, ...], WorldSpec], Program | None]] = {
    "exist": draw_exist,
    "count": draw_count,
    "compare": draw_compare,
    "query": draw_query,
    "relation": draw_relation,
    "hop": draw_hop,
    "statement": draw_statement,
}
