"""COLORPOP, BGBLUR, EMOJI, TAG and FACEDET on pictures that the tests draw."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.drawing import cover_objects, make_drawing_tools
from visloop.tools.emoji import EMOJIS, draw_emoji
from visloop.tools.faces import make_face_tool
from visloop.tools.values import Box, VisualObject, overlap_ratio

TOOLS = make_drawing_tools() | {"FACEDET": make_face_tool()}
RED, CIRCLE, BOX = (200, 40, 40), (30, 20, 70, 60), Box(left=28, top=18, right=72, bottom=62)


def ask(tool: str, **arguments: object) -> ToolResult:
    [result] = TOOLS[tool].run([ToolCall(tool=tool, arguments=arguments)])  # type: ignore[arg-type]
    return result


def make_scene() -> tuple[Image.Image, np.ndarray]:
    """100x80 pixels of greenish noise with a red circle, and the circle's mask."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(90, 140, (80, 100, 3)).astype(np.uint8) + np.array([0, 40, 0], dtype=np.uint8))
    layer = Image.new("L", image.size)
    ImageDraw.Draw(layer).ellipse((CIRCLE[0], CIRCLE[1], CIRCLE[2] - 1, CIRCLE[3] - 1), fill=255)
    image.paste(RED, mask=layer)
    return image, np.asarray(layer) > 0


IMAGE, MASK = make_scene()
EXACT = (VisualObject(box=BOX, mask=MASK, label="circle", score=0.5),)
COARSE = (VisualObject(box=BOX, label="circle"),)


def is_grey(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return (pixels == pixels[:, :, :1]).all(axis=2)


def test_colorpop_keeps_the_mask_to_the_pixel_and_greys_the_rest() -> None:
    popped = ask("COLORPOP", image=IMAGE, object=EXACT).value
    assert (np.asarray(popped)[MASK] == np.asarray(IMAGE)[MASK]).all()
    assert is_grey(popped)[~MASK].all()
    assert (np.asarray(popped)[~MASK, 0] == np.asarray(IMAGE.convert("L"))[~MASK]).all()


def test_bgblur_blurs_by_two_pixels_outside_of_the_mask_only() -> None:
    blurred = np.asarray(ask("BGBLUR", image=IMAGE, object=EXACT).value)
    assert (blurred[MASK] == np.asarray(IMAGE)[MASK]).all()
    assert (blurred[~MASK] == np.asarray(IMAGE.filter(ImageFilter.GaussianBlur(2)))[~MASK]).all()


def test_a_box_without_mask_is_cut_out_by_grabcut() -> None:
    cut = cover_objects(IMAGE, COARSE)
    overlap = (cut & MASK).sum() / (cut | MASK).sum()
    box = np.zeros_like(MASK)
    box[18:62, 28:72] = True
    assert overlap > 0.95 > (box & MASK).sum() / box.sum()
    assert (cover_objects(IMAGE, COARSE) == cut).all(), "the same picture gives the same mask"
    assert ask("COLORPOP", image=IMAGE, object=(BOX,)).value == ask("COLORPOP", image=IMAGE, object=COARSE).value


def test_where_grabcut_has_nothing_to_go_by_the_box_is_taken() -> None:
    flat = Image.new("RGB", (40, 40), (90, 90, 90))
    for corners in ((10, 10, 30, 30), (0, 0, 40, 40), (0, 0, 3, 3)):
        found = cover_objects(flat, (VisualObject(box=Box(**dict(zip(("left", "top", "right", "bottom"), corners, strict=True)))),))
        left, top, right, bottom = corners
        assert found[top:bottom, left:right].mean() > 0.5
        assert found.sum() <= (right - left) * (bottom - top)


def test_without_objects_everything_is_ground_and_nothing_is_covered() -> None:
    assert is_grey(ask("COLORPOP", image=IMAGE, object=()).value).all()
    assert ask("BGBLUR", image=IMAGE, object=()).value == IMAGE.filter(ImageFilter.GaussianBlur(2))
    assert ask("EMOJI", image=IMAGE, object=(), emoji="star").value == IMAGE
    assert ask("TAG", image=IMAGE, object=()).value == IMAGE


def test_an_emoji_covers_every_object_and_nothing_far_from_it() -> None:
    before = IMAGE.copy()
    result = ask("EMOJI", image=IMAGE, object=EXACT, emoji="smiling face").value
    assert before == IMAGE, "the given picture stays as it is"
    changed = (np.asarray(result) != np.asarray(IMAGE)).any(axis=2)
    assert changed[MASK].mean() > 0.98
    rows, columns = np.nonzero(changed)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (28, 18, 72, 62)
    two = (*EXACT, VisualObject(box=Box(left=0, top=0, right=12, bottom=12)))
    assert (np.asarray(ask("EMOJI", image=IMAGE, object=two, emoji=":red-heart:").value)[4:8, 5:7] != np.asarray(IMAGE)[4:8, 5:7]).any()


def test_every_emoji_is_drawn_differently_and_an_unknown_one_names_them() -> None:
    drawn = {name: draw_emoji(name, side=32) for name in EMOJIS}
    assert {"smiling_face", "sad_face", "winking_face"} <= set(EMOJIS)
    assert all(picture.size == (32, 32) and picture.getpixel((0, 0))[3] == 0 for picture in drawn.values())  # type: ignore[index]
    assert len({picture.tobytes() for picture in drawn.values()}) == len(EMOJIS)
    for objects in (EXACT, ()):
        error = ask("EMOJI", image=IMAGE, object=objects, emoji="unicorn").error
        assert error is not None
        assert "'unicorn'" in error
        assert all(name in error for name in EMOJIS)


def test_a_tag_draws_box_and_label_inside_of_the_picture() -> None:
    result = np.asarray(ask("TAG", image=IMAGE, object=EXACT).value)
    changed = (result != np.asarray(IMAGE)).any(axis=2)
    assert changed[18, 28:72].all() and changed[61, 28:72].all() and changed[18:62, 28].all() and changed[18:62, 71].all()
    assert not changed[20:60, 32:68].any(), "the label stands above the box"
    assert changed[5:17, 28:40].mean() > 0.5
    unlabelled = np.asarray(ask("TAG", image=IMAGE, object=(BOX,)).value)
    assert (unlabelled != np.asarray(IMAGE)).any(axis=2).sum() == 2 * 44 + 2 * 42
    top = (VisualObject(box=Box(left=90, top=0, right=100, bottom=9), label="a very long label that does not fit", score=1.0),)
    assert ask("TAG", image=IMAGE, object=top).error is None


@pytest.mark.parametrize("tool", ["COLORPOP", "BGBLUR"])
def test_a_mask_of_another_picture_is_refused(tool: str) -> None:
    error = ask(tool, image=IMAGE.crop((0, 0, 50, 50)), object=EXACT).error
    assert error == f"{tool}: a mask of 100x80 pixels for a picture of 50x50: from another picture?"
    assert "outside" in str(ask(tool, image=IMAGE, object=(Box(left=200, top=0, right=210, bottom=9),)).error)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TOOLS)),
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.tuples(*[st.floats(-3, 14)] * 4), max_size=2),
    st.sampled_from(["star", "nothing", "", None, 4]),
)
def test_tiny_pictures_and_odd_boxes_give_a_picture_or_an_error(
    tool: str, width: int, height: int, corners: list[tuple[float, ...]], emoji: object
) -> None:
    boxes = tuple(Box(left=left, top=top, right=right, bottom=bottom, label="x") for left, top, right, bottom in corners)
    result = ask(tool, image=Image.new("RGB", (width, height)), object=boxes, emoji=emoji)
    if result.error is None and tool != "FACEDET":
        assert result.value.size == (width, height)
    assert result.error is None or (result.error.startswith(tool) and "Error" not in result.error)


def draw_face(side: int) -> Image.Image:
    """A frontal face in ovals, with the light and dark that Haar features look for."""
    unit = side * 4 / 100
    image = Image.new("RGB", (side * 4, side * 4), (200, 170, 150))
    draw = ImageDraw.Draw(image)

    def draw_oval(x: float, y: float, rx: float, ry: float, color: tuple[int, int, int]) -> None:
        draw.ellipse([(x - rx) * unit, (y - ry) * unit, (x + rx) * unit, (y + ry) * unit], fill=color)

    draw_oval(50, 50, 36, 46, (225, 190, 165))
    draw_oval(50, 8, 40, 16, (60, 40, 30))
    for x in (34, 66):
        draw_oval(x, 42, 10, 6, (150, 110, 95))
        draw_oval(x, 43, 7, 3.5, (250, 250, 250))
        draw_oval(x, 43, 3.5, 3.5, (30, 20, 20))
        draw.rectangle(((x - 10) * unit, 32 * unit, (x + 10) * unit, 35 * unit), fill=(60, 40, 30))
    draw.polygon([(50 * unit, 44 * unit), (44 * unit, 64 * unit), (56 * unit, 64 * unit)], fill=(240, 205, 180))
    for x in (46, 54):
        draw_oval(x, 64, 2, 1.5, (120, 80, 70))
    draw_oval(50, 76, 13, 4.5, (150, 60, 60))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def draw_crowd() -> Image.Image:
    image = Image.new("RGB", (320, 240), (120, 150, 120))
    image.paste(draw_face(120), (60, 60))
    image.paste(draw_face(70), (240, 10))
    return image


def test_every_face_is_found_with_a_box_enlarged_and_clipped() -> None:
    faces = ask("FACEDET", image=draw_crowd()).value
    assert [face.label for face in faces] == ["face", "face"]
    large, small = sorted(faces, key=lambda face: -face.box.area)
    assert overlap_ratio(large.box, Box(left=30, top=30, right=210, bottom=210)) > 0.85
    assert overlap_ratio(small.box, Box(left=222, top=0, right=320, bottom=97)) > 0.75
    assert small.box.top == 0.0
    assert all(0 < face.score < 1 and face.mask is None for face in faces)
    assert faces[0].score >= faces[1].score


def test_no_face_is_no_error_and_threads_share_the_detector() -> None:
    assert ask("FACEDET", image=IMAGE).value == ()
    assert ask("FACEDET", image=Image.new("L", (1, 1))).value == ()
    assert "argument image" in str(ask("FACEDET", image=None).error)
    crowd = draw_crowd()
    with ThreadPoolExecutor(4) as threads:
        found = [result.value for result in threads.map(lambda _: ask("FACEDET", image=crowd), range(8))]
    assert all([face.box for face in faces] == [face.box for face in found[0]] for faces in found)


def test_a_face_can_be_hidden() -> None:
    crowd = draw_crowd()
    hidden = ask("EMOJI", image=crowd, object=ask("FACEDET", image=crowd).value, emoji="winking_face").value
    pixels = np.asarray(hidden)[60:180, 60:180].reshape(-1, 3)
    assert (np.abs(pixels.astype(int) - (255, 204, 51)).max(axis=1) < 8).mean() > 0.6
