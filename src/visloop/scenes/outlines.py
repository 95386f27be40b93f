"""Outlines of the shapes as data: each is a union of convex polygons inside the unit circle, y pointing down.

The centre (0, 0) is inside every outline, so the colour of an object can be read at its centre.
"""

import math

import numpy as np
from numpy.typing import NDArray

Polygon = tuple[tuple[float, float], ...]


def _regular(corners: int, *, turn: float = 0.0) -> Polygon:
    """A regular polygon with its first corner at the top, turned clockwise by ``turn`` radians."""
    angles = [2 * math.pi * index / corners - math.pi / 2 + turn for index in range(corners)]
    return tuple((math.cos(angle), math.sin(angle)) for angle in angles)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _star() -> tuple[Polygon, ...]:
    """Five points as five narrow kites that overlap around the centre."""
    kites = []
    for index in range(5):
        angle = 2 * math.pi * index / 5 - math.pi / 2
        side = 0.45
        left, right = angle - math.pi / 5, angle + math.pi / 5
        kites.append(
            (
                (math.cos(angle), math.sin(angle)),
                (side * math.cos(right), side * math.sin(right)),
                (-0.2 * math.cos(angle), -0.2 * math.sin(angle)),
                (side * math.cos(left), side * math.sin(left)),
            )
        )
    return tuple(kites)


def _lobe(center: float, *, radius: float) -> Polygon:
    """A circle of 16 corners whose centre lies at (``center``, -0.35)."""
    angles = [2 * math.pi * index / 16 for index in range(16)]
    return tuple((center + radius * math.cos(angle), -0.35 + radius * math.sin(angle)) for angle in angles)


def _semicircle() -> Polygon:
    """The upper half of a disc, moved down so that it holds the centre."""
    angles = [math.pi + math.pi * index / 16 for index in range(17)]
    return tuple((0.92 * math.cos(angle), 0.38 + 0.92 * math.sin(angle)) for angle in angles)


OUTLINES: dict[str, tuple[Polygon, ...]] = {
    "circle": (_regular(24),),
    "square": (_box(-0.9, -0.9, 0.9, 0.9),),
    "triangle": (((0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)),),
    "diamond": (_regular(4),),
    "cross": (_box(-1.0, -0.36, 1.0, 0.36), _box(-0.36, -1.0, 0.36, 1.0)),
    "star": _star(),
    "hexagon": (_regular(6, turn=math.pi / 6),),
    "bar": (_box(-1.0, -0.4, 1.0, 0.4),),
    "pillar": (_box(-0.4, -1.0, 0.4, 1.0),),
    "pentagon": (_regular(5),),
    "semicircle": (_semicircle(),),
    "heart": (
        _lobe(-0.46, radius=0.48),
        _lobe(0.46, radius=0.48),
        ((-0.87, -0.12), (-0.46, -0.5), (0.46, -0.5), (0.87, -0.12), (0.0, 0.98)),
    ),
    "arrow": (((-0.1, -0.9), (1.0, 0.0), (-0.1, 0.9)), _box(-1.0, -0.36, 0.1, 0.36)),
}


def measure_outline(outline: str) -> tuple[float, float, float, float]:
    """How far an outline reaches left, up, right and down of its centre, in radii."""
    corners = [corner for part in OUTLINES[outline] for corner in part]
    return -min(x for x, _ in corners), -min(y for _, y in corners), max(x for x, _ in corners), max(y for _, y in corners)


def _half_planes(polygon: Polygon) -> NDArray[np.float64]:
    """Rows (a, b, c): a point of the unit-size polygon is inside where a x + b y <= c for every row; (a, b) has length 1."""
    rows = []
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        a, b = (y1 - y0) / length, -(x1 - x0) / length
        rows.append((a, b, a * x0 + b * y0))
    return np.array(rows)


_PLANES = {name: tuple(_half_planes(part) for part in parts) for name, parts in OUTLINES.items()}


def cover_pixels(
    outline: str, *, dx: NDArray[np.float64], dy: NDArray[np.float64], radius: float, turn: float = 0.0
) -> NDArray[np.float64]:
    """How much of each pixel an outline of ``radius`` pixels covers, 0 to 1 (anti-aliased over one pixel).

    ``dx`` (w,) and ``dy`` (h,) are the offsets of the pixel centres from the object's centre, in pixels; the result is (h, w).
    ``turn`` turns the outline clockwise, in radians.
    """
    distance: NDArray[np.float64] | None = None
    for planes in _PLANES[outline]:
        a, b, c = planes[:, 0], planes[:, 1], planes[:, 2]
        if turn:
            a, b = a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)
        part = (a[:, None, None] * dx[None, None, :] + b[:, None, None] * dy[None, :, None] - radius * c[:, None, None]).max(axis=0)
        distance = part if distance is None else np.minimum(distance, part)
    if distance is None:
        raise ValueError(f"outline {outline!r} has no parts")
    return np.clip(0.5 - distance, 0.0, 1.0)
