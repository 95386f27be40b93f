"""Tools without a model: one function per call, and the arguments of a call read with their types."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from visloop.errors import ToolError
from visloop.tools.base import ToolCall, ToolResult, ToolSignature
from visloop.tools.failures import note_failure
from visloop.tools.values import Box, Boxes, Objects, Value, VisualObject


@dataclass(slots=True)
class PlainTool:
    """A tool that answers each call by a function. What the function raises becomes the error of its call alone."""

    signature: ToolSignature
    answer: Callable[[ToolCall], Value]

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        return [self._run_one(call) for call in calls]

    def _run_one(self, call: ToolCall) -> ToolResult:
        try:
            return ToolResult(value=self.answer(call))
        except ToolError as error:
            return ToolResult(value=None, error=f"{self.signature.name}: {error}")
        except Exception as error:
            # one bad call must not lose its batch, whatever went wrong
            note_failure(error, tool=self.signature.name)
            return ToolResult(value=None, error=f"{self.signature.name}: {type(error).__name__}: {error}")


def take_image(call: ToolCall, name: str = "image") -> Image.Image:
    """The picture of an argument, as RGB.

    Raises:
        ToolError: the argument is missing or no picture.
    """
    value = call.arguments.get(name)
    if not isinstance(value, Image.Image):
        raise _wrong(name, "an Image", value)
    return value if value.mode == "RGB" else value.convert("RGB")


def take_text(call: ToolCall, name: str) -> str:
    """The text of an argument, without blanks around it.

    Raises:
        ToolError: the argument is missing, not text, or empty.
    """
    value = call.arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(name, "a Text with at least one character", value)
    return value.strip()


def take_number(call: ToolCall, name: str) -> float:
    """The number of an argument.

    Raises:
        ToolError: the argument is missing, not a number, a truth value, or not finite.
    """
    value = call.arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, "a finite Number", value)
    return value


def take_objects(call: ToolCall, name: str = "object") -> Objects:
    """The objects of an argument, in order; a box counts as an object without a mask.

    Raises:
        ToolError: the argument is missing, neither Objects nor Boxes, or holds a box that is empty or not finite.
    """
    value = call.arguments.get(name)
    if not isinstance(value, tuple):
        raise _wrong(name, "Objects or Boxes", value)
    taken = []
    for entry in value:
        if isinstance(entry, Box):
            entry = VisualObject(box=entry, label=entry.label, score=entry.score)
        if not isinstance(entry, VisualObject):
            raise _wrong(name, "Objects or Boxes", value)
        if not (all(map(math.isfinite, entry.box.corners)) and entry.box.area > 0):
            raise ToolError(f"argument {name}: the box {entry.box.corners} has no area; left < right and top < bottom are needed")
        taken.append(entry)
    return tuple(taken)


def take_boxes(call: ToolCall, name: str = "box") -> Boxes:
    """The boxes of an argument that holds Boxes or Objects, in order.

    Raises:
        ToolError: as ``take_objects``.
    """
    return tuple(entry.box for entry in take_objects(call, name))


def clip_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels (left, top, right, bottom) that a box covers of a picture of ``size`` (width, height).

    Raises:
        ToolError: the box lies outside of the picture.
    """
    width, height = size
    left, top = max(0, math.floor(box.left)), max(0, math.floor(box.top))
    right, bottom = min(width, math.ceil(box.right)), min(height, math.ceil(box.bottom))
    if left >= right or top >= bottom:
        raise ToolError(f"the box {box.corners} lies outside of the picture, which is {width}x{height} pixels")
    return left, top, right, bottom


def _wrong(name: str, wanted: str, value: object) -> ToolError:
    shown = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
    return ToolError(f"argument {name} must be {wanted}, got {shown}")
