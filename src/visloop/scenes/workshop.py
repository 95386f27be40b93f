"""The world of the assistant: 96x96 pictures with 2-6 objects, and NLVR-like triples of 100x100 boxes (CLOVA's tasks, drawn).

Its words are of two kinds. *Base* words are what the shipped tools were trained on; *novel* words they have never seen, and have to
learn from feedback. ``WORKSHOP_BASE`` and ``BOXES_BASE`` are the same worlds without the novel words: what base tools may be trained on.
"""

from dataclasses import replace
from typing import Final

from visloop.scenes.world import ATTRIBUTES, Attribute, Color, Pattern, Shape, Size, Style, StyledWorld

NOUN: Final = "object"
"""The noun of a phrase that names no shape."""

BASE_SHAPES: Final = (
    Shape("circle", "circles", "circle"),
    Shape("square", "squares", "square"),
    Shape("triangle", "triangles", "triangle"),
    Shape("diamond", "diamonds", "diamond"),
    Shape("cross", "crosses", "cross"),
    Shape("pentagon", "pentagons", "pentagon"),
    Shape("heart", "hearts", "heart"),
    Shape("bar", "bars", "bar"),
    Shape("pillar", "pillars", "pillar"),
    Shape("arrow", "arrows", "arrow"),
)
NOVEL_SHAPES: Final = (
    Shape("star", "stars", "star"),
    Shape("hexagon", "hexagons", "hexagon"),
    Shape("semicircle", "semicircles", "semicircle"),
)
BASE_COLORS: Final = (
    Color("red", (220, 45, 40)),
    Color("green", (45, 170, 65)),
    Color("blue", (55, 85, 230)),
    Color("yellow", (240, 215, 50)),
    Color("orange", (245, 130, 20)),
    Color("purple", (135, 45, 175)),
    Color("black", (25, 25, 28)),
)
NOVEL_COLORS: Final = (Color("pink", (245, 150, 195)), Color("teal", (15, 135, 140)), Color("brown", (132, 78, 38)))
BASE_PATTERNS: Final = (Pattern("plain", 0.5, False), Pattern("dotted", 0.25, False), Pattern("checkered", 0.25, False))
NOVEL_PATTERNS: Final = (Pattern("striped", 0.25, True), Pattern("grid", 0.25, False))

_TEXTURES = (("dotted", "dots"), ("checkered", "checks"), ("striped", "stripes"), ("grid", "grid"))
_BASE_TEXTURES = tuple(entry for entry in _TEXTURES if entry[0] in {pattern.name for pattern in BASE_PATTERNS})
_STYLE = Style(textures=_TEXTURES, turn=0.19, tint=16, separate=True)

WORKSHOP: Final = StyledWorld(
    name="workshop",
    shapes=BASE_SHAPES + NOVEL_SHAPES,
    colors=BASE_COLORS + NOVEL_COLORS,
    sizes=(Size("small", 0.28), Size("medium", 0.35), Size("large", 0.42)),
    patterns=BASE_PATTERNS + NOVEL_PATTERNS,
    grid=3,
    canvas=96,
    box_canvas=96,
    objects=(2, 6),
    box_objects=(2, 6),
    jitter=0.15,
    stripe=0.21,
    color_jitter=16,
    background=132,
    noise=10,
    style=_STYLE,
)
"""Single pictures: cells of 32 pixels, objects 17 to 28 pixels across and turned by at most 11 degrees, each inside its cell."""

BOXES: Final = StyledWorld(
    name="boxes",
    shapes=WORKSHOP.shapes,
    colors=tuple(
        replace(color, rgb={"yellow": (250, 220, 20), "blue": (0, 130, 255), "black": (0, 0, 0)}.get(color.name, color.rgb))
        for color in WORKSHOP.colors
    ),
    sizes=(Size("small", 5.5), Size("medium", 11.0), Size("large", 16.5)),
    patterns=WORKSHOP.patterns,
    grid=100,
    canvas=100,
    box_canvas=100,
    objects=(1, 6),
    box_objects=(1, 6),
    jitter=0.0,
    stripe=7.0,
    color_jitter=0,
    background=211,
    noise=0,
    style=Style(textures=_TEXTURES, scale_jitter=0.0, anchor=1.0),
)
"""The three pictures of a statement, as NLVR draws them: 100x100 pixels, flat light grey, no jitter. A cell is one pixel and an object's
column and row are its centre; squares are 10, 20 and 30 pixels wide. Its scenes come from ``box_layouts``: random cells would overlap."""

WORKSHOP_BASE: Final = replace(
    WORKSHOP,
    shapes=BASE_SHAPES,
    colors=BASE_COLORS,
    patterns=BASE_PATTERNS,
    style=replace(_STYLE, textures=_BASE_TEXTURES),
)
BOXES_BASE: Final = replace(
    BOXES,
    shapes=BASE_SHAPES,
    colors=BOXES.colors[: len(BASE_COLORS)],
    patterns=BASE_PATTERNS,
    style=replace(BOXES.style, textures=_BASE_TEXTURES),
)

BASE_WORDS: Final[dict[Attribute, tuple[str, ...]]] = {name: WORKSHOP_BASE.values(name) for name in ATTRIBUTES}
NOVEL_WORDS: Final[dict[Attribute, tuple[str, ...]]] = {
    name: tuple(word for word in WORKSHOP.values(name) if word not in BASE_WORDS[name]) for name in ATTRIBUTES
}
"""Words by attribute; sizes are all base."""
BASE_VOCABULARY: Final[tuple[str, ...]] = tuple(word for words in BASE_WORDS.values() for word in words)
"""Every base word: what the shipped tools know by name."""

NOVEL_CONCEPTS: Final[tuple[str, ...]] = tuple(word for name in ATTRIBUTES for word in NOVEL_WORDS[name])
"""Every novel word."""


def find_attribute(word: str) -> Attribute | None:
    """The attribute whose value a word is, or None."""
    return next((name for name in ATTRIBUTES if word in WORKSHOP.values(name)), None)
