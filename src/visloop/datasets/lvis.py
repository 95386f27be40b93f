"""LVIS v1 (Gupta, Dollar, Girshick, CVPR 2019) annotation files and everything in their layout: an open-vocabulary set of boxes and masks.

One JSON file with ``images``, ``annotations`` (``bbox`` as left, top, width, height; ``segmentation`` as polygons) and ``categories``
(``name``, ``synonyms``; ``supercategory`` where a file has it). A picture lists in ``neg_category_ids`` what was looked for and is
not there: only those, and other boxes of the same picture, are known negatives. Pictures lie below a folder under ``file_name``, or
under the last two parts of ``coco_url`` (``train2017/000000000001.jpg``).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visloop.errors import DataError

Mask: TypeAlias = NDArray[np.bool_]
_SAME_REGION = 0.5


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Picture(_Record):
    id: int
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    file_name: str = ""
    coco_url: str = ""
    license: int | None = None
    neg_category_ids: tuple[int, ...] = ()


class _Category(_Record):
    id: int
    name: str = Field(min_length=1)
    synonyms: tuple[str, ...] = ()
    supercategory: str = ""


class _Licence(_Record):
    id: int
    name: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LvisPicture:
    """One picture: its path below the pictures' folder, its size in pixels, its licence, and the categories known to be absent."""

    id: int
    path: str
    width: int
    height: int
    licence: str = ""
    absent: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LvisRegion:
    """One annotation: ``box`` (left, top, right, bottom) in pixels; ``segmentation`` as the file has it."""

    id: int
    picture: int
    category: int
    box: tuple[float, float, float, float]
    segmentation: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LvisCategory:
    """One category: its name as people write it (``traffic light``), all of its names, and the kind of thing that it is filed under."""

    id: int
    name: str
    names: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class LvisSet:
    """A read file. Regions are in the order of the file."""

    pictures: Mapping[int, LvisPicture]
    categories: Mapping[int, LvisCategory]
    regions: Sequence[LvisRegion]
    _by_category: dict[int, list[LvisRegion]] = field(default_factory=dict, init=False, repr=False)
    _by_picture: dict[int, list[LvisRegion]] = field(default_factory=dict, init=False, repr=False)
    _by_name: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for region in self.regions:
            self._by_category.setdefault(region.category, []).append(region)
            self._by_picture.setdefault(region.picture, []).append(region)
        # own names go before synonyms, so that no synonym of another category hides one
        for category in self.categories.values():
            self._by_name.setdefault(category.name, category.id)
        for category in self.categories.values():
            for name in category.names:
                self._by_name.setdefault(name, category.id)

    def find_category(self, concept: str) -> LvisCategory | None:
        """The category of this name or synonym, also in the plural; None if there is none."""
        name = normalize_name(concept)
        for candidate in (name, name.removesuffix("s"), name.removesuffix("es")):
            if candidate in self._by_name:
                return self.categories[self._by_name[candidate]]
        return None

    def find_regions(self, category: int) -> Sequence[LvisRegion]:
        """All regions of a category."""
        return self._by_category.get(category, [])

    def find_negatives(self, category: int) -> tuple[list[LvisRegion], list[LvisRegion], list[LvisRegion]]:
        """Regions that are known to be something else, the most easily confused first: of the same group; of pictures in which the
        category was looked for and not found; beside the category's own. A region of the category itself never occurs, also not under
        another name: a teal star is no negative of teal."""
        group = self.categories[category].group
        siblings = {other.id for other in self.categories.values() if group and other.group == group and other.id != category}
        absent = {picture.id for picture in self.pictures.values() if category in picture.absent}
        own = {region.picture for region in self.find_regions(category)}
        others = [region for region in self.regions if region.category != category and not self._is_category(region, category)]
        first = [region for region in others if region.category in siblings]
        second = [region for region in others if region.picture in absent and region.category not in siblings]
        third = [region for region in others if region.picture in own - absent and region.category not in siblings]
        return first, second, third

    def _is_category(self, region: LvisRegion, category: int) -> bool:
        """Whether a region of the category lies on the same place."""
        return any(
            other.category == category and _overlap(region.box, other.box) >= _SAME_REGION for other in self._by_picture[region.picture]
        )


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / union if union > 0 else 0.0


def normalize_name(name: str) -> str:
    """``Traffic_light_(signal)`` and ``traffic light`` as ``traffic light``."""
    return " ".join(re.sub(r"\([^)]*\)", " ", name).replace("_", " ").lower().split())


def read_lvis(path: Path) -> LvisSet:
    """Read an annotation file.

    Raises:
        DataError: missing, no JSON, a field missing or of another type, ids twice or of nothing, a box outside of its picture, or a
            picture path that leaves its folder.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise DataError(f"{path}: the annotation file cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{path}: no {' and no '.join(missing)}; an LVIS file has images, annotations and categories")
    licences = {licence.id: licence.name or licence.url for licence in _read_all(path, "licenses", _Licence, content.get("licenses", []))}
    categories = {
        entry.id: LvisCategory(
            id=entry.id,
            name=normalize_name(entry.name),
            names=tuple(dict.fromkeys(normalize_name(name) for name in (entry.name, *entry.synonyms))),
            group=normalize_name(entry.supercategory),
        )
        for entry in _read_all(path, "categories", _Category, content["categories"])
    }
    pictures = {
        entry.id: LvisPicture(
            id=entry.id,
            path=_picture_path(path, entry),
            width=entry.width,
            height=entry.height,
            licence=licences.get(entry.license, "") if entry.license is not None else "",
            absent=frozenset(entry.neg_category_ids),
        )
        for entry in _read_all(path, "images", _Picture, content["images"])
    }
    regions = [_read_region(path, number, entry, pictures, categories) for number, entry in enumerate(content["annotations"])]
    counts = Counter(region.id for region in regions)
    twice = next((number for number, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: annotation {twice} occurs twice; ids must be unique")
    return LvisSet(pictures, categories, regions)


def _read_all(path: Path, key: str, kind: type[Any], entries: Any) -> list[Any]:
    read: list[Any] = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            read.append(kind.model_validate(entry))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise DataError(f"{path}: {key}[{number}].{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    ids = [entry.id for entry in read]
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {key}: an id occurs twice; ids must be unique")
    return read


def _picture_path(path: Path, entry: _Picture) -> str:
    name = entry.file_name or "/".join(PurePosixPath(entry.coco_url).parts[-2:])
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or "\\" in name:
        raise DataError(f"{path}: picture {entry.id}: {name!r} is no path below the pictures' folder; give file_name or coco_url")
    return name


def _read_region(
    path: Path, number: int, entry: Any, pictures: Mapping[int, LvisPicture], categories: Mapping[int, LvisCategory]
) -> LvisRegion:
    where = f"{path}: annotations[{number}]"
    try:
        key, picture, category = int(entry["id"]), int(entry["image_id"]), int(entry["category_id"])
        left, top, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: needs id, image_id, category_id and a bbox of four numbers: {error}") from error
    if picture not in pictures or category not in categories:
        raise DataError(f"{where}: image {picture} or category {category} is not in the file")
    size = pictures[picture]
    # LVIS rounds corners: half a pixel over the edge is cut, more is an error of the file
    if width <= 0 or height <= 0 or left < -0.5 or top < -0.5 or left + width > size.width + 0.5 or top + height > size.height + 0.5:
        raise DataError(f"{where}: box {entry['bbox']} does not lie in its picture of {size.width}x{size.height}")
    box = (max(left, 0.0), max(top, 0.0), min(left + width, float(size.width)), min(top + height, float(size.height)))
    return LvisRegion(id=key, picture=picture, category=category, box=box, segmentation=entry.get("segmentation"))


def draw_mask(region: LvisRegion, *, width: int, height: int) -> Mask | None:
    """The mask (height, width) of a region from its polygons or its uncompressed run lengths; None where it has none.

    Raises:
        DataError: a polygon with an odd or too small number of coordinates, run lengths of another size, or compressed run lengths.
    """
    shape = region.segmentation
    if not shape:
        return None
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if not isinstance(counts, list):
            raise DataError(f"annotation {region.id}: compressed run lengths; LVIS files have polygons or lists of run lengths")
        if shape.get("size") != [height, width] or sum(counts) != height * width:
            raise DataError(f"annotation {region.id}: run lengths of {sum(counts)} pixels for a picture of {width}x{height}")
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        mask: Mask = values.reshape((width, height)).T
        return mask
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    for polygon in shape:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"annotation {region.id}: a polygon of {len(polygon)} numbers; at least three points x, y are needed")
        pen.polygon([(float(x), float(y)) for x, y in zip(polygon[::2], polygon[1::2], strict=True)], fill=1)
    return np.asarray(canvas, dtype=np.bool_)
