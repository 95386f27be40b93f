"""The grammar of exact reasoning steps: typed steps, their text, and what each of them yields in a scene.

A chain is some find steps and one or two conclusions. Text has tokens separated by single spaces, lower-case, no colon:

====================================  =============================================
summary                               reasoning
====================================  =============================================
``find small red circle``             ``x1 y2 , x3 y4`` (by row, then column) or ``none``
``find circle left of x2``            the same; ``x2`` belongs to the object found before
``box 1 find not red thing``          the same, in one box of three
``conclude exist``                    ``answer yes``
``count``                             ``3 answer 3``
``compare more``                      ``2 1 > answer yes``
``conclude color``                    ``answer red``
``compare left of``                   ``x1 x3 < answer yes``
``check at least 2``                  ``2 0 3 yes no yes`` (counts per box, then whether each passes)
``conclude at least 2``               ``2 2 = answer true`` (boxes that pass, the number wanted, their order)
====================================  =============================================
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from visloop.records.reasoning import ReasoningStep
from visloop.scenes.filters import Filter, name_filter, read_filter
from visloop.scenes.world import ATTRIBUTES, Objects, SceneObject, WorldSpec

Direction = Literal["left of", "right of", "above", "below"]
Bound = Literal["exactly", "at least", "at most"]
Comparison = Literal["more", "fewer", "same"]
DIRECTIONS: tuple[Direction, ...] = ("left of", "right of", "above", "below")
BOUNDS: tuple[Bound, ...] = ("exactly", "at least", "at most")
COMPARISONS: tuple[Comparison, ...] = ("more", "fewer", "same")
ConclusionKind = Literal["exist", "count", "compare", "query", "relation", "check", "statement"]

_WANTED_SIGNS: dict[str, str] = {
    "left of": "<",
    "right of": ">",
    "above": "<",
    "below": ">",
    "more": ">",
    "fewer": "<",
    "same": "=",
    "exactly": "=",
    "at least": "=>",
    "at most": "=<",
}
"""Every sign under which a comparison holds."""

Position = tuple[int, int]
"""(column, row), both from 1."""


@dataclass(frozen=True, slots=True)
class Find:
    """Look for objects. ``box`` 0 is the single canvas. ``limit`` is the column or row of the reference (0 = no direction)."""

    wanted: Filter
    box: int = 0
    negated: bool = False
    direction: Direction | None = None
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Compute something from what was found. ``word`` is the comparison, direction, attribute or bound."""

    kind: ConclusionKind
    word: str = ""
    number: int = 0


Operation = Find | Conclusion


@dataclass(frozen=True, slots=True)
class Finding:
    """A find step and the positions it reported (right or not)."""

    step: Find
    positions: tuple[Position, ...]


def axis_of(direction: Direction) -> Literal["x", "y"]:
    """The coordinate a direction compares."""
    return "x" if direction in ("left of", "right of") else "y"


def coordinate_of(position: Position, direction: Direction) -> int:
    """The column or the row, whichever the direction compares."""
    return position[0] if axis_of(direction) == "x" else position[1]


def compare_numbers(first: int, second: int) -> str:
    """``<``, ``>`` or ``=``."""
    return "<" if first < second else ">" if first > second else "="


def holds_for(word: str, sign: str) -> bool:
    """Whether a comparison, direction or bound holds under an order sign."""
    return sign in _WANTED_SIGNS[word]


def summarize_operation(operation: Operation) -> str:
    """The summary text of a step."""
    if isinstance(operation, Find):
        prefix = f"box {operation.box} find " if operation.box else "find "
        suffix = f" {operation.direction} {axis_of(operation.direction)}{operation.limit}" if operation.direction else ""
        return prefix + ("not " if operation.negated else "") + name_filter(operation.wanted) + suffix
    if operation.kind == "check":
        return f"check {operation.word} {operation.number}"
    if operation.kind == "statement":
        return f"conclude {operation.word} {operation.number}"
    verb = {"exist": "conclude exist", "count": "count", "query": "conclude"}.get(operation.kind, "compare")
    return f"{verb} {operation.word}".strip()


_CONCLUSIONS: dict[str, Conclusion] = {
    summarize_operation(operation): operation
    for operation in (
        Conclusion("exist"),
        Conclusion("count"),
        *(Conclusion("compare", word) for word in COMPARISONS),
        *(Conclusion("relation", word) for word in DIRECTIONS),
        *(Conclusion("query", word) for word in ATTRIBUTES),
    )
}
_BOUNDED = re.compile(rf"(check|conclude) ({'|'.join(BOUNDS)}) (0|[1-9][0-9]?)")
_LOCATED = re.compile(rf"(.+) ({'|'.join(DIRECTIONS)}) ([xy])([1-9][0-9]?)")
_FIND = re.compile(r"(?:box ([1-9]) )?find (not )?(.+)")
_POSITION = re.compile(r"x([1-9][0-9]?) y([1-9][0-9]?)")


def read_summary(text: str, *, spec: WorldSpec) -> Operation | None:
    """The operation a summary names, or None for text outside the grammar."""
    if text in _CONCLUSIONS:
        return _CONCLUSIONS[text]
    if match := _BOUNDED.fullmatch(text):
        return Conclusion("check" if match[1] == "check" else "statement", match[2], int(match[3]))
    found = _FIND.fullmatch(text)
    if found is None:
        return None
    words, direction, limit = found[3], None, 0
    if located := _LOCATED.fullmatch(words):
        direction = next(name for name in DIRECTIONS if name == located[2])
        words, limit = located[1], int(located[4])
        if axis_of(direction) != located[3] or not 1 <= limit <= spec.grid:
            return None
    wanted = read_filter(words.split(" "), spec=spec)
    return None if wanted is None else Find(wanted, int(found[1] or 0), bool(found[2]), direction, limit)


def format_positions(positions: Sequence[Position]) -> str:
    """``x1 y2 , x3 y4`` sorted by row, then column; ``none`` for no position."""
    ordered = sorted(positions, key=lambda position: (position[1], position[0]))
    return " , ".join(f"x{column} y{row}" for column, row in ordered) or "none"


def read_positions(text: str) -> tuple[Position, ...] | None:
    """Positions in the order written; None for malformed text or a repeated position."""
    if text == "none":
        return ()
    matches = [_POSITION.fullmatch(part) for part in text.split(" , ")]
    positions = [(int(match[1]), int(match[2])) for match in matches if match]
    return tuple(positions) if len(positions) == len(matches) == len(set(positions)) else None


def find_objects(objects: Objects, step: Find) -> Objects:
    """The objects of one box that a find step must report."""
    chosen = tuple(entry for entry in objects if step.wanted.matches(entry) != step.negated)
    if step.direction is None:
        return chosen
    direction = step.direction
    return tuple(
        entry for entry in chosen if holds_for(direction, compare_numbers(coordinate_of((entry.column, entry.row), direction), step.limit))
    )


def execute_find(step: Find, boxes: tuple[Objects, ...]) -> tuple[Position, ...]:
    """The true positions of a find step in a scene; a box the scene does not have holds nothing."""
    number = step.box - 1 if step.box else 0
    if number >= len(boxes):
        return ()
    return tuple((entry.column, entry.row) for entry in find_objects(boxes[number], step))


def _answer(condition: bool) -> str:
    return "answer yes" if condition else "answer no"


def _conclude_query(step: Conclusion, found: Sequence[Finding], boxes: tuple[Objects, ...]) -> str | None:
    at = {(entry.column, entry.row): entry for entry in boxes[0]}
    entries: list[SceneObject] = [at[position] for position in found[-1].positions if position in at]
    return f"answer {getattr(entries[0], step.word)}" if len(entries) == 1 == len(found[-1].positions) else None


def _conclude_relation(step: Conclusion, found: Sequence[Finding], boxes: tuple[Objects, ...]) -> str | None:
    if len(found) < 2 or any(len(finding.positions) != 1 for finding in found[-2:]):
        return None
    direction = next(name for name in DIRECTIONS if name == step.word)
    first, second = (coordinate_of(finding.positions[0], direction) for finding in found[-2:])
    sign, axis = compare_numbers(first, second), axis_of(direction)
    return f"{axis}{first} {axis}{second} {sign} {_answer(holds_for(direction, sign))}"


def _conclude_compare(step: Conclusion, found: Sequence[Finding], boxes: tuple[Objects, ...]) -> str | None:
    if len(found) < 2:
        return None
    first, second = (len(finding.positions) for finding in found[-2:])
    sign = compare_numbers(first, second)
    return f"{first} {second} {sign} {_answer(holds_for(step.word, sign))}"


_CONCLUDE: dict[str, Callable[[Conclusion, Sequence[Finding], tuple[Objects, ...]], str | None]] = {
    "exist": lambda step, found, boxes: _answer(bool(found[-1].positions)),
    "count": lambda step, found, boxes: f"{len(found[-1].positions)} answer {len(found[-1].positions)}",
    "query": _conclude_query,
    "relation": _conclude_relation,
    "compare": _conclude_compare,
}


def write_check(step: Conclusion, counts: Sequence[int]) -> str:
    """Counts per box, then for each whether it passes the bound."""
    flags = ["yes" if holds_for(step.word, compare_numbers(count, step.number)) else "no" for count in counts]
    return " ".join([*map(str, counts), *flags])


def write_verdict(step: Conclusion, passing: int) -> str:
    """How many boxes pass, how many are wanted, the order of the two, and the verdict."""
    sign = compare_numbers(passing, step.number)
    return f"{passing} {step.number} {sign} answer {'true' if holds_for(step.word, sign) else 'false'}"


def execute_conclusion(step: Conclusion, found: Sequence[Finding], boxes: tuple[Objects, ...], *, previous: str = "") -> str | None:
    """The reasoning text that follows from what was found; ``previous`` is the reasoning of the step before (a check's flags).

    Returns None where nothing follows, e.g. the relation of an object that was not found.
    """
    if not found:
        return None
    if step.kind == "check":
        return write_check(step, [len(finding.positions) for finding in found])
    if step.kind == "statement":
        return write_verdict(step, previous.split(" ").count("yes"))
    return _CONCLUDE[step.kind](step, found, boxes)


def execute_operations(operations: Sequence[Operation], boxes: tuple[Objects, ...]) -> tuple[ReasoningStep, ...]:
    """The exact chain of a program. Limits of directions must already be filled in.

    Raises:
        ValueError: a conclusion that does not follow from what the program finds.
    """
    found: list[Finding] = []
    steps: list[ReasoningStep] = []
    for index, operation in enumerate(operations):
        if isinstance(operation, Find):
            positions = execute_find(operation, boxes)
            found.append(Finding(operation, positions))
            reasoning: str | None = format_positions(positions)
        else:
            reasoning = execute_conclusion(operation, found, boxes, previous=steps[-1].reasoning if steps else "")
        if reasoning is None:
            raise ValueError(f"step {index + 1} ({summarize_operation(operation)!r}) does not follow from {found}")
        last = index == len(operations) - 1
        steps.append(ReasoningStep(summary=summarize_operation(operation), reasoning=reasoning, action="summary" if last else "continue"))
    return tuple(steps)


def answer_of(reasoning: str) -> str | None:
    """The word after ``answer`` at the end of a concluding step; None without one."""
    words = reasoning.split(" ")
    return words[-1] if len(words) >= 2 and words[-2] == "answer" else None
