"""Tools that change a picture without a model: COLORPOP, BGBLUR, EMOJI and TAG (CLOVA's image editing and knowledge tagging)."""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from visloop.errors import ToolError
from visloop.tools.base import ToolCall
from visloop.tools.emoji import draw_emoji
from visloop.tools.plain import PlainTool, clip_box, take_image, take_objects, take_text
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Mask, Objects, Value, VisualObject

BLUR_RADIUS: Final = 2
"""Pixels, of BGBLUR's background (CLOVA's value)."""
_SMOOTHING: Final = 5
"""Pixels of the square over which the ragged edge of a refined mask is evened out (CLOVA's value)."""
_ROUNDS, _LEAST_SIDE, _LEAST_SHARE = 4, 8, 0.1
"""Rounds of GrabCut; boxes with a shorter side are not refined; less of the box than this share is no object."""
_TAG_COLORS: Final = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def make_drawing_tools() -> dict[str, PlainTool]:
    """COLORPOP, BGBLUR, EMOJI and TAG by name. Without objects COLORPOP greys and BGBLUR blurs the whole picture."""
    answers = {"COLORPOP": _pop_color, "BGBLUR": _blur_ground, "EMOJI": _put_emoji, "TAG": _tag}
    return {name: PlainTool(SIGNATURES[name], answer) for name, answer in answers.items()}


def cover_objects(image: Image.Image, objects: Objects) -> Mask:
    """The pixels (height, width) of all objects together. A mask is taken as it is; an object that has none is cut out of its box by
    GrabCut, or is its whole box where that finds next to nothing.

    Raises:
        ToolError: a box outside of the picture, or a mask of another size than the picture.
    """
    covered = np.zeros((image.height, image.width), dtype=bool)
    for entry in objects:
        covered |= _cut_out(image, entry)
    return covered


def _cut_out(image: Image.Image, entry: VisualObject) -> Mask:
    if entry.mask is not None:
        if entry.mask.shape != (image.height, image.width):
            height, width = entry.mask.shape
            raise ToolError(f"a mask of {width}x{height} pixels for a picture of {image.width}x{image.height}: from another picture?")
        return entry.mask
    left, top, right, bottom = clip_box(entry.box, image.size)
    # the ground around the box shows GrabCut what is not the object
    margin_x, margin_y = (right - left) // 2 + 1, (bottom - top) // 2 + 1
    x0, y0 = max(0, left - margin_x), max(0, top - margin_y)
    x1, y1 = min(image.width, right + margin_x), min(image.height, bottom + margin_y)
    labels = np.full((y1 - y0, x1 - x0), cv2.GC_BGD, dtype=np.uint8)
    inside = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
    labels[inside] = cv2.GC_PR_FGD
    box = labels == cv2.GC_PR_FGD
    if not box.all() and min(right - left, bottom - top) >= _LEAST_SIDE:
        box = _refine(np.asarray(image.crop((x0, y0, x1, y1))), labels, fallback=box)
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[y0:y1, x0:x1] = box
    return mask


def _refine(pixels: NDArray[np.uint8], labels: NDArray[np.uint8], *, fallback: Mask) -> Mask:
    cv2.setRNGSeed(0)
    models = np.zeros((2, 1, 65))
    cv2.grabCut(np.ascontiguousarray(pixels), labels, (0, 0, 0, 0), models[0], models[1], _ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.medianBlur(found, _SMOOTHING).astype(bool) & fallback
    return found if found.sum() >= _LEAST_SHARE * fallback.sum() else fallback


def _paste_objects(ground: Image.Image, image: Image.Image, objects: Objects) -> Image.Image:
    mask = Image.fromarray(cover_objects(image, objects).astype(np.uint8) * 255)
    return Image.composite(image, ground, mask)


def _pop_color(call: ToolCall) -> Value:
    image = take_image(call)
    return _paste_objects(ImageOps.grayscale(image).convert("RGB"), image, take_objects(call))


def _blur_ground(call: ToolCall) -> Value:
    image = take_image(call)
    return _paste_objects(image.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)), image, take_objects(call))


def _put_emoji(call: ToolCall) -> Value:
    image, objects, name = take_image(call), take_objects(call), take_text(call, "emoji")
    draw_emoji(name, side=1)  # an unknown name is an error also where there is nothing to cover
    drawn = image.copy()
    for entry in objects:
        left, top, right, bottom = clip_box(entry.box, image.size)
        # as large as the object, so that it is hidden (CLOVA's are smaller than the box and show what is behind)
        side = max(right - left, bottom - top)
        emoji = draw_emoji(name, side=side)
        drawn.paste(emoji, ((left + right - side) // 2, (top + bottom - side) // 2), emoji)
    return drawn


def _tag(call: ToolCall) -> Value:
    image, objects = take_image(call), take_objects(call)
    tagged = image.copy()
    draw = ImageDraw.Draw(tagged)
    side = min(image.size)
    font = ImageFont.load_default(size=max(9, side // 30))
    line = max(1, side // 200)
    for index, entry in enumerate(objects):
        left, top, right, bottom = clip_box(entry.box, image.size)
        color = _TAG_COLORS[index % len(_TAG_COLORS)]
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=line)
        label = entry.label or entry.box.label
        if not label:
            continue
        text = f"{label} ({entry.score:.2f})"
        inset_x, inset_y, far_x, far_y = (round(value) for value in draw.textbbox((0, 0), text, font=font))
        width, height = far_x - inset_x, far_y - inset_y
        # above the box where there is room, else inside; never beyond the right side
        x = max(0, min(left, image.width - width - 2))
        y = top - height - 2 if top >= height + 2 else top
        draw.rectangle((x, y, x + width + 1, y + height + 1), fill=color)
        draw.text((x + 1 - inset_x, y + 1 - inset_y), text, fill="white", font=font)
    return tagged
