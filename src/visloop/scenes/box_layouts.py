"""Where objects stand in the boxes of a statement: scattered with room between them, at walls, or stacked to towers (as in NLVR)."""

import math
import random
from collections.abc import Sequence
from typing import Final, Literal

from visloop.scenes.outlines import measure_outline
from visloop.scenes.workshop import BOXES
from visloop.scenes.world import Objects, SceneObject

Wall = Literal["top", "bottom", "left", "right"]
WALLS: Final[tuple[Wall, ...]] = ("top", "bottom", "left", "right")
GAP: Final = 4
"""Pixels between an object and a wall or another object that it does not touch, at least."""
TOWER_COLUMNS: Final = (20, 50, 80)
"""Centres of the towers, in pixels from the left."""
TOWER_STEP: Final = 21
"""Distance of the centres of stacked squares, in pixels: squares of 20 with one row of ground between them, as NLVR draws them."""
TALLEST: Final = 4

_RADII = {size.name: size.radius for size in BOXES.sizes}
_PLAIN_SIZES: Final = (("small", 2.0), ("medium", 3.0), ("large", 1.0))
_SIZES: Final = (("medium", 3.0), ("large", 1.0))
_SMALL_SHAPES: Final = ("circle", "square", "triangle")
"""What can be told apart at 10 pixels, without a pattern: NLVR's own objects."""


def _reach(entry: SceneObject) -> tuple[float, float, float, float]:
    """How far an object reaches left, up, right and down of its centre, in pixels."""
    radius = _RADII[entry.size]
    left, up, right, down = measure_outline(entry.shape)
    return left * radius, up * radius, right * radius, down * radius


def _place(rng: random.Random, entry: SceneObject, wall: Wall | None) -> SceneObject:
    """The object at a random place that touches ``wall`` and no other."""
    left, up, right, down = _reach(entry)
    side = BOXES.box_canvas
    column = rng.randint(math.ceil(left) + GAP, side - math.ceil(right) - GAP)
    row = rng.randint(math.ceil(up) + GAP, side - math.ceil(down) - GAP)
    # Rounded towards the wall, so that the outermost pixel is covered.
    if wall == "left":
        column = math.floor(left + 0.2)
    elif wall == "right":
        column = side - math.floor(right + 0.2)
    elif wall == "top":
        row = math.floor(up + 0.2)
    elif wall == "bottom":
        row = side - math.floor(down + 0.2)
    return SceneObject(entry.shape, entry.color, entry.size, entry.pattern, column, row)


def _collides(first: SceneObject, second: SceneObject) -> bool:
    """Whether the boxes of two objects, widened by the gap, meet."""
    left, up, right, down = _reach(first)
    other_left, other_up, other_right, other_down = _reach(second)
    across, along = second.column - first.column, second.row - first.row
    return -(left + other_right + GAP) < across < right + other_left + GAP and -(up + other_down + GAP) < along < down + other_up + GAP


def scatter_objects(rng: random.Random, entries: Sequence[SceneObject], *, walls: Sequence[Wall | None] = ()) -> Objects | None:
    """The objects with new sizes and places: none touches another, and each touches the wall of ``walls`` at its place, or none.

    None where they find no room after some tries.
    """
    placed: list[SceneObject] = []
    for index, entry in enumerate(entries):
        wall = walls[index] if index < len(walls) else None
        for _ in range(40):
            sizes = _PLAIN_SIZES if entry.pattern == "plain" and entry.shape in _SMALL_SHAPES else _SIZES
            size = rng.choices([name for name, _ in sizes], [weight for _, weight in sizes])[0]
            candidate = _place(rng, SceneObject(entry.shape, entry.color, size, entry.pattern, 1, 1), wall)
            if not any(_collides(candidate, other) for other in placed):
                placed.append(candidate)
                break
        else:
            return None
    return tuple(placed)


def stack_towers(towers: Sequence[Sequence[str]], *, places: Sequence[int] = TOWER_COLUMNS) -> Objects:
    """Squares in towers on the floor. ``towers`` lists the colours of each from the lowest to the uppermost."""
    floor = BOXES.box_canvas - 10
    return tuple(
        SceneObject("square", color, "medium", "plain", place, floor - level * TOWER_STEP)
        for place, tower in zip(places, towers, strict=False)
        for level, color in enumerate(tower)
    )
