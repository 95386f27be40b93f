"""Reads the words of one drawn object back from pixels by comparing it with how every word would be drawn. A measuring instrument: it
knows how the world is drawn, and is never given to a tool."""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from visloop.scenes.outlines import cover_pixels, measure_outline
from visloop.scenes.pictures import choose_ink
from visloop.scenes.regions import Corners, bound_mask
from visloop.scenes.textures import ink_pixels
from visloop.scenes.world import WorldSpec, find_style

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

CONTRAST: Final = 42.0
"""Levels (largest of the three channels) by which a pixel must differ from the ground to belong to an object."""
LEAST_PIXELS: Final = 20
_PLAIN_SHARE: Final = 0.04
"""An object with less ink than this share of its inner pixels is plain."""
_TURNS: Final = (-2, -1, 0, 1, 2)
"""Of the world's largest turn, in halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadObject:
    """What an object looks most like, with how well its outline fits (intersection over union, 0-1)."""

    shape: str
    color: str
    pattern: str
    fit: float


def find_foreground(pixels: Floats, tone: Floats) -> Mask:
    """The largest connected region (8 neighbours) of pixels (h, w, 3) that differ from the ground's ``tone`` (3,), holes filled."""
    differs: Mask = np.abs(pixels - tone).max(axis=2) > CONTRAST
    labels, count = ndimage.label(differs, structure=np.ones((3, 3)))
    if count == 0:
        return differs
    sizes = np.bincount(labels.ravel())[1:]
    filled: Mask = ndimage.binary_fill_holes(labels == int(sizes.argmax()) + 1)
    return filled


def _read_color(inside: Floats, spec: WorldSpec) -> str:
    """The colour that explains most pixels (n, 3), as itself or as its ink; at least a quarter must be the colour itself."""
    best, most = spec.colors[0].name, -1.0
    for color in spec.colors:
        mean = np.array(color.rgb, dtype=np.float64)
        distance = np.linalg.norm(inside - mean, axis=1)
        own = float((distance < 75).mean())
        ink = float((np.linalg.norm(inside - choose_ink(mean), axis=1) < 60).mean())
        # Nearness decides between colours that explain the same pixels.
        near = float(np.clip(1 - np.sort(distance)[: max(1, len(distance) // 4)] / 150, 0, 1).mean())
        score = min(1.0, own + ink) * near if own >= 0.25 else 0.25 * own
        if score > most:
            best, most = color.name, score
    return best


@cache
def _draw_outline(outline: str, turn: float, side: int) -> Mask:
    """The outline as a mask whose larger side is ``side`` pixels, cropped to its box."""
    left, up, right, down = measure_outline(outline)
    radius = side / max(left + right, up + down)
    for _ in range(4):
        offsets: Floats = np.arange(-2 * side, 2 * side, dtype=np.float64) + 0.5
        mask = cover_pixels(outline, dx=offsets, dy=offsets, radius=radius, turn=turn) >= 0.5
        x0, y0, x1, y1 = map(int, bound_mask(mask))
        longest = max(x1 - x0, y1 - y0)
        if longest == side:
            break
        radius *= side / longest
    cropped: Mask = mask[y0:y1, x0:x1]
    return cropped


def _compare_masks(first: Mask, second: Mask) -> float:
    """Best intersection over union of two masks, 0-1, with their centres laid on each other or up to a pixel apart."""
    height, width = max(first.shape[0], second.shape[0]) + 2, max(first.shape[1], second.shape[1]) + 2

    def lay(mask: Mask, down: int, right: int) -> Mask:
        top, left = (height - mask.shape[0]) // 2 + down, (width - mask.shape[1]) // 2 + right
        canvas = np.zeros((height, width), dtype=np.bool_)
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return canvas

    fixed = lay(first, 0, 0)
    moved = [lay(second, down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if _fits(second, down, right, height, width)]
    return max(float((fixed & other).sum() / (fixed | other).sum()) for other in moved)


def _fits(mask: Mask, down: int, right: int, height: int, width: int) -> bool:
    top, left = (height - mask.shape[0]) // 2 + down, (width - mask.shape[1]) // 2 + right
    return bool(0 <= top <= height - mask.shape[0] and 0 <= left <= width - mask.shape[1])


def _read_shape(mask: Mask, spec: WorldSpec) -> tuple[str, float, float]:
    """The best outline, its intersection over union and its turn."""
    turns = sorted({step / 2 * find_style(spec).turn for step in _TURNS})
    side = max(mask.shape)
    scored = [
        (_compare_masks(mask, _draw_outline(shape.outline, turn, size)), shape.name, turn)
        for shape in spec.shapes
        for turn in turns
        for size in (side - 1, side, side + 1)
    ]
    fit, name, turn = max(scored)
    return name, fit, turn


def _read_pattern(ink: Mask, inner: Mask, turn: float, spec: WorldSpec, period: float) -> str:
    """The texture whose ink agrees best with the inked pixels (h, w) within the object's inner pixels."""
    if inner.sum() == 0 or float(ink[inner].mean()) < _PLAIN_SHARE:
        return next(
            (pattern.name for pattern in spec.patterns if pattern.name not in dict(find_style(spec).textures)), spec.patterns[0].name
        )
    height, width = ink.shape
    found = ink[inner].astype(np.float64) - float(ink[inner].mean())
    best, most = "", -2.0
    most_turn = find_style(spec).turn
    for name, texture in find_style(spec).textures:
        for angle in sorted({turn, 0.0, -most_turn, most_turn, -most_turn / 2, most_turn / 2}):
            for shift_x in np.arange(-period / 2, period / 2, 1.0):
                for shift_y in np.arange(-period / 2, period / 2, 1.0):
                    dx, dy = np.arange(width) + 0.5 - width / 2 - shift_x, np.arange(height) + 0.5 - height / 2 - shift_y
                    drawn = ink_pixels(texture, dx=dx, dy=dy, period=period, turn=angle)[inner].astype(np.float64)
                    drawn -= drawn.mean()
                    norm = float(np.linalg.norm(drawn) * np.linalg.norm(found))
                    likeness = float(drawn @ found) / norm if norm > 0 else -1.0
                    if likeness > most:
                        best, most = name, likeness
    return best


def read_object(picture: Image.Image, box: Corners, *, tone: tuple[float, float, float], spec: WorldSpec) -> ReadObject | None:
    """What the object inside of ``box`` (pixels) is, on a ground of mean RGB ``tone``; None where nothing stands out from the ground."""
    left, top, right, bottom = (round(value) for value in box)
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)[max(0, top) : bottom, max(0, left) : right]
    mask = find_foreground(pixels, np.array(tone))
    if mask.sum() < LEAST_PIXELS:
        return None
    x0, y0, x1, y1 = map(int, bound_mask(mask))
    mask, pixels = mask[y0:y1, x0:x1], pixels[y0:y1, x0:x1]
    inner = ndimage.binary_erosion(mask)
    if inner.sum() < LEAST_PIXELS:
        inner = mask
    color = _read_color(pixels[inner], spec)
    mean = np.array({entry.name: entry.rgb for entry in spec.colors}[color], dtype=np.float64)
    ink = np.linalg.norm(pixels - choose_ink(mean), axis=2) < np.linalg.norm(pixels - mean, axis=2)
    shape, fit, turn = _read_shape(mask, spec)
    period = max(4.0, spec.stripe * spec.canvas / spec.grid)
    return ReadObject(shape=shape, color=color, pattern=_read_pattern(ink, inner, turn, spec, period), fit=fit)
