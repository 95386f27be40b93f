"""The values that programs pass between tools, their types, and how each is told in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ValueType = Literal["Image", "Boxes", "Objects", "Text", "Number", "Bool", "List", "Any"]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box in pixels of its picture: left, top, right, bottom (right and bottom exclusive), with score 0-1 and label."""

    left: float
    top: float
    right: float
    bottom: float
    score: float = 1.0
    label: str = ""

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom)."""
        return self.left, self.top, self.right, self.bottom

    @property
    def center(self) -> tuple[float, float]:
        """(x, y)."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Square pixels."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisualObject:
    """A segmented object: its box, its mask (height, width) of the whole picture, what it is called and how surely (0-1)."""

    box: Box
    mask: Mask | None = None
    label: str = ""
    score: float = 1.0


Boxes: TypeAlias = tuple[Box, ...]
Objects: TypeAlias = tuple[VisualObject, ...]
Value: TypeAlias = Image.Image | Boxes | Objects | str | int | float | bool | tuple[str, ...]
"""An empty tuple is an empty Boxes, Objects or List: the variable's declared type says which."""


def overlap_ratio(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0-1."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    shared = max(0.0, width) * max(0.0, height)
    union = first.area + second.area - shared
    return shared / union if union > 0 else 0.0


def type_of(value: Value) -> ValueType:
    """The type of a value; an empty tuple counts as ``Objects``.

    Raises:
        TypeError: not a value of programs.
    """
    if isinstance(value, bool):
        return "Bool"
    if isinstance(value, int | float):
        return "Number"
    if isinstance(value, str):
        return "Text"
    if isinstance(value, Image.Image):
        return "Image"
    if isinstance(value, tuple):
        kinds: Sequence[tuple[type, ValueType]] = ((Box, "Boxes"), (VisualObject, "Objects"), (str, "List"))
        for kind, name in kinds:
            if value and all(isinstance(entry, kind) for entry in value):
                return name
        if not value:
            return "Objects"
    raise TypeError(f"{type(value).__name__} is not a value of programs; see visloop.tools.values.Value")
