"""Pictures of scenes: noisy grey ground, anti-aliased outlines, dark stripes. The same scene gives the same pixels."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visloop.ids import seed_for
from visloop.scenes.outlines import cover_pixels
from visloop.scenes.textures import ink_pixels
from visloop.scenes.world import DEFAULT_WORLD, Objects, Scene, SceneObject, WorldSpec, check_scene, find_style

STRIPE_SHADE = 0.12
"""A stripe keeps this share of the object's colour: almost black, so it shows on every colour, yellow and blue alike."""
DARK = 60.0
"""Mean level, 0-255, below which an object is too dark for dark ink."""
LIGHT_INK = 215.0


@dataclass(frozen=True, slots=True, eq=False)
class PlacedObject:
    """Where and how one object is drawn: centre (x, y) and radius in pixels, turn in radians, mean RGB."""

    entry: SceneObject
    center: NDArray[np.float64]
    radius: float
    turn: float
    color: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One picture before it is drawn: its noisy ground (h, w, 3), the ground's mean RGB, and its objects."""

    ground: NDArray[np.float64]
    tone: NDArray[np.float64]
    placed: tuple[PlacedObject, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The part of a picture that an object may cover, with the offsets of its pixel centres from the object's centre."""

    rows: slice
    columns: slice
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]


def lay_out(objects: Objects, *, seed: int, side: int, spec: WorldSpec) -> Layout:
    """Draw the ground and the places of the objects; the same arguments give the same layout."""
    rng = np.random.default_rng(seed)
    style = find_style(spec)
    cell = side / spec.grid
    ground = rng.integers(-spec.noise, spec.noise + 1, size=(side, side, 3)).astype(np.float64) + spec.background
    tone = np.full(3, float(spec.background))
    if style.tint:
        tint = rng.uniform(-style.tint, style.tint, size=3)
        ground, tone = ground + tint, tone + tint
    colors = {color.name: color.rgb for color in spec.colors}
    radii = {size.name: size.radius for size in spec.sizes}
    placed = []
    for entry in objects:
        shift = rng.uniform(-spec.jitter, spec.jitter, size=2) * cell
        radius = float(radii[entry.size] * cell * rng.uniform(1 - style.scale_jitter, 1 + style.scale_jitter))
        color = np.array(colors[entry.color]) + rng.uniform(-spec.color_jitter, spec.color_jitter, size=3)
        turn = float(rng.uniform(-style.turn, style.turn)) if style.turn else 0.0
        if style.separate:
            # A turned object reaches up to 1.06 radii along the axes; one pixel of ground stays on each side.
            room = max(0.0, cell / 2 - 1.06 * radius - 1)
            shift = np.clip(shift, -room, room)
        center = (np.array([entry.column, entry.row]) - 1 + style.anchor) * cell + shift
        placed.append(PlacedObject(entry, center, radius, turn, color))
    return Layout(ground, tone, tuple(placed))


def open_window(placed: PlacedObject, *, side: int) -> Window:
    """The window of an object in a picture of ``side`` pixels."""
    # A turned square reaches beyond its radius: its corners lie 1.27 radii away.
    reach = placed.radius * (1.28 if placed.turn else 1.0) + 1
    left, top = np.maximum(np.floor(placed.center - reach).astype(int), 0)
    right, bottom = np.minimum(np.ceil(placed.center + reach).astype(int), side)
    dx = np.arange(left, right) + 0.5 - placed.center[0]
    dy = np.arange(top, bottom) + 0.5 - placed.center[1]
    return Window(slice(top, bottom), slice(left, right), dx, dy)


def cover_window(placed: PlacedObject, window: Window, *, spec: WorldSpec) -> NDArray[np.float64]:
    """How much of each pixel of its window an object covers, 0 to 1."""
    outlines = {shape.name: shape.outline for shape in spec.shapes}
    return cover_pixels(outlines[placed.entry.shape], dx=window.dx, dy=window.dy, radius=placed.radius, turn=placed.turn)


def choose_ink(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """Almost black, so that a texture shows on every colour; light grey on black itself."""
    return color * STRIPE_SHADE if color.mean() >= DARK else np.full(3, LIGHT_INK)


def _draw_box(objects: Objects, *, seed: int, side: int, spec: WorldSpec) -> NDArray[np.uint8]:
    layout = lay_out(objects, seed=seed, side=side, spec=spec)
    textures = dict(find_style(spec).textures)
    cell = side / spec.grid
    pixels = layout.ground
    for placed in layout.placed:
        window = open_window(placed, side=side)
        cover = cover_window(placed, window, spec=spec)[:, :, None]
        color = np.broadcast_to(placed.color, (*cover.shape[:2], 3))
        if placed.entry.pattern in textures:
            texture, period = textures[placed.entry.pattern], max(4.0, spec.stripe * cell)
            ink = ink_pixels(texture, dx=window.dx, dy=window.dy, period=period, turn=placed.turn)
            color = np.where(ink[:, :, None], choose_ink(placed.color), color)
        patch = pixels[window.rows, window.columns]
        patch += cover * (color - layout.tone)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def render_scene(scene: Scene, *, spec: WorldSpec = DEFAULT_WORLD) -> list[Image.Image]:
    """One RGB picture per box: ``spec.canvas`` pixels square for a single box, ``spec.box_canvas`` for each of several.

    Raises:
        DataError: the scene is not of the world ``spec``.
    """
    check_scene(scene, spec=spec)
    side = spec.canvas if len(scene.boxes) == 1 else spec.box_canvas
    return [
        Image.fromarray(_draw_box(box, seed=seed_for(scene.seed, "picture", index), side=side, spec=spec))
        for index, box in enumerate(scene.boxes)
    ]


def encode_png(picture: Image.Image) -> tuple[bytes, str]:
    """The PNG bytes of a picture and their SHA-256."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()
