"""Scenes and the specification of the world they are drawn from.

A world is a value: shapes, colours, sizes, patterns, grid, canvas and object counts. Another world (more shapes, another
canvas, concepts with new names) is another ``WorldSpec``, never other code.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

from visloop.errors import ConfigError, DataError
from visloop.ids import hash_json, make_id, seed_for
from visloop.scenes.outlines import OUTLINES
from visloop.scenes.textures import TEXTURES

Attribute = Literal["size", "pattern", "color", "shape"]
ATTRIBUTES: tuple[Attribute, ...] = ("size", "pattern", "color", "shape")
"""In the order in which English puts them before a noun."""


RESERVED_WORDS = frozenset({"thing", "object", "item", "box", "picture", "find", "not", "none", "left", "right", "above", "below"})
"""Words with a meaning of their own in questions or steps."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A noun of the world: its name, its plural and the outline it is drawn with."""

    name: str
    plural: str
    outline: str


@dataclass(frozen=True, slots=True)
class Color:
    """A colour word and its mean RGB value (0-255)."""

    name: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Size:
    """A size word and the radius of such objects as a fraction of the cell's side."""

    name: str
    radius: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern word, how often it is drawn (relative weight) and whether it is drawn with dark stripes."""

    name: str
    weight: float
    stripes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """Everything that scenes of one world have in common. Counts are inclusive (least, most) per picture.

    ``canvas`` and ``box_canvas`` are side lengths in pixels of a single picture and of one of three boxes (NLVR: 100).
    ``jitter`` and ``stripe`` are fractions of the cell's side, ``color_jitter`` and ``noise`` are RGB levels.
    """

    name: str = "shapes"
    shapes: tuple[Shape, ...] = (
        Shape("circle", "circles", "circle"),
        Shape("square", "squares", "square"),
        Shape("triangle", "triangles", "triangle"),
    )
    colors: tuple[Color, ...] = (
        Color("red", (220, 45, 40)),
        Color("green", (45, 170, 65)),
        Color("blue", (55, 85, 230)),
        Color("yellow", (235, 210, 50)),
    )
    sizes: tuple[Size, ...] = (Size("small", 0.24), Size("large", 0.4))
    patterns: tuple[Pattern, ...] = (Pattern("plain", 0.75, False), Pattern("striped", 0.25, True))
    grid: int = 4
    canvas: int = 64
    box_canvas: int = 100
    objects: tuple[int, int] = (3, 6)
    box_objects: tuple[int, int] = (1, 4)
    jitter: float = 0.125
    stripe: float = 0.25
    color_jitter: int = 18
    background: int = 128
    noise: int = 14

    def __post_init__(self) -> None:
        for least, most in (self.objects, self.box_objects):
            if not 1 <= least <= most <= self.grid**2:
                raise ConfigError(f"world {self.name!r}: object counts {least}-{most} must lie in 1-{self.grid**2} (one object per cell)")
        unknown = [shape.outline for shape in self.shapes if shape.outline not in OUTLINES]
        if unknown:
            raise ConfigError(f"world {self.name!r}: unknown outlines {unknown}; known are {sorted(OUTLINES)}")
        names = [name for attribute in ATTRIBUTES for name in self.values(attribute)]
        if len(names) != len(set(names)):
            raise ConfigError(f"world {self.name!r}: a word names two attribute values in {names}")
        reserved = sorted(RESERVED_WORDS.intersection(names))
        if reserved:
            raise ConfigError(f"world {self.name!r}: {reserved} are words of the question grammar and cannot name attribute values")
        malformed = [name for name in names if not name.isalpha() or name != name.lower()]
        if malformed:
            raise ConfigError(f"world {self.name!r}: attribute values must be lower-case words of letters, got {malformed}")

    def values(self, attribute: Attribute) -> tuple[str, ...]:
        """The words of one attribute, in the order of the specification."""
        entries: dict[Attribute, tuple[Any, ...]] = {
            "size": self.sizes,
            "pattern": self.patterns,
            "color": self.colors,
            "shape": self.shapes,
        }
        return tuple(entry.name for entry in entries[attribute])


DEFAULT_WORLD = WorldSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a world is drawn beyond what every world has.

    ``textures`` names the texture of each pattern that is not plain; ``turn`` is the most that an object is turned, in radians;
    ``tint`` the most that the ground's red, green and blue differ from ``background``; ``scale_jitter`` the most that an object's
    radius differs from its size's, as a fraction. ``anchor`` says where in its cell an object's centre lies (0.5: in the middle), and
    ``separate`` keeps every object inside its cell.
    """

    textures: tuple[tuple[str, str], ...] = ()
    turn: float = 0.0
    tint: int = 0
    scale_jitter: float = 0.05
    anchor: float = 0.5
    separate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StyledWorld(WorldSpec):
    """A world with a style of its own."""

    style: Style = Style()

    def __post_init__(self) -> None:
        WorldSpec.__post_init__(self)
        patterns = {pattern.name for pattern in self.patterns}
        strangers = [entry for entry in self.style.textures if entry[0] not in patterns or entry[1] not in TEXTURES]
        if strangers:
            raise ConfigError(
                f"world {self.name!r}: textures {strangers} must pair patterns of {sorted(patterns)} with textures of {TEXTURES}"
            )


def find_style(spec: WorldSpec) -> Style:
    """The world's own style; without one, striped patterns have stripes and nothing else is special."""
    if isinstance(spec, StyledWorld):
        return spec.style
    return Style(textures=tuple((pattern.name, "stripes") for pattern in spec.patterns if pattern.stripes))


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. ``column`` and ``row`` count from 1 at the top left; a cell holds at most one object."""

    shape: str
    color: str
    size: str
    pattern: str
    column: int
    row: int


Objects = tuple[SceneObject, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """What one sample's pictures show: one box (a single canvas) or three (a statement's scene).

    Objects of a box are sorted by (row, column). ``seed`` decides jitter and noise only.
    """

    id: str
    boxes: tuple[Objects, ...]
    seed: int


def hash_content(boxes: tuple[Objects, ...]) -> str:
    """SHA-256 of what can be asked about: the objects of every box, not their noise. Splits are decided by it."""
    return hash_json([[asdict(entry) for entry in box] for box in boxes])


def make_scene(boxes: tuple[Objects, ...], *, seed: int) -> Scene:
    """A scene of given objects; they are sorted, and its id is a function of its content and seed.

    Raises:
        DataError: two objects in one cell, or a box without objects.
    """
    for number, box in enumerate(boxes, start=1):
        cells = {(entry.row, entry.column) for entry in box}
        if not box or len(cells) != len(box):
            raise DataError(f"box {number} must hold at least one object and at most one per cell, got {box}")
    ordered = tuple(tuple(sorted(box, key=lambda entry: (entry.row, entry.column))) for box in boxes)
    return Scene(id=make_id("scene", hash_content(ordered), seed), boxes=ordered, seed=seed)


def draw_scene(seed: int, *, spec: WorldSpec = DEFAULT_WORLD, boxes: int = 1) -> Scene:
    """A random scene; the same seed gives the same scene. ``boxes`` > 1 uses the object counts of boxes."""
    rng = random.Random(seed_for(seed, "scene", spec.name, boxes))
    weights = [pattern.weight for pattern in spec.patterns]
    least, most = spec.objects if boxes == 1 else spec.box_objects
    drawn = []
    for _ in range(boxes):
        cells = rng.sample(range(spec.grid**2), rng.randint(least, most))
        drawn.append(
            tuple(
                SceneObject(
                    shape=rng.choice(spec.shapes).name,
                    color=rng.choice(spec.colors).name,
                    size=rng.choice(spec.sizes).name,
                    pattern=rng.choices(spec.patterns, weights)[0].name,
                    column=cell % spec.grid + 1,
                    row=cell // spec.grid + 1,
                )
                for cell in cells
            )
        )
    return make_scene(tuple(drawn), seed=rng.getrandbits(48))


def check_scene(scene: Scene, *, spec: WorldSpec) -> None:
    """Refuse a scene that is not of this world.

    Raises:
        DataError: an object outside the grid, or a word the world does not have.
    """
    for number, box in enumerate(scene.boxes, start=1):
        for entry in box:
            unknown = [getattr(entry, attribute) for attribute in ATTRIBUTES if getattr(entry, attribute) not in spec.values(attribute)]
            if unknown or not (1 <= entry.column <= spec.grid and 1 <= entry.row <= spec.grid):
                raise DataError(
                    f"scene {scene.id}, box {number}: {entry} is not of world {spec.name!r}; expected words of the world "
                    f"and a column and row in 1-{spec.grid}"
                )


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values."""
    return asdict(scene) | {"boxes": [[asdict(entry) for entry in box] for box in scene.boxes]}


def scene_from_json(value: dict[str, Any]) -> Scene:
    """Read a scene written by ``scene_to_json``.

    Raises:
        DataError: a missing key, an unknown field, or an id that does not belong to the content.
    """
    try:
        boxes = tuple(tuple(SceneObject(**entry) for entry in box) for box in value["boxes"])
        scene = make_scene(boxes, seed=value["seed"])
        stored = value["id"]
    except (KeyError, TypeError) as error:
        raise DataError(f"malformed scene: {error}; expected keys id, boxes, seed") from error
    if scene.id != stored:
        raise DataError(f"scene {stored!r} does not fit its content, whose id is {scene.id!r}")
    return scene
