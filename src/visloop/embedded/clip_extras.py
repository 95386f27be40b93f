"""What the embedded CLIP sees beyond the words of its world: random outlines, tiles and colours under code names.

A CLIP that knows three patterns has features for three patterns, and no prompt can teach it a fourth. A large CLIP has seen far more than
it is asked about; the extras stand for that. None of them is a novel word's outline, texture or colour, and none is a word of the tools.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visloop.scenes.outlines import cover_pixels
from visloop.scenes.textures import ink_pixels
from visloop.scenes.world import StyledWorld

Points = tuple[tuple[float, float], ...]
Tile = NDArray[np.bool_]
SUPERSAMPLING = 4
LARGEST_OVERLAP = 0.9
"""An extra outline whose intersection over union with a novel shape's is larger is not used."""
SMALLEST_SHARE = 0.15
"""An extra outline covers at least this share of the canvas: a sliver would vanish at ten pixels."""
CANVAS = 52


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extras:
    """Code names and what is drawn for them: closed outlines inside the unit square, tiles of ink, mean RGB."""

    outlines: dict[str, Points]
    tiles: dict[str, Tile]
    colors: dict[str, tuple[int, int, int]]


def draw_extras(*, shapes: int, patterns: int, colors: int, known: StyledWorld, novel: StyledWorld, seed: int) -> Extras:
    """Random extras that are neither words of ``known`` nor of ``novel``; the same seed gives the same."""
    rng = random.Random(seed)
    strangers = [_raster_outline(shape.outline) for shape in novel.shapes if shape not in known.shapes]
    outlines: dict[str, Points] = {}
    kinds = (_draw_blob, _draw_polygon, _draw_convex, _draw_segment)
    while len(outlines) < shapes:
        points = kinds[len(outlines) % len(kinds)](rng)
        drawn = _raster_points(points)
        if drawn.mean() >= SMALLEST_SHARE and all((drawn & other).sum() / (drawn | other).sum() <= LARGEST_OVERLAP for other in strangers):
            outlines[f"s{len(outlines)}x"] = points
    tiles: dict[str, Tile] = {}
    while len(tiles) < patterns:
        tile = _draw_tile(rng)
        if not _is_lines(tile) and not _is_lines(~tile) and not any(np.array_equal(tile, other) for other in tiles.values()):
            tiles[f"t{len(tiles)}x"] = tile
    taken = [color.rgb for color in novel.colors]
    palette: dict[str, tuple[int, int, int]] = {}
    for index in range(colors):
        candidates = [(rng.randrange(15, 245), rng.randrange(15, 245), rng.randrange(15, 245)) for _ in range(200)]
        palette[f"c{index}x"] = max(candidates, key=lambda rgb: min(math.dist(rgb, other) for other in taken))
        taken.append(palette[f"c{index}x"])
    return Extras(outlines=outlines, tiles=tiles, colors=palette)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One object to draw: an outline of the world or an extra one, a texture or a tile, a mean RGB."""

    outline: str | Points
    pattern: str | Tile
    rgb: tuple[int, int, int]


def draw_object(look: Look, *, world: StyledWorld, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture (52, 52, 3) of one object on the world's ground, drawn in the world's style, and the object's mask."""
    rng = np.random.default_rng(seed)
    cell = world.canvas / world.grid
    turn = float(rng.uniform(-world.style.turn, world.style.turn)) if world.style.turn else 0.0
    size = world.sizes[rng.integers(len(world.sizes))]
    radius = size.radius * cell * rng.uniform(1 - world.style.scale_jitter, 1 + world.style.scale_jitter)
    center = CANVAS / 2 + rng.uniform(-1, 1, 2)
    dx, dy = np.arange(CANVAS) + 0.5 - center[0], np.arange(CANVAS) + 0.5 - center[1]
    if isinstance(look.outline, str):
        cover = cover_pixels(look.outline, dx=dx, dy=dy, radius=radius, turn=turn)
    else:
        cover = _cover_points(look.outline, center=(float(center[0]), float(center[1])), radius=radius, turn=turn)
    ground = rng.integers(-world.noise, world.noise + 1, (CANVAS, CANVAS, 3)) + world.background + rng.uniform(-1, 1, 3) * world.style.tint
    color = np.array(look.rgb) + rng.uniform(-world.color_jitter, world.color_jitter, 3)
    ink = _ink_pattern(look.pattern, dx=dx, dy=dy, period=max(4.0, world.stripe * cell), turn=turn, rng=rng)
    dark = color * 0.12 if color.mean() >= 70 else np.full(3, 215.0)
    drawn = np.where(ink[:, :, None], dark, color)
    noisy = ground - ground.mean((0, 1))
    pixels = ground.mean((0, 1)) * (1 - cover[:, :, None]) + drawn * cover[:, :, None] + noisy
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), cover >= 0.5


def _ink_pattern(
    pattern: str | Tile, *, dx: NDArray[np.float64], dy: NDArray[np.float64], period: float, turn: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    if isinstance(pattern, str):
        return ink_pixels(pattern, dx=dx, dy=dy, period=period, turn=turn) if pattern else np.zeros((len(dy), len(dx)), np.bool_)
    step, shift = period * rng.uniform(0.25, 0.45), rng.uniform(0, 4 * period, 2)
    across = dx[None, :] * math.cos(turn) + dy[:, None] * math.sin(turn) + shift[0]
    down = dy[:, None] * math.cos(turn) - dx[None, :] * math.sin(turn) + shift[1]
    rows, columns = pattern.shape
    inked: NDArray[np.bool_] = pattern[np.floor(down / step).astype(int) % rows, np.floor(across / step).astype(int) % columns]
    return inked


def _fit(points: Sequence[tuple[float, float]]) -> Points:
    """Points moved and scaled so that they fill the unit square (-1 to 1) in their longer direction."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scale = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    center_x, center_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return tuple(((x - center_x) / scale, (y - center_y) / scale) for x, y in points)


def _draw_polygon(rng: random.Random) -> Points:
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 8)))
    return _fit([(rng.uniform(0.35, 1) * math.cos(angle), rng.uniform(0.35, 1) * math.sin(angle)) for angle in angles])


def _draw_blob(rng: random.Random) -> Points:
    waves = [(rng.uniform(-0.25, 0.25), rng.uniform(0, 2 * math.pi)) for _ in range(4)]
    angles = [2 * math.pi * index / 40 for index in range(40)]
    radii = [0.7 + sum(size * math.cos((wave + 2) * angle + phase) for wave, (size, phase) in enumerate(waves)) for angle in angles]
    return _fit([(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)])


def _draw_convex(rng: random.Random) -> Points:
    """A polygon whose corners lie on an ellipse, rather evenly: what differs little from a circle and from its neighbours in number."""
    corners, squash = rng.choice((4, 5, 7, 8, 10)), rng.uniform(0.6, 1)
    angles = [2 * math.pi * (index + rng.uniform(-0.25, 0.25)) / corners for index in range(corners)]
    return _fit([(math.cos(angle), squash * math.sin(angle)) for angle in angles])


def _draw_segment(rng: random.Random) -> Points:
    """A circle from which one to three straight cuts take a part."""
    points = [(math.cos(angle), math.sin(angle)) for angle in (2 * math.pi * index / 60 for index in range(60))]
    for _ in range(rng.randint(1, 3)):
        toward, depth = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.8)
        across, along = math.cos(toward), math.sin(toward)
        beyond = [max(0.0, x * across + y * along - depth) for x, y in points]
        points = [(x - over * across, y - over * along) for (x, y), over in zip(points, beyond, strict=True)]
    return _fit(points)


def _draw_tile(rng: random.Random) -> Tile:
    rows, columns, share = rng.randint(2, 4), rng.randint(2, 4), rng.uniform(0.25, 0.65)
    return np.array([[rng.random() < share for _ in range(columns)] for _ in range(rows)])


def _is_lines(tile: Tile) -> bool:
    """Whether a tile is nothing but full rows and full columns (or is even): stripes and grids are for the tools to learn."""
    lines = tile.all(axis=1)[:, None] | tile.all(axis=0)[None, :]
    return bool(np.array_equal(tile, lines))


def _cover_points(points: Points, *, center: tuple[float, float], radius: float, turn: float, side: int = CANVAS) -> NDArray[np.float64]:
    """How much of each pixel (side, side) a closed outline covers, 0 to 1."""
    canvas = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    cosine, sine = math.cos(turn), math.sin(turn)
    corners = [
        ((center[0] + radius * (cosine * x - sine * y)) * SUPERSAMPLING, (center[1] + radius * (sine * x + cosine * y)) * SUPERSAMPLING)
        for x, y in points
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float64) / 255


def _raster_points(points: Points) -> NDArray[np.bool_]:
    return _cover_points(points, center=(26.0, 26.0), radius=24.0, turn=0.0) >= 0.5


def _raster_outline(outline: str) -> NDArray[np.bool_]:
    offsets = np.arange(CANVAS, dtype=np.float64) - 25.5
    return cover_pixels(outline, dx=offsets, dy=offsets, radius=24.0) >= 0.5
