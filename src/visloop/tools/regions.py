"""Tools about places: cropping and counting (CLOVA's), and touching, towers, above and on (what NLVR's sentences speak of).

Boxes are in pixels of their own picture, so tools with objects alone compare objects of one picture.
"""

from collections.abc import Callable
from typing import Final

from visloop.errors import ToolError
from visloop.tools.base import ToolCall
from visloop.tools.plain import PlainTool, clip_box, take_boxes, take_image, take_objects, take_text
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Box, Objects, Value

TOLERANCE: Final = 1.0
"""Pixels between two boxes, or a box and the picture's side, that still touch: NLVR draws blocks one pixel apart."""

_ANY_SIDE, _CORNER = "any side", "corner"
_TARGETS: Final = {
    **dict.fromkeys(("wall", "edge", "side", "border"), _ANY_SIDE),
    "corner": _CORNER,
    **dict.fromkeys(("top", "ceiling"), "top"),
    **dict.fromkeys(("bottom", "base", "floor", "ground"), "bottom"),
    "left": "left",
    "right": "right",
}


def make_region_tools() -> dict[str, PlainTool]:
    """CROP, its four directions, COUNT, TOUCHING, TOP, BOTTOM, ABOVE and ON by name."""
    answers: dict[str, Callable[[ToolCall], Value]] = {
        "CROP": _crop,
        **{f"CROP_{direction}": _make_half_crop(direction) for direction in ("LEFTOF", "RIGHTOF", "ABOVE", "BELOW")},
        "COUNT": lambda call: len(take_boxes(call)),
        "TOUCHING": _find_touching,
        "TOP": lambda call: _take_ends(take_objects(call), height=lambda box: box.top),
        "BOTTOM": lambda call: _take_ends(take_objects(call), height=lambda box: -box.bottom),
        "ABOVE": lambda call: _relate(call, _is_above),
        "ON": lambda call: _relate(call, _lies_on),
    }
    return {name: PlainTool(SIGNATURES[name], answer) for name, answer in answers.items()}


def _crop(call: ToolCall) -> Value:
    image, boxes = take_image(call), take_boxes(call)
    return image.crop(clip_box(boxes[0], image.size)) if boxes else image


def _make_half_crop(direction: str) -> Callable[[ToolCall], Value]:
    def crop_half(call: ToolCall) -> Value:
        image, boxes = take_image(call), take_boxes(call)
        width, height = image.size
        x, y = width / 2, height / 2
        if boxes:
            left, top, right, bottom = clip_box(boxes[0], image.size)
            x, y = (left + right) / 2, (top + bottom) / 2
        # both halves keep at least one pixel, also of a box at the picture's side
        column = min(max(1, int(x + 0.5)), max(1, width - 1))
        row = min(max(1, int(y + 0.5)), max(1, height - 1))
        halves = {
            "LEFTOF": (0, 0, column, height),
            "RIGHTOF": (min(column, width - 1), 0, width, height),
            "ABOVE": (0, 0, width, row),
            "BELOW": (0, min(row, height - 1), width, height),
        }
        return image.crop(halves[direction])

    return crop_half


def _find_touching(call: ToolCall) -> Value:
    image, objects = take_image(call), take_objects(call)
    if isinstance(call.arguments.get("target"), str):
        word = take_text(call, "target").lower().removeprefix("the ")
        target = _TARGETS.get(word) or _TARGETS.get(word.removesuffix("s"))
        if target is None:
            raise ToolError(f"argument target: unknown word {word!r}; known are {', '.join(sorted(_TARGETS))}, or objects")
        return tuple(entry for entry in objects if _touches_side(entry.box, target, size=image.size))
    others = take_objects(call, "target")
    return _keep_related(objects, others, _touch)


def _touches_side(box: Box, target: str, *, size: tuple[int, int]) -> bool:
    width, height = size
    touched = {
        "left": box.left <= TOLERANCE,
        "right": box.right >= width - TOLERANCE,
        "top": box.top <= TOLERANCE,
        "bottom": box.bottom >= height - TOLERANCE,
    }
    if target == _CORNER:
        return (touched["left"] or touched["right"]) and (touched["top"] or touched["bottom"])
    return any(touched.values()) if target == _ANY_SIDE else touched[target]


def _relate(call: ToolCall, related: Callable[[Box, Box], bool]) -> Objects:
    return _keep_related(take_objects(call), take_objects(call, "other"), related)


def _keep_related(objects: Objects, others: Objects, related: Callable[[Box, Box], bool]) -> Objects:
    """Those of the objects that are so related to one of the others; an object is never related to itself."""
    return tuple(
        entry for entry in objects if any(entry.box.corners != other.box.corners and related(entry.box, other.box) for other in others)
    )


def _touch(first: Box, second: Box) -> bool:
    across = max(first.left, second.left) - min(first.right, second.right)
    down = max(first.top, second.top) - min(first.bottom, second.bottom)
    return max(across, down) <= TOLERANCE


def _share_columns(first: Box, second: Box) -> bool:
    return min(first.right, second.right) > max(first.left, second.left)


def _is_above(upper: Box, lower: Box) -> bool:
    return _share_columns(upper, lower) and upper.bottom <= lower.top + TOLERANCE


def _lies_on(upper: Box, lower: Box) -> bool:
    return _share_columns(upper, lower) and abs(lower.top - upper.bottom) <= TOLERANCE


def _take_ends(objects: Objects, *, height: Callable[[Box], float]) -> Objects:
    """The objects of least ``height`` of every tower, in the given order. Towers are objects that lie on each other; an object that
    nothing touches from above or below is a tower of one. Equal ends of one tower are all taken."""
    ends: set[int] = set()
    for tower in _group_towers(objects):
        least = min(height(objects[index].box) for index in tower)
        ends.update(index for index in tower if height(objects[index].box) == least)
    return tuple(entry for index, entry in enumerate(objects) if index in ends)


def _group_towers(objects: Objects) -> list[list[int]]:
    left = set(range(len(objects)))
    towers = []
    while left:
        tower, found = [], [left.pop()]
        while found:
            index = found.pop()
            tower.append(index)
            box = objects[index].box
            joined = [other for other in left if _lies_on(box, objects[other].box) or _lies_on(objects[other].box, box)]
            left.difference_update(joined)
            found += joined
        towers.append(tower)
    return towers
