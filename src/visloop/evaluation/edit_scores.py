"""How well a picture was edited, against the right picture: what had to change did, and nothing else did (CLOVA's editing tasks).

Edits of photographs are judged by people in CLOVA. Of a drawn picture everything is known, so every object and the ground are judged
alone, and the worst decides: an edit that is right but for one object that it should not have touched is not right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from visloop.records.assistant import LabelledBox
from visloop.scenes.recognize import read_object
from visloop.scenes.regions import Corners, LocatedObject, locate_objects
from visloop.scenes.workshop import NOUN, WORKSHOP, find_attribute
from visloop.scenes.world import Scene, WorldSpec

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
ZoneKind = Literal["kept", "changed", "replaced", "hidden"]
CheckCrop = Callable[[Image.Image, str], float | None]
"""(crop of the edited picture, the words of the prompt) -> how well they fit, 0-1: CLIP or a judge; None where it cannot say."""

PASS: Final = 0.7
"""Score from which an edit counts as right: two of three words of a new object right (0.67) are not enough."""
_SEEN: Final = 12.0
"""Levels by which target and original must differ for a pixel to count as changed, where no scene tells the zones."""
_KEPT_LEVELS: Final = 30.0
"""Mean difference at which something that had to stay is entirely spoilt."""
_STILL: Final = 2.0
"""Mean difference of target and original below which a zone had to stay."""
_HIDDEN_LEVELS: Final = 30.0
_HIDDEN_SHARE: Final = 0.15
"""An object is hidden only where at least this share of its pixels has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One part of the picture: what had to happen to it, how far it did (0-1), and what is wrong, in words (empty: nothing)."""

    kind: ZoneKind
    fit: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditScore:
    """``score`` is the worst zone's fit, ``inside`` the mean of what had to change, ``outside`` that of what had to stay (1 where
    there is nothing); ``check`` the mean of the caller's check over the new objects of which it can say something, or None."""

    score: float
    inside: float
    outside: float
    zones: tuple[Zone, ...]
    check: float | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        return tuple(zone.note for zone in self.zones if zone.fit < PASS and zone.note)


@dataclass(frozen=True, slots=True, eq=False)
class _Pictures:
    original: Floats
    edited: Floats
    target: Floats


def _difference(first: Floats, second: Floats, mask: Mask) -> float:
    """Mean absolute difference in levels over a mask (h, w); 0 for an empty one."""
    return float(np.abs(first - second)[mask].mean()) if mask.any() else 0.0


def _inner(mask: Mask, by: int = 1) -> Mask:
    eroded: Mask = ndimage.binary_erosion(mask, iterations=by)
    return eroded if eroded.any() else mask


def _show_box(box: Corners) -> str:
    return "(" + ", ".join(str(round(value)) for value in box) + ")"


def _crop(picture: Image.Image, box: Corners) -> Image.Image:
    left, top, right, bottom = (round(value) for value in box)
    return picture.crop((left, top, right, bottom))


def _article(words: str) -> str:
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def _name(found: LocatedObject) -> str:
    entry = found.entry
    return " ".join(word for word in (entry.pattern, entry.color, entry.shape) if word != "plain")


def _judge_change(pictures: _Pictures, mask: Mask, name: str) -> Zone:
    """A zone that looks the same in target and original had to stay; any other had to become as in the target."""
    moved = _difference(pictures.original, pictures.target, mask)
    if moved < _STILL:
        spoilt = _difference(pictures.original, pictures.edited, mask) / _KEPT_LEVELS
        return Zone(kind="kept", fit=max(0.0, 1.0 - spoilt), note=f"{name} should look as before.")
    left = _difference(pictures.edited, pictures.target, mask) / moved
    gray = float(np.ptp(pictures.target[mask], axis=1).mean()) < 1
    return Zone(kind="changed", fit=max(0.0, 1.0 - left), note=f"{name} should be {'gray' if gray else 'blurred'}.")


def _judge_hidden(pictures: _Pictures, found: LocatedObject, label: str) -> Zone:
    moved = np.abs(pictures.edited - pictures.original).max(axis=2)[found.mask] > _HIDDEN_LEVELS
    like = np.abs(pictures.edited - pictures.target).max(axis=2)[found.mask] < _HIDDEN_LEVELS
    fit = min(float((moved | like).mean()), float(moved.mean()) / _HIDDEN_SHARE, 1.0)
    return Zone(kind="hidden", fit=fit, note=f"The {_name(found)} at {_show_box(found.box)} should be hidden by {label}.")


def _judge_replaced(pictures: _Pictures, region: LabelledBox, others: Mask, tone: Floats, spec: WorldSpec) -> Zone:
    """The share of the prompt's words that the new object has."""
    pixels = pictures.edited.copy()
    pixels[others] = tone
    side = pixels.shape[0]
    left, top, right, bottom = region.box
    reach = 6
    box = (max(0.0, left - reach), max(0.0, top - reach), min(float(side), right + reach), min(float(side), bottom + reach))
    read = read_object(Image.fromarray(pixels.astype(np.uint8)), box, tone=(float(tone[0]), float(tone[1]), float(tone[2])), spec=spec)
    wanted = {attribute: word for word in region.label.split() if (attribute := find_attribute(word)) is not None}
    where = _show_box(region.box)
    if read is None:
        return Zone(kind="replaced", fit=0.0, note=f"There should be {_article(region.label)} at {where}, but nothing is there.")
    right_words = [word for attribute, word in wanted.items() if getattr(read, attribute) == word]
    seen = " ".join(getattr(read, attribute) for attribute in ("pattern", "color", "shape") if attribute in wanted)
    note = f"There should be {_article(region.label)} at {where}, but it looks like {_article(seen or NOUN)}."
    return Zone(kind="replaced", fit=len(right_words) / max(1, len(wanted)), note=note)


def _match_regions(located: Sequence[LocatedObject], region: Sequence[LabelledBox]) -> dict[int, LabelledBox]:
    """For each region the place of the object whose centre it holds most centrally."""
    matched = {}
    for entry in region:
        left, top, right, bottom = entry.box
        center = ((left + right) / 2, (top + bottom) / 2)
        nearest = min(
            range(len(located)), key=lambda place: np.hypot(located[place].center[0] - center[0], located[place].center[1] - center[1])
        )
        matched[nearest] = entry
    return matched


def _judge_scene(pictures: _Pictures, region: Sequence[LabelledBox], scene: Scene, spec: WorldSpec) -> list[Zone]:
    (located,) = locate_objects(scene, spec=spec)
    matched = _match_regions(located, region)
    occupied = np.logical_or.reduce([found.mask for found in located])
    ground: Mask = ~ndimage.binary_dilation(occupied, iterations=3)
    # What covers or replaces an object may be larger than it: around it neither the ground nor a neighbour is judged.
    spared = np.zeros_like(occupied)
    for entry in region:
        if entry.label != "kept":
            left, top, right, bottom = entry.box
            by = 0.3 * max(right - left, bottom - top) + 2
            spared[max(0, int(top - by)) : int(bottom + by) + 1, max(0, int(left - by)) : int(right + by) + 1] = True
    tone = np.median(pictures.edited[ground], axis=0) if ground.any() else np.zeros(3)
    zones = [_judge_change(pictures, ground & ~spared, "The background")] if (ground & ~spared).any() else []
    for place, found in enumerate(located):
        entry_of = matched.get(place)
        if entry_of is not None and entry_of.label != "kept":
            if find_attribute(entry_of.label.split()[-1]) is None:
                zones.append(_judge_hidden(pictures, found, entry_of.label))
            else:
                others = np.logical_or.reduce([other.mask for other in located if other is not found] or [np.zeros_like(occupied)])
                zones.append(_judge_replaced(pictures, entry_of, ndimage.binary_dilation(others), tone, spec))
            continue
        mask = _inner(found.mask) & ~spared
        if mask.sum() >= 0.3 * found.mask.sum():
            zones.append(_judge_change(pictures, mask, f"The {_name(found)} at {_show_box(found.box)}"))
    return zones


def _judge_target(pictures: _Pictures, region: Sequence[LabelledBox], checks: Sequence[float]) -> list[Zone]:
    """Zones without a scene: what differs between target and original, what does not, and the new objects as the check sees them."""
    changed = np.abs(pictures.target - pictures.original).max(axis=2) > _SEEN
    kept: Mask = ~ndimage.binary_dilation(changed, iterations=2)
    zones = [_judge_change(pictures, mask, name) for mask, name in ((kept, "The rest of the picture"),) if mask.any()]
    if checks:
        named = [entry for entry in region if entry.label != "kept"]
        zones += [
            Zone(kind="replaced", fit=value, note=f"There should be {_article(entry.label)} at {_show_box(entry.box)}.")
            for entry, value in zip(named, checks, strict=True)
        ]
    elif changed.any():
        zones.append(_judge_change(pictures, changed, "What had to change"))
    return zones


def _ask_check(picture: Image.Image, region: Sequence[LabelledBox], check: CheckCrop) -> list[float | None]:
    return [check(_crop(picture, entry.box), entry.label) for entry in region if entry.label != "kept"]


def check_objects(picture: Image.Image, region: Sequence[LabelledBox], *, check: CheckCrop) -> float | None:
    """The mean of a check over the new objects of a picture; None where it says something of none."""
    known = [value for value in _ask_check(picture, region, check) if value is not None]
    return float(np.mean(known)) if known else None


def score_edit(
    original: Image.Image,
    edited: Image.Image,
    target: Image.Image,
    *,
    region: Sequence[LabelledBox],
    scene: Scene | None = None,
    spec: WorldSpec = WORKSHOP,
    check: CheckCrop | None = None,
) -> EditScore:
    """Compare an edited picture with the right one, zone by zone.

    With the scene every object and the ground are a zone, and a replaced object is right where its words can be read from it,
    whatever its size and turn. Without it there are two zones, and new objects are judged by ``check`` (by pixels if there is none, or if
    it cannot say something of one). An edited picture of another size is scaled to the original's.
    """
    if edited.size != original.size:
        edited = edited.resize(original.size, Image.Resampling.BILINEAR)
    pictures = _Pictures(*(np.asarray(picture.convert("RGB"), dtype=np.float64) for picture in (original, edited, target)))
    said = _ask_check(edited, region, check) if check is not None else []
    known = [value for value in said if value is not None]
    if scene is not None:
        zones = _judge_scene(pictures, region, scene, spec)
    else:
        zones = _judge_target(pictures, region, known if len(known) == len(said) else [])
    inside = [zone.fit for zone in zones if zone.kind != "kept"]
    outside = [zone.fit for zone in zones if zone.kind == "kept"]
    return EditScore(
        score=min((zone.fit for zone in zones), default=0.0),
        inside=float(np.mean(inside)) if inside else 1.0,
        outside=float(np.mean(outside)) if outside else 1.0,
        zones=tuple(zones),
        check=float(np.mean(known)) if known else None,
    )
