"""Tools about places: crops and their empty cases, walls and corners, towers, above and on."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.regions import make_region_tools
from visloop.tools.values import Box, VisualObject

TOOLS = make_region_tools()
GRADIENT = Image.fromarray(np.stack([np.tile(np.arange(100, dtype=np.uint8), (60, 1)), *[np.zeros((60, 100), np.uint8)] * 2], axis=2))
"""100x60 pixels; red is the column."""


def ask(tool: str, **arguments: object) -> ToolResult:
    [result] = TOOLS[tool].run([ToolCall(tool=tool, arguments=arguments)])  # type: ignore[arg-type]
    return result


def make_box(left: float, top: float, right: float, bottom: float) -> Box:
    return Box(left=left, top=top, right=right, bottom=bottom)


def make_objects(*corners: tuple[float, float, float, float]) -> tuple[VisualObject, ...]:
    return tuple(VisualObject(box=make_box(*entry)) for entry in corners)


def corners_of(result: ToolResult) -> list[tuple[float, ...]]:
    assert result.error is None, result.error
    return [entry.box.corners for entry in result.value]  # type: ignore[union-attr]


def columns_of(image: Image.Image) -> tuple[int, int]:
    pixels = np.asarray(image)
    return int(pixels[0, 0, 0]), int(pixels[0, -1, 0])


def test_crop_takes_the_first_box_in_whole_pixels_and_clips_it() -> None:
    image = ask("CROP", image=GRADIENT, box=(make_box(10.6, -5, 20.2, 200), make_box(0, 0, 5, 5))).value
    assert image.size == (11, 60)
    assert columns_of(image) == (10, 20)
    assert ask("CROP", image=GRADIENT, box=make_objects((3, 4, 5, 9))).value.size == (2, 5)


@pytest.mark.parametrize(
    ("tool", "boxed", "empty"),
    [
        ("CROP", (0, 99, 60), (0, 99, 60)),
        ("CROP_LEFTOF", (0, 29, 60), (0, 49, 60)),
        ("CROP_RIGHTOF", (30, 99, 60), (50, 99, 60)),
        ("CROP_ABOVE", (0, 99, 15), (0, 99, 30)),
        ("CROP_BELOW", (0, 99, 45), (0, 99, 30)),
    ],
)
def test_directions_cut_at_the_centre_of_the_box_and_halve_without_one(
    tool: str, boxed: tuple[int, int, int], empty: tuple[int, int, int]
) -> None:
    with_box = ask(tool, image=GRADIENT, box=(make_box(20, 10, 40, 20),)).value
    without = ask(tool, image=GRADIENT, box=()).value
    if tool != "CROP":
        assert (*columns_of(with_box), with_box.height) == boxed
    assert (*columns_of(without), without.height) == empty


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_the_two_halves_make_up_the_picture_and_are_never_empty(width: int, height: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, width - 1))
    top = data.draw(st.integers(0, height - 1))
    box = make_box(left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    image = Image.new("RGB", (width, height))
    sizes = {name: ask(f"CROP_{name}", image=image, box=(box,)).value.size for name in ("LEFTOF", "RIGHTOF", "ABOVE", "BELOW")}
    assert all(min(size) >= 1 for size in sizes.values())
    if width > 1:
        assert sizes["LEFTOF"][0] + sizes["RIGHTOF"][0] == width
    if height > 1:
        assert sizes["ABOVE"][1] + sizes["BELOW"][1] == height


def test_a_picture_of_one_pixel_can_be_cropped() -> None:
    dot = Image.new("RGB", (1, 1))
    for tool in ("CROP", "CROP_LEFTOF", "CROP_RIGHTOF", "CROP_ABOVE", "CROP_BELOW"):
        assert ask(tool, image=dot, box=()).value.size == (1, 1)
        assert ask(tool, image=dot, box=(make_box(0, 0, 1, 1),)).value.size == (1, 1)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((make_box(100, 0, 120, 10),), r"CROP: the box .* lies outside of the picture, which is 100x60 pixels"),
        ((make_box(20, 0, 10, 10),), "has no area"),
        ((make_box(float("nan"), 0, 10, 10),), "has no area"),
        (None, "argument box must be Objects or Boxes, got nothing"),
        ("cat", "must be Objects or Boxes, got str 'cat'"),
        (("cat",), "must be Objects or Boxes"),
    ],
)
def test_a_wrong_box_is_an_error_in_words(box: object, message: str) -> None:
    result = ask("CROP", image=GRADIENT, box=box)
    assert result.value is None
    assert result.error is not None
    assert re.search(message, result.error), result.error


def test_one_bad_call_does_not_touch_the_others() -> None:
    good = ToolCall(tool="COUNT", arguments={"box": make_objects((0, 0, 1, 1), (0, 0, 2, 2))})
    bad = ToolCall(tool="COUNT", arguments={"box": 3})
    results = TOOLS["COUNT"].run([good, bad, ToolCall(tool="COUNT", arguments={"box": ()})])
    assert [result.value for result in results] == [2, None, 0]
    assert [result.error is None for result in results] == [True, False, True]


LEFT_WALL, RIGHT_TOP, FREE, ALMOST, FLOOR = (0, 40, 10, 50), (69, 1, 99, 31), (40, 40, 50, 50), (2, 2, 12, 12), (30, 79, 50, 99)


@pytest.mark.parametrize(
    ("target", "touching"),
    [
        ("wall", [LEFT_WALL, RIGHT_TOP, FLOOR]),
        ("the edge", [LEFT_WALL, RIGHT_TOP, FLOOR]),
        ("Walls", [LEFT_WALL, RIGHT_TOP, FLOOR]),
        ("corner", [RIGHT_TOP]),
        ("top", [RIGHT_TOP]),
        ("base", [FLOOR]),
        ("bottom", [FLOOR]),
        ("left", [LEFT_WALL]),
        ("right", [RIGHT_TOP]),
    ],
)
def test_touching_a_side_allows_one_pixel(target: str, touching: list[tuple[int, int, int, int]]) -> None:
    objects = make_objects(LEFT_WALL, RIGHT_TOP, FREE, ALMOST, FLOOR)
    assert corners_of(ask("TOUCHING", image=Image.new("RGB", (100, 100)), object=objects, target=target)) == touching


def test_touching_objects_are_a_pixel_apart_at_most_and_not_themselves() -> None:
    first, near, diagonal, far = (10, 10, 20, 20), (21, 12, 31, 22), (21, 21, 25, 25), (22, 10, 30, 20)
    arguments = {"image": Image.new("RGB", (100, 100)), "target": make_objects(first)}
    assert corners_of(ask("TOUCHING", object=make_objects(first, near, diagonal, far), **arguments)) == [near, diagonal]
    assert corners_of(ask("TOUCHING", object=(), **arguments)) == []


def test_an_unknown_target_names_the_known_ones() -> None:
    result = ask("TOUCHING", image=GRADIENT, object=make_objects(FREE), target="roof")
    assert result.error is not None
    assert "'roof'" in result.error
    assert "corner" in result.error
    assert "argument image" in str(ask("TOUCHING", object=make_objects(FREE), target="wall").error)


TOWER = [(40, 80, 60, 100), (40, 59, 60, 79), (40, 38, 60, 58)]
BESIDE, ABOVE_APART = (70, 70, 80, 80), (45, 10, 55, 20)


def test_the_ends_of_every_tower_in_the_order_given() -> None:
    objects = make_objects(TOWER[1], BESIDE, TOWER[0], ABOVE_APART, TOWER[2])
    assert corners_of(ask("TOP", object=objects)) == [BESIDE, ABOVE_APART, TOWER[2]]
    assert corners_of(ask("BOTTOM", object=objects)) == [BESIDE, TOWER[0], ABOVE_APART]
    assert corners_of(ask("TOP", object=())) == []


def test_blocks_side_by_side_are_two_towers_and_two_on_one_are_two_tops() -> None:
    assert len(corners_of(ask("TOP", object=make_objects((0, 0, 10, 10), (10, 0, 20, 10))))) == 2
    bridge = make_objects((0, 20, 30, 50), (0, 9, 10, 19), (18, 9, 28, 19))
    assert corners_of(ask("TOP", object=bridge)) == [(0, 9, 10, 19), (18, 9, 28, 19)]
    assert corners_of(ask("BOTTOM", object=bridge)) == [(0, 20, 30, 50)]


def test_above_is_anywhere_above_in_the_same_columns_and_on_is_directly_on() -> None:
    objects, base = make_objects(*TOWER, BESIDE, ABOVE_APART), make_objects(TOWER[0])
    assert corners_of(ask("ABOVE", object=objects, other=base)) == [TOWER[1], TOWER[2], ABOVE_APART]
    assert corners_of(ask("ON", object=objects, other=base)) == [TOWER[1]]
    assert corners_of(ask("ABOVE", object=base, other=base)) == []
    assert corners_of(ask("ON", object=objects, other=())) == []


ANYTHING = st.one_of(
    st.none(),
    st.text(max_size=4),
    st.integers(-3, 3),
    st.floats(),
    st.booleans(),
    st.just(Image.new("RGB", (1, 1))),
    st.just(Image.new("L", (5, 4))),
    st.just(()),
    st.just(("a", "b")),
    st.builds(lambda values: (make_box(*values),), st.tuples(*[st.floats(-20, 20)] * 4)),
    st.builds(lambda values: make_objects(values), st.tuples(*[st.floats()] * 4)),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TOOLS)), st.dictionaries(st.sampled_from(["image", "box", "object", "target", "other"]), ANYTHING))
def test_whatever_the_arguments_the_answer_is_a_value_or_an_error(tool: str, arguments: dict[str, object]) -> None:
    result = ask(tool, **arguments)
    assert (result.value is None) != (result.error is None)
    if result.error is not None:
        assert result.error.startswith(f"{tool}: ")
        assert "Error" not in result.error, "an unforeseen exception"
