"""Exact edits of drawn pictures: what REPLACE, COLORPOP, BGBLUR and EMOJI should give. For measuring only."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from visloop.errors import ConfigError
from visloop.scenes.filters import Filter
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import LocatedObject, locate_objects
from visloop.scenes.world import Scene, WorldSpec, make_scene

Operation = Literal["replace", "color_pop", "blur", "hide"]
BLUR_RADIUS: Final = 2.0
"""Of the Gaussian, in pixels (CLOVA's BGBLUR)."""
EMOJIS: Final = ("smiling_face", "winking_face", "sad_face")


@dataclass(frozen=True, slots=True, kw_only=True)
class EditStep:
    """One edit of a single picture. ``objects`` are the places of the scene's objects that it is about; ``words`` what the new object
    has to be (``replace``; an open pattern is plain), ``emoji`` the name of the face that covers it (``hide``)."""

    operation: Operation
    objects: tuple[int, ...]
    words: Filter = field(default_factory=Filter)
    emoji: str = ""


def replace_object(scene: Scene, index: int, words: Filter) -> Scene:
    """The scene with one object's words exchanged: its place, size and noise stay. An open pattern becomes plain."""
    (objects,) = scene.boxes
    old = objects[index]
    new = replace(old, shape=words.shape or old.shape, color=words.color or old.color, pattern=words.pattern or "plain")
    return make_scene(((*objects[:index], new, *objects[index + 1 :]),), seed=scene.seed)


def draw_emoji(name: str, *, side: int) -> Image.Image:
    """A face of ``side`` pixels (RGBA) on nothing.

    Raises:
        ConfigError: a name that is not one of ``EMOJIS``.
    """
    if name not in EMOJIS:
        raise ConfigError(f"unknown emoji {name!r}; known are {EMOJIS}")
    scale = 8
    face = Image.new("RGBA", (side * scale, side * scale))
    pen, unit = ImageDraw.Draw(face), side * scale / 100
    ink = (90, 55, 10, 255)
    pen.ellipse([2 * unit, 2 * unit, 98 * unit, 98 * unit], fill=(255, 205, 60, 255), outline=(200, 140, 20, 255), width=round(3 * unit))
    pen.ellipse([27 * unit, 30 * unit, 40 * unit, 48 * unit], fill=ink)
    if name == "winking_face":
        pen.line([58 * unit, 40 * unit, 75 * unit, 40 * unit], fill=ink, width=round(6 * unit))
    else:
        pen.ellipse([60 * unit, 30 * unit, 73 * unit, 48 * unit], fill=ink)
    low, high = ((62, 88), (200, 340)) if name == "sad_face" else ((42, 80), (20, 160))
    pen.arc([26 * unit, low[0] * unit, 74 * unit, low[1] * unit], *high, fill=ink, width=round(7 * unit))
    return face.resize((side, side), Image.Resampling.LANCZOS)


def _join_masks(located: Sequence[LocatedObject], places: tuple[int, ...]) -> NDArray[np.bool_]:
    joined: NDArray[np.bool_] = np.logical_or.reduce([located[place].mask for place in places])
    return joined


def _cover_object(picture: Image.Image, found: LocatedObject, name: str) -> Image.Image:
    """The picture with an emoji over the whole of one object."""
    left, top, right, bottom = found.box
    side = round(1.2 * max(right - left, bottom - top))
    face = draw_emoji(name, side=side)
    covered = picture.copy()
    covered.paste(face, (round(found.center[0] - side / 2), round(found.center[1] - side / 2)), face)
    return covered


def apply_edits(scene: Scene, steps: Sequence[EditStep], *, spec: WorldSpec) -> Image.Image:
    """The single picture of ``scene`` after the edits, one after the other; all replacements must come first.

    Raises:
        ConfigError: a replacement after another edit.
    """
    operations = [step.operation for step in steps]
    if "replace" in operations[operations.count("replace") :]:
        raise ConfigError(f"replacements must come before other edits, got {operations}")
    for step in steps:
        if step.operation == "replace":
            scene = replace_object(scene, step.objects[0], step.words)
    picture = render_scene(scene, spec=spec)[0]
    (located,) = locate_objects(scene, spec=spec)
    for step in steps:
        if step.operation == "replace":
            continue
        if step.operation == "hide":
            picture = _cover_object(picture, located[step.objects[0]], step.emoji)
            continue
        background = (
            picture.convert("L").convert("RGB") if step.operation == "color_pop" else picture.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
        )
        background.paste(picture, (0, 0), Image.fromarray(_join_masks(located, step.objects)))
        picture = background
    return picture
