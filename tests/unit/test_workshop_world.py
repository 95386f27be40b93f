"""The assistant's world: exact regions, words that are apart, objects that can be told apart in pixels, and an unchanged default world."""

import hashlib
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from visloop.errors import ConfigError
from visloop.scenes.box_layouts import scatter_objects, stack_towers
from visloop.scenes.edits import EMOJIS, EditStep, apply_edits, draw_emoji
from visloop.scenes.filters import Filter
from visloop.scenes.outlines import cover_pixels, measure_outline
from visloop.scenes.pictures import render_scene
from visloop.scenes.recognize import read_object
from visloop.scenes.regions import LocatedObject, bound_mask, locate_objects
from visloop.scenes.textures import TEXTURES, ink_pixels
from visloop.scenes.workshop import BASE_WORDS, BOXES, BOXES_BASE, NOVEL_CONCEPTS, NOVEL_WORDS, WORKSHOP, WORKSHOP_BASE, find_attribute
from visloop.scenes.world import Scene, SceneObject, Style, StyledWorld, draw_scene, make_scene

SEEDS = st.integers(0, 2**40)


def locate(scene: Scene) -> tuple[np.ndarray, tuple[LocatedObject, ...]]:
    return np.asarray(render_scene(scene, spec=WORKSHOP)[0]).astype(float), locate_objects(scene, spec=WORKSHOP)[0]


def test_the_default_world_is_drawn_as_before() -> None:
    digest = hashlib.sha256()
    for number in range(40):
        for picture in render_scene(draw_scene(number, boxes=1 + 2 * (number % 2))):
            digest.update(picture.tobytes())
    assert digest.hexdigest() == "ec5f8dba01c4df0275b11f321a9b510a728585dec642cbffe642cb4faf96322e"


def test_base_and_novel_words() -> None:
    assert [len(BASE_WORDS[name]) for name in ("shape", "color", "pattern")] == [10, 7, 3]
    assert NOVEL_WORDS == {
        "size": (),
        "pattern": ("striped", "grid"),
        "color": ("pink", "teal", "brown"),
        "shape": ("star", "hexagon", "semicircle"),
    }
    assert not {word for words in BASE_WORDS.values() for word in words} & set(NOVEL_CONCEPTS)
    assert (find_attribute("star"), find_attribute("grid"), find_attribute("object")) == ("shape", "pattern", None)
    for spec, whole in ((WORKSHOP_BASE, WORKSHOP), (BOXES_BASE, BOXES)):
        assert all(set(spec.values(name)) == set(BASE_WORDS[name]) for name in ("shape", "color", "pattern"))
        assert whole.values("shape")[:10] == spec.values("shape")


def test_base_scenes_look_the_same_in_the_whole_world() -> None:
    scene = draw_scene(3, spec=WORKSHOP_BASE)
    assert render_scene(scene, spec=WORKSHOP_BASE)[0].tobytes() == render_scene(scene, spec=WORKSHOP)[0].tobytes()


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_regions_are_what_is_drawn(seed: int) -> None:
    scene = draw_scene(seed, spec=WORKSHOP)
    pixels, located = locate(scene)
    assert tuple(found.entry for found in located) == scene.boxes[0]
    occupied = np.zeros(pixels.shape[:2], dtype=int)
    for found in located:
        assert bound_mask(found.mask) == found.box
        assert (
            min(found.box[2] - found.box[0], found.box[3] - found.box[1]) >= 5
            and max(found.box[2] - found.box[0], found.box[3] - found.box[1]) <= 34
        )
        # One pixel of ground around every object: no two are one region.
        occupied += ndimage.binary_dilation(found.mask, structure=np.ones((3, 3)))
        column, row = found.entry.column, found.entry.row
        assert (
            (column - 1) * 32 <= found.box[0]
            and found.box[2] <= column * 32
            and (row - 1) * 32 <= found.box[1]
            and found.box[3] <= row * 32
        )
    for found in located:
        assert (occupied[found.mask] == 1).all()
    # The outermost pixels of a narrow tip are covered by less than a half and belong to nobody.
    free = ~ndimage.binary_dilation(occupied > 0, iterations=2)
    tone = np.median(pixels[free], axis=0)
    assert np.abs(pixels[free] - tone).max() <= 2 * WORKSHOP.noise + 2
    for found in located:
        # The object differs from the ground everywhere, whatever its colour and ink.
        assert (np.abs(pixels - tone).max(axis=2)[ndimage.binary_erosion(found.mask)] > WORKSHOP.noise + 20).mean() > 0.97


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_every_word_can_be_read_from_the_pixels(seed: int) -> None:
    pixels, located = locate(draw_scene(seed, spec=WORKSHOP))
    ground = ~np.logical_or.reduce([found.mask for found in located])
    tone = tuple(float(value) for value in np.median(pixels[ground], axis=0))
    right = 0
    for found in located:
        left, top, right_edge, bottom = found.box
        read = read_object(
            Image.fromarray(pixels.astype(np.uint8)), (left - 1, top - 1, right_edge + 1, bottom + 1), tone=tone, spec=WORKSHOP
        )
        assert read is not None and read.color == found.entry.color
        right += (read.shape, read.pattern) == (found.entry.shape, found.entry.pattern)
    # Small circles and thin gridded bars are now and then taken for their neighbours.
    assert right >= len(located) - 1


def test_nothing_is_read_from_empty_ground() -> None:
    scene = make_scene(((SceneObject("circle", "red", "small", "plain", 1, 1),),), seed=0)
    pixels, _ = locate(scene)
    assert read_object(render_scene(scene, spec=WORKSHOP)[0], (60, 60, 90, 90), tone=tuple(pixels[70, 70]), spec=WORKSHOP) is None  # type: ignore[arg-type]


def test_a_turned_outline_is_the_outline_turned() -> None:
    offsets = np.arange(-15, 16) + 0.0
    quarter = cover_pixels("arrow", dx=offsets, dy=offsets, radius=10.0, turn=np.pi / 2)
    assert np.allclose(quarter, np.rot90(cover_pixels("arrow", dx=offsets, dy=offsets, radius=10.0), -1), atol=1e-6)


def test_measured_outlines_are_what_is_drawn() -> None:
    offsets = np.arange(-60, 60) + 0.5
    for shape in WORKSHOP.shapes:
        left, top, right, bottom = bound_mask(cover_pixels(shape.outline, dx=offsets, dy=offsets, radius=50.0) >= 0.5)
        assert (60 - left, 60 - top, right - 60, bottom - 60) == pytest.approx(
            [50 * value for value in measure_outline(shape.outline)], abs=1.6
        )


def test_textures_differ_and_leave_the_center() -> None:
    offsets = np.arange(-12, 13) + 0.0
    inks = {name: ink_pixels(name, dx=offsets, dy=offsets, period=7.0) for name in TEXTURES}
    assert all(not ink[12, 12] and 0.1 < ink.mean() < 0.7 for ink in inks.values())
    for first in inks:
        for second in inks:
            assert first == second or (inks[first] != inks[second]).mean() > 0.2, (first, second)
    assert np.array_equal(np.rot90(inks["stripes"]), ink_pixels("stripes", dx=offsets, dy=offsets, period=7.0, turn=np.pi / 2))
    with pytest.raises(ConfigError, match="unknown texture"):
        ink_pixels("waves", dx=offsets, dy=offsets, period=7.0)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, walls=st.lists(st.sampled_from([None, "left", "right", "top", "bottom"]), min_size=1, max_size=5))
def test_scattered_objects_touch_the_walls_that_they_should_and_nothing_else(seed: int, walls: list[str | None]) -> None:
    rng = random.Random(seed)
    entries = [
        SceneObject(
            rng.choice(BOXES.values("shape")), rng.choice(BOXES.values("color")), "small", rng.choice(BOXES.values("pattern")), 1, 1
        )
        for _ in walls
    ]
    box = scatter_objects(rng, entries, walls=walls)  # type: ignore[arg-type]
    if box is None:
        return
    scene = make_scene((box, box, box), seed=seed)
    (located, *_) = locate_objects(scene, spec=BOXES)
    wanted = {(entry.column, entry.row): wall for entry, wall in zip(box, walls, strict=True)}
    covered = np.zeros((100, 100), dtype=int)
    for found in located:
        left, top, right, bottom = found.box
        gaps = {"left": left, "top": top, "right": 100 - right, "bottom": 100 - bottom}
        touched = {name for name, gap in gaps.items() if gap == 0}
        wall = wanted[found.entry.column, found.entry.row]
        assert touched == ({wall} if wall else set()) and all(gap >= 3 for name, gap in gaps.items() if name != wall)
        covered += ndimage.binary_dilation(found.mask)
    assert covered.max() == 1
    picture = np.asarray(render_scene(scene, spec=BOXES)[0])
    assert (picture[~ndimage.binary_dilation(covered > 0, iterations=3)] == 211).all()


def test_towers_stand_on_the_floor_with_one_row_of_ground_between_blocks() -> None:
    scene = make_scene((stack_towers([["black", "blue", "blue", "yellow"], ["yellow", "black"]]),) * 3, seed=0)
    picture = np.asarray(render_scene(scene, spec=BOXES)[1])
    located = locate_objects(scene, spec=BOXES)[1]
    columns = {found.box[0] for found in located}
    assert len(columns) == 2
    for column in columns:
        tower = sorted((found for found in located if found.box[0] == column), key=lambda found: -found.box[1])
        assert tower[0].box[3] == 100
        assert all(lower.box[1] - upper.box[3] == 1 for lower, upper in pairwise(tower))
    labels, count = ndimage.label((picture != 211).any(axis=2))
    assert count == 6 and labels.max() == 6


def test_edits_change_what_they_should_and_nothing_else() -> None:
    scene = draw_scene(5, spec=WORKSHOP)
    before, located = locate(scene)
    words = Filter(color="pink", shape="star")
    replaced = np.asarray(apply_edits(scene, [EditStep(operation="replace", objects=(0,), words=words)], spec=WORKSHOP)).astype(float)
    left, top, right, bottom = (int(value) for value in located[0].box)
    around = np.zeros(before.shape[:2], dtype=bool)
    around[max(0, top - 5) : bottom + 5, max(0, left - 5) : right + 5] = True
    assert np.array_equal(before[~around], replaced[~around])
    popped = np.asarray(apply_edits(scene, [EditStep(operation="color_pop", objects=(0,))], spec=WORKSHOP)).astype(float)
    assert np.array_equal(popped[located[0].mask], before[located[0].mask])
    assert (np.ptp(popped[~located[0].mask], axis=1) == 0).all()
    blurred = np.asarray(apply_edits(scene, [EditStep(operation="blur", objects=(0,))], spec=WORKSHOP)).astype(float)
    assert np.array_equal(blurred[located[0].mask], before[located[0].mask])
    assert blurred[~located[0].mask].std() < before[~located[0].mask].std()
    for name in EMOJIS:
        hidden = np.asarray(apply_edits(scene, [EditStep(operation="hide", objects=(0,), emoji=name)], spec=WORKSHOP)).astype(float)
        assert (np.abs(hidden - before).max(axis=2)[located[0].mask] > 20).mean() > 0.8
    with pytest.raises(ConfigError, match="must come before"):
        apply_edits(
            scene, [EditStep(operation="blur", objects=(0,)), EditStep(operation="replace", objects=(0,), words=words)], spec=WORKSHOP
        )
    with pytest.raises(ConfigError, match="unknown emoji"):
        draw_emoji("cat", side=8)


def test_style_of_unknown_patterns_or_textures_is_refused() -> None:
    for textures in ((("wavy", "dots"),), (("striped", "waves"),)):
        with pytest.raises(ConfigError, match="textures"):
            StyledWorld(name="odd", style=Style(textures=textures))
