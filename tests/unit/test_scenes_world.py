"""Scenes and pictures: what is drawn is what the scene says, and the same every time."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visloop.errors import ConfigError, DataError
from visloop.scenes.outlines import OUTLINES, cover_pixels
from visloop.scenes.pictures import encode_png, render_scene
from visloop.scenes.world import (
    DEFAULT_WORLD,
    Color,
    Scene,
    SceneObject,
    Shape,
    WorldSpec,
    draw_scene,
    hash_content,
    make_scene,
    scene_from_json,
    scene_to_json,
)

WIDE_WORLD = WorldSpec(
    name="wide",
    shapes=tuple(Shape(name, f"{name}s", name) for name in sorted(OUTLINES)),
    colors=(*DEFAULT_WORLD.colors, Color("orange", (245, 130, 20)), Color("purple", (130, 40, 160)), Color("cyan", (40, 200, 210))),
    canvas=96,
    objects=(3, 9),
)
THIN = {("bar", "small"), ("pillar", "small")}
WORLDS = st.sampled_from([DEFAULT_WORLD, WIDE_WORLD])
SEEDS = st.integers(0, 2**40)
BOXES = st.sampled_from([1, 3])


def read_cell(picture: np.ndarray, *, column: int, row: int, grid: int, margin: int = 0) -> np.ndarray:
    """The pixels (n, 3) of one cell, ``margin`` pixels in from its border."""
    cell = picture.shape[0] // grid
    top, left = (row - 1) * cell, (column - 1) * cell
    return picture[top + margin : top + cell - margin, left + margin : left + cell - margin].reshape(-1, 3).astype(float)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, boxes=BOXES, spec=WORLDS)
def test_scene_obeys_its_world(seed: int, boxes: int, spec: WorldSpec) -> None:
    scene = draw_scene(seed, spec=spec, boxes=boxes)
    least, most = spec.objects if boxes == 1 else spec.box_objects
    assert len(scene.boxes) == boxes
    for box in scene.boxes:
        assert least <= len(box) <= most
        cells = [(entry.row, entry.column) for entry in box]
        assert cells == sorted(set(cells))
        assert all(1 <= number <= spec.grid for cell in cells for number in cell)
    assert scene == draw_scene(seed, spec=spec, boxes=boxes)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, boxes=BOXES)
def test_scene_survives_json(seed: int, boxes: int) -> None:
    scene = draw_scene(seed, boxes=boxes)
    assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene


def test_scene_whose_content_was_changed_is_refused() -> None:
    value = scene_to_json(draw_scene(1))
    first = value["boxes"][0][0]
    first["color"] = "red" if first["color"] != "red" else "blue"
    with pytest.raises(DataError, match="does not fit its content"):
        scene_from_json(value)


@pytest.mark.parametrize("key", ["id", "boxes", "seed"])
def test_scene_without_a_key_is_refused(key: str) -> None:
    value = scene_to_json(draw_scene(1))
    del value[key]
    with pytest.raises(DataError, match="malformed scene"):
        scene_from_json(value)


def test_two_objects_in_a_cell_and_empty_boxes_are_refused() -> None:
    entry = SceneObject("circle", "red", "small", "plain", 1, 1)
    with pytest.raises(DataError, match="box 1"):
        make_scene(((entry, replace(entry, color="blue")),), seed=0)
    with pytest.raises(DataError, match="box 2"):
        make_scene(((entry,), ()), seed=0)


def test_content_hash_ignores_noise_and_order_but_not_objects() -> None:
    first, second = SceneObject("circle", "red", "small", "plain", 1, 1), SceneObject("square", "red", "small", "plain", 2, 1)
    scene = make_scene(((first, second),), seed=0)
    shuffled = make_scene(((second, first),), seed=9)
    assert hash_content(scene.boxes) == hash_content(shuffled.boxes)
    assert scene.id != shuffled.id
    assert hash_content(scene.boxes) != hash_content(make_scene(((first, replace(second, pattern="striped")),), seed=0).boxes)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, boxes=BOXES)
def test_rendering_is_deterministic_and_noise_follows_the_seed(seed: int, boxes: int) -> None:
    scene = draw_scene(seed, boxes=boxes)
    first, again = ([encode_png(picture) for picture in render_scene(scene)] for _ in range(2))
    assert first == again
    assert len(first) == boxes
    other = [encode_png(picture) for picture in render_scene(make_scene(scene.boxes, seed=scene.seed + 1))]
    assert not {digest for _, digest in first} & {digest for _, digest in other}


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, boxes=BOXES, spec=WORLDS)
def test_every_object_shows_its_color_and_pattern_and_empty_cells_are_grey(seed: int, boxes: int, spec: WorldSpec) -> None:
    scene = draw_scene(seed, spec=spec, boxes=boxes)
    palette = {color.name: np.array(color.rgb, dtype=float) for color in spec.colors}
    for box, image in zip(scene.boxes, render_scene(scene, spec=spec), strict=True):
        picture = np.asarray(image)
        side = spec.canvas if boxes == 1 else spec.box_canvas
        assert picture.shape == (side, side, 3)
        at = {(entry.column, entry.row): entry for entry in box}
        for column, row in product(range(1, spec.grid + 1), repeat=2):
            entry = at.get((column, row))
            if entry is None:
                pixels = read_cell(picture, column=column, row=row, grid=spec.grid, margin=2)
                assert np.abs(pixels - spec.background).max() <= spec.noise + 1
                continue
            pixels = read_cell(picture, column=column, row=row, grid=spec.grid)
            colored = pixels[np.ptp(pixels, axis=1) > 70]
            distances = {name: np.linalg.norm(colored - rgb, axis=1).mean() for name, rgb in palette.items()}
            assert len(colored) >= 8
            assert min(distances, key=distances.__getitem__) == entry.color
            # A neighbour's stripes may reach over the border: only the inside counts.
            inside = read_cell(picture, column=column, row=row, grid=spec.grid, margin=2)
            dark = int((inside.max(axis=1) < 75).sum())
            # A small bar is thinner than the way from one stripe to the next.
            assert dark == 0 if entry.pattern == "plain" else dark >= 4 or (entry.shape, entry.size) in THIN


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, shape=st.sampled_from(["circle", "square", "triangle"]), color=st.sampled_from(["red", "yellow"]))
def test_large_covers_more_than_small(seed: int, shape: str, color: str) -> None:
    areas = {}
    for size in ("small", "large"):
        picture = np.asarray(render_scene(make_scene(((SceneObject(shape, color, size, "plain", 2, 3),),), seed=seed))[0])
        areas[size] = int((np.ptp(picture.astype(int), axis=2) > 70).sum())
    assert areas["large"] > 1.8 * areas["small"]


@pytest.mark.parametrize("outline", sorted(OUTLINES))
def test_outline_covers_its_center_and_stays_in_its_circle(outline: str) -> None:
    offsets = np.arange(-15, 16) + 0.0
    cover = cover_pixels(outline, dx=offsets, dy=offsets, radius=10.0)
    assert cover[15, 15] == 1.0
    # The corners of a square of half side 0.9 reach a little past the circle: 0.9 * sqrt(2) = 1.27 radii.
    assert cover[np.hypot(*np.meshgrid(offsets, offsets)) > 14.0].max() == 0.0


def test_outlines_differ_from_each_other() -> None:
    offsets = np.arange(-6, 7) + 0.0
    masks = {name: cover_pixels(name, dx=offsets, dy=offsets, radius=5.0) for name in OUTLINES}
    for first, second in product(masks, repeat=2):
        if first != second:
            assert np.abs(masks[first] - masks[second]).sum() > 8, (first, second)


def test_cover_of_a_square_is_its_area() -> None:
    offsets = np.arange(-20, 21) + 0.0
    assert cover_pixels("square", dx=offsets, dy=offsets, radius=10.0).sum() == pytest.approx(18.0**2, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": (0, 3)},
        {"objects": (5, 4)},
        {"box_objects": (1, 17)},
        {"shapes": (Shape("blob", "blobs", "blob"),)},
        {"colors": (Color("circle", (1, 2, 3)),)},
        {"colors": (Color("dark red", (1, 2, 3)),)},
        {"colors": (Color("box", (1, 2, 3)),)},
    ],
)
def test_impossible_world_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="world 'shapes'"):
        replace(DEFAULT_WORLD, **changes)


@pytest.mark.parametrize("changes", [{"color": "orange"}, {"column": 5}, {"row": 0}])
def test_scene_of_another_world_is_not_rendered(changes: dict[str, object]) -> None:
    entry = replace(SceneObject("circle", "red", "small", "plain", 1, 1), **changes)
    with pytest.raises(DataError, match="box 1"):
        render_scene(Scene(id="s", boxes=((entry,),), seed=0))
