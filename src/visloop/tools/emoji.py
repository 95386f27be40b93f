"""A handful of emojis, drawn as circles, arcs and lines so that no font and no picture file is needed."""

import math
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageDraw

from visloop.errors import ToolError

_SCALE = 4
"""Drawn so many times larger, then shrunk: Pillow's lines are not anti-aliased."""
_SKIN, _INK, _RED, _ANGRY, _BLUE, _GOLD = "#ffcc33", "#4a3410", "#d7263d", "#f0803c", "#4aa3df", "#f5b301"


class _Pen:
    """Draws in units of the emoji: (0, 0) is the left top, (1, 1) the right bottom."""

    def __init__(self, side: int) -> None:
        self.side = side * _SCALE
        self.image = Image.new("RGBA", (self.side, self.side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        self.draw.ellipse([(value * self.side) for value in (x - rx, y - ry, x + rx, y + ry)], fill=fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float) -> None:
        corners = [(value * self.side) for value in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.arc(corners, start, end, fill=_INK, width=max(1, round(0.05 * self.side)))

    def line(self, *points: tuple[float, float]) -> None:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.draw.line(scaled, fill=_INK, width=max(1, round(0.05 * self.side)))

    def shape(self, *points: tuple[float, float], fill: str) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=fill)

    def face(self, fill: str = _SKIN, *, eyes: bool = True) -> None:
        self.oval(0.5, 0.5, 0.49, 0.49, fill)
        if eyes:
            for x in (0.34, 0.66):
                self.oval(x, 0.4, 0.055, 0.085, _INK)


def _smiling(pen: _Pen) -> None:
    pen.face()
    pen.arc(0.5, 0.52, 0.27, 0.26, 20, 160)


def _sad(pen: _Pen) -> None:
    pen.face()
    pen.arc(0.5, 0.86, 0.22, 0.22, 215, 325)


def _crying(pen: _Pen) -> None:
    _sad(pen)
    pen.oval(0.3, 0.62, 0.06, 0.11, _BLUE)


def _winking(pen: _Pen) -> None:
    pen.face(eyes=False)
    pen.oval(0.34, 0.4, 0.055, 0.085, _INK)
    pen.line((0.57, 0.4), (0.76, 0.4))
    pen.arc(0.5, 0.52, 0.27, 0.26, 20, 160)


def _neutral(pen: _Pen) -> None:
    pen.face()
    pen.line((0.33, 0.7), (0.67, 0.7))


def _surprised(pen: _Pen) -> None:
    pen.face()
    pen.oval(0.5, 0.7, 0.1, 0.13, _INK)


def _angry(pen: _Pen) -> None:
    pen.face(_ANGRY)
    pen.line((0.22, 0.24), (0.42, 0.34))
    pen.line((0.78, 0.24), (0.58, 0.34))
    pen.arc(0.5, 0.86, 0.22, 0.2, 215, 325)


def _sunglasses(pen: _Pen) -> None:
    pen.face(eyes=False)
    pen.line((0.1, 0.36), (0.9, 0.36))
    for x in (0.32, 0.68):
        pen.oval(x, 0.42, 0.15, 0.12, "#202020")
    pen.arc(0.5, 0.54, 0.25, 0.24, 20, 160)


def _heart(pen: _Pen) -> None:
    for x in (0.29, 0.71):
        pen.oval(x, 0.33, 0.235, 0.235, _RED)
    pen.shape((0.075, 0.43), (0.925, 0.43), (0.5, 0.95), fill=_RED)
    pen.shape((0.29, 0.33), (0.71, 0.33), (0.71, 0.5), (0.29, 0.5), fill=_RED)


def _star(pen: _Pen) -> None:
    points = []
    for index in range(10):
        angle, reach = math.pi * index / 5 - math.pi / 2, 0.49 if index % 2 == 0 else 0.2
        points.append((0.5 + reach * math.cos(angle), 0.52 + reach * math.sin(angle)))
    pen.shape(*points, fill=_GOLD)


_DRAWINGS: Final[dict[str, Callable[[_Pen], None]]] = {
    "smiling_face": _smiling,
    "sad_face": _sad,
    "crying_face": _crying,
    "winking_face": _winking,
    "neutral_face": _neutral,
    "surprised_face": _surprised,
    "angry_face": _angry,
    "smiling_face_with_sunglasses": _sunglasses,
    "red_heart": _heart,
    "star": _star,
}
EMOJIS: Final[tuple[str, ...]] = tuple(_DRAWINGS)
"""The names that ``draw_emoji`` knows."""


def draw_emoji(name: str, *, side: int) -> Image.Image:
    """The emoji as an RGBA picture, ``side`` pixels square. Blanks and hyphens count as underscores, colons around it are dropped.

    Raises:
        ToolError: no emoji has this name; the message lists those there are.
    """
    plain = name.strip().strip(":").lower().replace("-", "_").replace(" ", "_")
    if plain not in _DRAWINGS:
        raise ToolError(f"no emoji is called {name!r}; there are {', '.join(EMOJIS)}")
    pen = _Pen(max(1, side))
    _DRAWINGS[plain](pen)
    return pen.image.resize((max(1, side), max(1, side)), Image.Resampling.LANCZOS)
