"""What the patterns look like: which pixels of an object are inked, as data and one rule per texture."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from visloop.errors import ConfigError

Floats = NDArray[np.float64]
Ink = NDArray[np.bool_]


def _phase(offsets: Floats, period: float) -> Floats:
    """Distance of each offset from the nearest multiple of ``period``, in pixels."""
    return np.abs(offsets - period * np.rint(offsets / period))


def _ink_stripes(u: Floats, v: Floats, period: float) -> Ink:
    # A coloured band lies on the centre; bands of half a period alternate above and below it.
    inked: Ink = np.floor(v / (period / 2) + 0.5).astype(np.int64) % 2 == 1
    return inked


def _ink_dots(u: Floats, v: Floats, period: float) -> Ink:
    # Dots stand between the multiples of the period, so that the centre keeps its colour.
    return np.hypot(_phase(u - period / 2, period), _phase(v - period / 2, period)) < 0.29 * period


def _ink_checks(u: Floats, v: Floats, period: float) -> Ink:
    columns, rows = np.floor(u / (period / 2) + 0.5).astype(int), np.floor(v / (period / 2) + 0.5).astype(int)
    inked: Ink = (columns + rows) % 2 == 1
    return inked


def _ink_grid(u: Floats, v: Floats, period: float) -> Ink:
    width = 0.13 * period
    return np.minimum(_phase(u - period / 2, period), _phase(v - period / 2, period)) < width


_RULES: dict[str, Callable[[Floats, Floats, float], Ink]] = {
    "stripes": _ink_stripes,
    "dots": _ink_dots,
    "checks": _ink_checks,
    "grid": _ink_grid,
}
TEXTURES = tuple(_RULES)


def ink_pixels(texture: str, *, dx: Floats, dy: Floats, period: float, turn: float = 0.0) -> Ink:
    """Which pixels (h, w) a texture inks. ``dx`` (w,) and ``dy`` (h,) are offsets from the object's centre, in pixels; ``period`` is the
    distance of its repeats; ``turn`` (radians, clockwise) turns it with the object.

    Raises:
        ConfigError: an unknown texture.
    """
    if texture not in _RULES:
        raise ConfigError(f"unknown texture {texture!r}; known are {TEXTURES}")
    across, down = np.broadcast_arrays(dx[None, :], dy[:, None])
    if turn:
        across, down = across * math.cos(turn) + down * math.sin(turn), down * math.cos(turn) - across * math.sin(turn)
    return _RULES[texture](across, down, period)
