"""Pictures of scenes: noisy grey ground, anti-aliased outlines, dark stripes. The same scene gives the same pixels."""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visloop.ids import seed_for
from visloop.scenes.outlines import cover_pixels
from visloop.scenes.world import DEFAULT_WORLD, Objects, Scene, WorldSpec, check_scene

STRIPE_SHADE = 0.12
"""A stripe keeps this share of the object's colour: almost black, so it shows on every colour, yellow and blue alike."""


def _draw_box(objects: Objects, *, seed: int, side: int, spec: WorldSpec) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    cell = side / spec.grid
    pixels = rng.integers(-spec.noise, spec.noise + 1, size=(side, side, 3)).astype(np.float64) + spec.background
    colors = {color.name: color.rgb for color in spec.colors}
    outlines = {shape.name: shape.outline for shape in spec.shapes}
    radii = {size.name: size.radius for size in spec.sizes}
    striped = {pattern.name: pattern.stripes for pattern in spec.patterns}
    for entry in objects:
        shift = rng.uniform(-spec.jitter, spec.jitter, size=2) * cell
        radius = radii[entry.size] * cell * rng.uniform(0.95, 1.05)
        color = np.array(colors[entry.color]) + rng.uniform(-spec.color_jitter, spec.color_jitter, size=3)
        center = (np.array([entry.column, entry.row]) - 0.5) * cell + shift
        left, top = np.maximum(np.floor(center - radius - 1).astype(int), 0)
        right, bottom = np.minimum(np.ceil(center + radius + 1).astype(int), side)
        dx = np.arange(left, right) + 0.5 - center[0]
        dy = np.arange(top, bottom) + 0.5 - center[1]
        cover = cover_pixels(outlines[entry.shape], dx=dx, dy=dy, radius=radius)[:, :, None]
        shade = np.ones(len(dy))
        if striped[entry.pattern]:
            # A coloured band lies on the centre; bands of half a period alternate above and below it.
            period = max(4.0, spec.stripe * cell)
            shade[np.floor(dy / (period / 2) + 0.5).astype(int) % 2 == 1] = STRIPE_SHADE
        patch = pixels[top:bottom, left:right]
        patch += cover * (color[None, None, :] * shade[:, None, None] - spec.background)
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


def draw_contact_sheet(scenes: list[Scene], *, columns: int = 8, zoom: int = 2, spec: WorldSpec = DEFAULT_WORLD) -> Image.Image:
    """All pictures of ``scenes`` on one sheet, enlarged ``zoom`` times without smoothing, for people to look at."""
    pictures = [picture for scene in scenes for picture in render_scene(scene, spec=spec)]
    side = max(picture.width for picture in pictures) * zoom + 4
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for index, picture in enumerate(pictures):
        enlarged = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (index % columns * side, index // columns * side))
    return sheet
