"""Crops that the embedded CLIP learns from and is measured on: cut from drawn pictures exactly as the tools cut them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visloop.embedded.clip_extras import Extras, Look, draw_object
from visloop.ids import seed_for
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import locate_objects
from visloop.scenes.world import Attribute, Scene, SceneObject, StyledWorld, draw_scene, make_scene
from visloop.tools.crops import cut_crop
from visloop.tools.proposals import propose_regions
from visloop.tools.values import Box, Mask, overlap_ratio

GROUPS: tuple[Attribute, ...] = ("pattern", "color", "shape")
"""The attributes that captions speak of, in the order of English."""
SIDE = 32
BOX_JITTER = 0.07
"""How far an edge of an unmasked crop's box may be off, as a share of the box's side."""
UNMASKED_SHARE = 0.4
LEAST_OVERLAP = 0.5
BOX_SCALE_JITTER, BOX_SHIFT = 0.1, 0.5
"""How far an object of a box may differ from its size (a share of its radius) and lie off its cell (pixels): of a radius for which a square
is as wide as NLVR's, a circle is a tenth wider than NLVR's, and ten pixels across a single one decides between circle and square."""
NLVR_SHAPES, NLVR_COLORS = ("circle", "square", "triangle"), ("yellow", "black", "blue")


@dataclass(frozen=True, slots=True, eq=False)
class CropSet:
    """Crops (n, 32, 32, 3) with the word of every group for each."""

    images: NDArray[np.uint8]
    words: Mapping[Attribute, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.images)


def join_crops(sets: Sequence[CropSet]) -> CropSet:
    """All crops of several sets."""
    words = {group: tuple(word for entry in sets for word in entry.words[group]) for group in GROUPS}
    return CropSet(np.concatenate([entry.images for entry in sets]), words)


def draw_scene_crops(count: int, *, world: StyledWorld, seed: int) -> CropSet:
    """Crops of the objects of random scenes of a world."""
    scenes = (draw_scene(seed_for(seed, "clip", index), spec=world) for index in range(count))
    return _gather(scenes, count=count, world=world, seed=seed)


def draw_box_crops(count: int, *, world: StyledWorld, seed: int) -> CropSet:
    """Crops of NLVR's objects: circles, squares and triangles in yellow, black and blue, around three sizes, sometimes side by side."""
    varied = replace(world, jitter=BOX_SHIFT, style=replace(world.style, scale_jitter=BOX_SCALE_JITTER))
    scenes = (draw_box_scene(seed_for(seed, "boxes", index), varied) for index in range(count))
    return _gather(scenes, count=count, world=varied, seed=seed)


def draw_extra_crops(count: int, *, world: StyledWorld, extras: Extras, seed: int) -> CropSet:
    """Crops of single objects whose outline, tile and colour are the world's or an extra one."""
    rng = np.random.default_rng(seed_for(seed, "extras"))
    textures = dict(world.style.textures)
    outlines = {shape.name: shape.outline for shape in world.shapes} | extras.outlines
    patterns = {pattern.name: textures.get(pattern.name, "") for pattern in world.patterns} | extras.tiles
    colors = {color.name: color.rgb for color in world.colors} | extras.colors
    images, words = np.empty((count, SIDE, SIDE, 3), np.uint8), []
    for index in range(count):
        shape, pattern, color = (list(names)[rng.integers(len(names))] for names in (outlines, patterns, colors))
        look = Look(outline=outlines[shape], pattern=patterns[pattern], rgb=colors[color])
        pixels, mask = draw_object(look, world=world, seed=seed_for(seed, "extra", index))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = Box(left=float(columns[0]), top=float(rows[0]), right=float(columns[-1] + 1), bottom=float(rows[-1] + 1))
        images[index] = _cut(pixels, box, mask, rng)
        words.append((pattern, color, shape))
    return CropSet(images, {group: tuple(row[place] for row in words) for place, group in enumerate(GROUPS)})


def _gather(scenes: Iterator[Scene], *, count: int, world: StyledWorld, seed: int) -> CropSet:
    rng = np.random.default_rng(seed_for(seed, "jitter", world.name))
    images: list[NDArray[np.uint8]] = []
    words: list[tuple[str, ...]] = []
    while len(images) < count:
        for crop, entry in _cut_scene(next(scenes), world, rng):
            images.append(crop)
            words.append(tuple(getattr(entry, group) for group in GROUPS))
    return CropSet(np.stack(images[:count]), {group: tuple(row[place] for row in words[:count]) for place, group in enumerate(GROUPS)})


def _cut_scene(scene: Scene, world: StyledWorld, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.uint8], SceneObject]]:
    """Crops of the regions that the tools propose, each with the object that it shows; a region that fits no object is left out."""
    (picture,), (located,) = render_scene(scene, spec=world), locate_objects(scene, spec=world)
    pixels = np.asarray(picture)
    regions = propose_regions(picture)
    for found in located:
        left, top, right, bottom = found.box
        truth = Box(left=left, top=top, right=right, bottom=bottom)
        overlap, index = max(((overlap_ratio(box, truth), index) for index, (box, _) in enumerate(regions)), default=(0.0, -1))
        if overlap >= LEAST_OVERLAP:
            yield _cut(pixels, *regions[index], rng), found.entry


def _cut(pixels: NDArray[np.uint8], box: Box, mask: Mask, rng: np.random.Generator) -> NDArray[np.uint8]:
    if rng.random() < UNMASKED_SHARE:
        width, height = box.right - box.left, box.bottom - box.top
        off = rng.uniform(-BOX_JITTER, BOX_JITTER, 4) * (width, height, width, height)
        edges = dict(zip(("left", "top", "right", "bottom"), np.array(box.corners) + off, strict=True))
        crop = cut_crop(pixels, replace(box, **edges))
    else:
        crop = cut_crop(pixels, box, mask)
    return np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def draw_box_scene(seed: int, world: StyledWorld) -> Scene:
    """A random box of NLVR's objects that do not overlap, sometimes side by side."""
    rng = np.random.default_rng(seed)
    radii = {size.name: size.radius for size in world.sizes}
    placed: list[tuple[SceneObject, float]] = []
    for _ in range(rng.integers(2, 7)):
        size = list(radii)[rng.integers(len(radii))]
        reach = radii[size]
        column, row = (int(value) for value in rng.integers(round(reach) + 1, 100 - round(reach), 2))
        entry = SceneObject(
            shape=NLVR_SHAPES[rng.integers(3)], color=NLVR_COLORS[rng.integers(3)], size=size, pattern="plain", column=column, row=row
        )
        if all(max(abs(other.column - column), abs(other.row - row)) >= reach + far for other, far in placed):
            placed.append((entry, reach))
    return make_scene((tuple(entry for entry, _ in placed),), seed=seed)
