"""Regions of drawn pictures: recall on scenes of the project's own worlds, touching blocks, patterns, crops, odd pictures."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from visloop.scenes.pictures import render_scene
from visloop.scenes.world import Color, Pattern, Shape, Size, WorldSpec, draw_scene
from visloop.tools.proposals import box_of_mask, propose_regions
from visloop.tools.region_cache import RegionCache
from visloop.tools.values import Box, Mask

GROUND, YELLOW, BLACK, BLUE = (211, 211, 211), (255, 255, 0), (0, 0, 0), (0, 153, 255)
WORLD = WorldSpec(
    name="large",
    shapes=tuple(Shape(name, f"{name}s", name) for name in ("circle", "square", "triangle", "diamond", "cross", "bar", "pillar", "arrow")),
    colors=(
        Color("red", (220, 45, 40)),
        Color("green", (45, 170, 65)),
        Color("blue", (55, 85, 230)),
        Color("yellow", (235, 210, 50)),
        Color("brown", (120, 70, 35)),
        Color("teal", (15, 135, 140)),
    ),
    sizes=(Size("small", 0.3), Size("large", 0.44)),
    patterns=(Pattern("plain", 0.5, False), Pattern("striped", 0.5, True)),
    grid=3,
    canvas=96,
    objects=(2, 6),
    jitter=0.05,
)


def draw_boxes(*boxes: tuple[tuple[int, int, int, int], tuple[int, int, int]], size: tuple[int, int] = (100, 100)) -> Image.Image:
    """Filled boxes (right and bottom exclusive) on flat grey, as NLVR draws its squares."""
    image = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(image)
    for (left, top, right, bottom), color in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
    return image


def boxes_of(image: Image.Image) -> list[tuple[float, ...]]:
    return sorted(box.corners for box, _ in propose_regions(image))


def test_every_object_of_a_scene_is_one_region_whatever_its_pattern() -> None:
    objects = found = regions = 0
    for seed in range(60):
        scene = draw_scene(seed, spec=WORLD)
        proposals = propose_regions(render_scene(scene, spec=WORLD)[0])
        cells = [(int(box.center[0] // 32) + 1, int(box.center[1] // 32) + 1) for box, _ in proposals]
        objects += len(scene.boxes[0])
        regions += len(cells)
        found += sum(cells.count((entry.column, entry.row)) == 1 for entry in scene.boxes[0])
    assert found >= 0.99 * objects > 200
    assert regions <= 1.01 * objects


@pytest.mark.parametrize(
    "stack",
    [
        [((40, 80, 60, 100), YELLOW), ((40, 60, 60, 80), BLACK), ((40, 40, 60, 60), BLUE), ((40, 20, 60, 40), YELLOW)],
        [((40, 80, 60, 100), BLUE), ((40, 60, 60, 80), BLUE), ((40, 40, 60, 60), BLUE)],
        [((0, 70, 30, 100), BLACK), ((10, 60, 20, 70), BLACK), ((30, 80, 50, 100), BLACK)],
        [((10, 10, 20, 20), YELLOW), ((20, 20, 30, 30), YELLOW)],
        [((10, 10, 40, 40), YELLOW), ((40, 10, 60, 30), BLUE), ((10, 40, 20, 50), BLUE)],
        [((70, 1, 100, 31), BLACK), ((70, 32, 80, 42), BLACK), ((59, 1, 69, 11), BLACK)],
    ],
    ids=["colours", "one-colour tower", "one-colour corner", "diagonal", "two colours and sizes", "a pixel apart"],
)
def test_touching_blocks_are_parted_exactly(stack: Sequence[tuple[tuple[int, int, int, int], tuple[int, int, int]]]) -> None:
    assert boxes_of(draw_boxes(*stack)) == sorted(box for box, _ in stack)


def test_what_is_no_stack_of_blocks_stays_whole() -> None:
    for box in ((10, 10, 50, 50), (5, 20, 27, 29), (30, 5, 45, 52)):
        assert boxes_of(draw_boxes((box, BLUE))) == [box]


def paint_pattern(name: str, *, side: int = 30) -> np.ndarray:
    """Which pixels of a square of ``side`` pixels are dark."""
    rows, columns = np.mgrid[:side, :side]
    patterns = {
        "stripes": rows // 3 % 2 == 0,
        "dots": np.hypot(rows % 7 - 3, columns % 7 - 3) < 2,
        "checks": (rows // 5 + columns // 5) % 2 == 0,
        "grid": (rows % 7 < 2) | (columns % 7 < 2),
    }
    return patterns[name]


@pytest.mark.parametrize("pattern", ["stripes", "dots", "checks", "grid"])
@pytest.mark.parametrize("noise", [0, 12])
def test_a_pattern_does_not_break_its_object(pattern: str, noise: int) -> None:
    rng = np.random.default_rng(3)
    pixels = np.full((96, 96, 3), (128.0, 140.0, 125.0))
    pixels[20:50, 40:70] = np.where(paint_pattern(pattern)[:, :, None], (25.0, 20.0, 6.0), (220.0, 190.0, 50.0))
    pixels[60:80, 10:30] = (20.0, 20.0, 20.0)
    pixels += rng.uniform(-noise, noise, pixels.shape)
    image = Image.fromarray(pixels.astype(np.uint8))
    assert boxes_of(image) == [(10, 60, 30, 80), (40, 20, 70, 50)]
    masks = [mask for _, mask in propose_regions(image)]
    assert [mask.sum() for mask in masks] == [900, 400]
    if not noise:
        crop = image.crop((36, 16, 74, 54))
        assert boxes_of(crop) == [(4, 4, 34, 34)]


def test_masks_are_disjoint_and_their_boxes_tight() -> None:
    image = render_scene(draw_scene(5, spec=WORLD), spec=WORLD)[0]
    proposals = propose_regions(image)
    assert sum(mask.astype(int) for _, mask in proposals).max() == 1
    for box, mask in proposals:
        assert mask.shape == (image.height, image.width)
        assert box == box_of_mask(mask)
    assert [box for box, _ in propose_regions(image)] == [box for box, _ in proposals]


def test_ground_alone_has_no_region_and_a_picture_without_ground_is_one() -> None:
    noise = np.random.default_rng(0).normal((120, 130, 120), 9, (96, 96, 3))
    assert propose_regions(Image.fromarray(noise.astype(np.uint8))) == []
    assert boxes_of(Image.new("RGB", (24, 20), (200, 30, 30))) == [(0, 0, 24, 20)]
    assert boxes_of(Image.new("L", (24, 20), 0)) == [(0, 0, 24, 20)]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (40, 1)])
@pytest.mark.parametrize("color", [GROUND, BLUE])
def test_tiny_pictures_are_no_error(size: tuple[int, int], color: tuple[int, int, int]) -> None:
    expected = [(0, 0, *size)] if color == BLUE and size[0] * size[1] >= 16 else []
    assert boxes_of(Image.new("RGB", size, color)) == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5]))
def test_blobs_of_one_colour_are_the_connected_parts_in_reading_order(seed: int, share: float) -> None:
    # of cells of 6 pixels: squares of 10, 20 and 30 do not make up such blobs
    cells = np.random.default_rng(seed).random((12, 12)) < share
    cells[0], cells[-1], cells[:, 0], cells[:, -1] = False, False, False, False
    blobs = np.kron(cells, np.ones((6, 6), bool))
    image = Image.fromarray(np.where(blobs[:, :, None], np.uint8(BLUE), np.uint8(GROUND)))
    labels, count = ndimage.label(blobs, structure=np.ones((3, 3)))
    masks = [mask for _, mask in propose_regions(image)]
    assert len(masks) == count
    for index, mask in enumerate(masks, start=1):
        assert (mask == (labels == index)).all()


def test_the_largest_regions_are_kept_in_reading_order() -> None:
    small, middle, large = (5, 5, 10, 10), (40, 40, 60, 60), (70, 10, 95, 35)
    image = draw_boxes((small, BLUE), (middle, BLUE), (large, BLUE))
    assert [box.corners for box, _ in propose_regions(image, most=2)] == [large, middle]
    assert [box.corners for box, _ in propose_regions(image, least_area=26)] == [large, middle]
    assert [box.corners for box, _ in propose_regions(image)] == [small, large, middle]


def test_regions_are_kept_by_content_and_the_longest_unused_ones_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def propose(image: Image.Image) -> list[tuple[Box, Mask]]:
        asked.append(image.width)
        return propose_regions(image)

    monkeypatch.setattr("visloop.tools.region_cache.propose_regions", propose)
    pictures = [draw_boxes(((10, 10, 40, 40), (200, 30, 30)), size=(side, side)) for side in (60, 61, 62)]
    cache = RegionCache(most_bytes=2 * 62 * 62)
    for picture in (pictures[0], pictures[1], pictures[0].copy(), pictures[2], pictures[0], pictures[1]):
        [region] = cache.propose(picture)
        assert region.mask is not None and region.mask.shape == (picture.height, picture.width)
    assert asked == [60, 61, 62, 61]
