"""Where objects stand in the boxes of a statement: scattered with room between them, at walls, or stacked to towers (as in NLVR)."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final, Literal

import numpy as np

from visloop.scenes.outlines import cover_pixels
from visloop.scenes.regions import bound_mask
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

_PLAIN_SIZES: Final = (("small", 2.0), ("medium", 3.0), ("large", 1.0))
_SIZES: Final = (("medium", 3.0), ("large", 1.0))
_SMALL_SHAPES: Final = ("circle", "square", "triangle")
"""What can be told apart at 10 pixels, without a pattern: NLVR's own objects."""


@cache
def _measure(shape: str, size: str) -> tuple[int, int, int, int]:
    """How many pixels an object covers left, up, right and down of its centre, which lies between pixels."""
    radius = {entry.name: entry.radius for entry in BOXES.sizes}[size]
    outline = {entry.name: entry.outline for entry in BOXES.shapes}[shape]
    half = math.ceil(radius) + 2
    offsets = np.arange(-half, half, dtype=np.float64) + 0.5
    left, top, right, bottom = bound_mask(cover_pixels(outline, dx=offsets, dy=offsets, radius=radius) >= 0.5)
    return round(half - left), round(half - top), round(right - half), round(bottom - half)


def _place(rng: random.Random, entry: SceneObject, wall: Wall | None) -> SceneObject:
    """The object at a random place where its outermost pixels touch ``wall`` and no other."""
    left, up, right, down = _measure(entry.shape, entry.size)
    side = BOXES.box_canvas
    column = rng.randint(left + GAP, side - right - GAP)
    row = rng.randint(up + GAP, side - down - GAP)
    if wall in ("left", "right"):
        column = left if wall == "left" else side - right
    elif wall in ("top", "bottom"):
        row = up if wall == "top" else side - down
    return replace(entry, column=column, row=row)


def _collides(first: SceneObject, second: SceneObject) -> bool:
    """Whether the boxes of two objects, widened by the gap, meet."""
    left, up, right, down = _measure(first.shape, first.size)
    other_left, other_up, other_right, other_down = _measure(second.shape, second.size)
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
            candidate = _place(rng, replace(entry, size=size), wall)
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
