"""Where instances for a tool come from (CLOVA 3.4): an open-vocabulary set of regions, or pictures found by search; both also offline.

The third way, inferring the right answer of a wrong step, is in ``inference``. A provider gives what it has, also nothing; whether that
is enough is the learner's to say. The same picture is never in train and validation: splits are drawn by the hash of its bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from visloop.datasets.image_search import FoundPicture, PictureSource, SearchReport
from visloop.datasets.images import ImageLimits, Skip, StoredImage, import_image, store_picture
from visloop.datasets.lvis import LvisRegion, LvisSet, draw_mask
from visloop.errors import ConfigError, DataError
from visloop.ids import make_id, seed_for
from visloop.records.assistant import DataSource, Instance

NameNegatives = Callable[[str, str, int], tuple[str, ...]]
"""(concept, its group or empty, how many) -> concepts that are easily taken for it."""


class DataProvider(Protocol):
    """Anything that collects instances of a concept for a tool."""

    source: DataSource

    def collect(self, concept: str, *, tool: str, positives: int, negatives: int, seed: int) -> list[Instance]:
        """Up to so many positives and negatives; empty where the concept is not known here."""
        ...


def picture_hash(image: str) -> str:
    """The SHA-256 in the name of a stored picture (``<two hex>/<sha256>.png``).

    Raises:
        DataError: a name that holds no hash.
    """
    stem = Path(image).stem
    if len(stem) != 64 or not set(stem) <= set("0123456789abcdef"):
        raise DataError(f"picture {image!r}: not stored under its content hash, so that leaks between splits cannot be seen")
    return stem


def split_instances(instances: Sequence[Instance], *, validation_share: float, seed: int) -> list[Instance]:
    """The same instances with their splits drawn by picture: all regions of a picture are in one split.

    Pictures that hold a positive and those that hold none are divided separately, in an order that depends on seed and hash only; a
    class of two or more pictures has at least one in each split.

    Raises:
        ConfigError: ``validation_share`` outside of 0-1.
        DataError: a picture that is not stored under its hash.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(f"validation share must be between 0 and 1, got {validation_share}")
    hashes = [picture_hash(instance.image) for instance in instances]
    with_positive = {key for key, instance in zip(hashes, instances, strict=True) if instance.positive}
    held_out: set[str] = set()
    for group in (with_positive, set(hashes) - with_positive):
        order = sorted(group, key=lambda key: seed_for(seed, "split", key))
        count = min(max(round(len(order) * validation_share), 1), len(order) - 1) if len(order) > 1 else 0
        held_out.update(order[:count])
    return [replace(instance, split="validation" if key in held_out else "train") for key, instance in zip(hashes, instances, strict=True)]


def check_no_leak(instances: Sequence[Instance]) -> None:
    """Refuse instances of which one picture is in both splits.

    Raises:
        DataError: naming the picture.
    """
    splits: dict[str, str] = {}
    for instance in instances:
        key = picture_hash(instance.image)
        if splits.setdefault(key, instance.split) != instance.split:
            raise DataError(f"picture {instance.image} is in train and in validation; a picture belongs to one split")


class OpenVocabularyProvider:
    """Boxes and masks from a set in LVIS's layout: the concept by name or synonym, negatives from the same group and from pictures in
    which the concept was looked for and is not (CLOVA 3.4 (2), for LOC and SEG).

    Args:
        pictures: folder of the set's pictures.
        out: where used pictures and masks are stored under their hash.
        prefix: path of ``out`` relative to the data folder.
        validation_share: of the pictures.
    """

    source: DataSource = "open_vocabulary"

    def __init__(
        self,
        annotations: LvisSet,
        *,
        pictures: Path,
        out: Path,
        prefix: str = "",
        validation_share: float = 0.35,
        limits: ImageLimits | None = None,
    ) -> None:
        self._set, self._pictures, self._out = annotations, pictures, out
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self._share, self._limits = validation_share, limits
        self.skipped: list[Skip] = []

    def collect(self, concept: str, *, tool: str, positives: int, negatives: int, seed: int) -> list[Instance]:
        """Regions of the concept and of what is easily taken for it. Unreadable pictures are skipped with a reason, also if that
        leaves fewer than asked for."""
        category = self._set.find_category(concept)
        if category is None:
            return []
        # draws are keyed by region, so that asking for more keeps what a smaller request got
        own = sorted(self._set.find_regions(category.id), key=lambda region: seed_for(seed, category.id, region.id))
        others = [region for tier in self._set.find_negatives(category.id) for region in self._spread(tier, seed=seed)]
        taken = [*self._take(own, positives, concept, tool=tool), *self._take(others, negatives, concept, tool=tool)]
        return split_instances(taken, validation_share=self._share, seed=seed)

    def _spread(self, regions: Sequence[LvisRegion], *, seed: int) -> list[LvisRegion]:
        """One region of each other category in turn, the categories in the order of the list, so that no common one fills the set."""
        by_category: dict[int, list[LvisRegion]] = {}
        for region in regions:
            by_category.setdefault(region.category, []).append(region)
        for group in by_category.values():
            group.sort(key=lambda region: seed_for(seed, region.category, region.id))
        longest = max((len(group) for group in by_category.values()), default=0)
        return [group[turn] for turn in range(longest) for group in by_category.values() if turn < len(group)]

    def _take(self, regions: Sequence[LvisRegion], most: int, concept: str, *, tool: str) -> list[Instance]:
        taken: list[Instance] = []
        for region in regions:
            if len(taken) >= most:
                break
            try:
                taken.append(self._make(region, concept, tool=tool))
            except DataError as error:
                self.skipped.append(Skip(f"annotation {region.id}", str(error)))
        return taken

    def _make(self, region: LvisRegion, concept: str, *, tool: str) -> Instance:
        picture, category = self._set.pictures[region.picture], self._set.categories[region.category]
        stored = import_image(self._pictures / picture.path, out=self._out, limits=self._limits)
        with Image.open(self._out / stored.name) as opened:
            if opened.size != (picture.width, picture.height):
                raise DataError(f"{picture.path}: {opened.size[0]}x{opened.size[1]} pixels, the file says {picture.width}x{picture.height}")
        positive = self._set.find_category(concept) == category
        mask = self._store_mask(region, width=picture.width, height=picture.height) if tool == "SEG" else None
        return Instance(
            id=make_id("instance", self.source, tool, concept, region.id, stored.sha256),
            tool=tool,
            concept=concept,
            image=f"{self._prefix}{stored.name}",
            positive=positive,
            split="train",
            source=self.source,
            box=region.box,
            mask=f"{self._prefix}{mask.name}" if mask else None,
            label=concept if positive else category.name,
            group=category.group,
            origin=f"{picture.path}#{region.id}",
            licence=picture.licence,
        )

    def _store_mask(self, region: LvisRegion, *, width: int, height: int) -> StoredImage | None:
        mask = draw_mask(region, width=width, height=height)
        return None if mask is None else store_picture(Image.fromarray(mask.astype(np.uint8) * 255), out=self._out)


class ImageSearchProvider:
    """Whole pictures found by search: the concept's, and those of concepts easily taken for it (CLOVA 3.4 (3), for SELECT, CLASSIFY and
    REPLACE).

    Args:
        name_negatives: names confusable concepts; without it, those that the source files under the same kind of thing.
        confusable: how many of them are searched; negatives are divided evenly among them.
        refuse_word: why a concept is not searched for; empty where it is.
    """

    source: DataSource = "image_search"

    def __init__(
        self,
        pictures: PictureSource,
        *,
        prefix: str = "",
        validation_share: float = 0.35,
        name_negatives: NameNegatives | None = None,
        confusable: int = 3,
        refuse_word: Callable[[str], str] = lambda word: "",
    ) -> None:
        self._pictures, self._name_negatives, self._confusable, self._refuse = pictures, name_negatives, confusable, refuse_word
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self._share = validation_share
        self.report = SearchReport()

    @property
    def skipped(self) -> list[Skip]:
        """The pictures that were refused, with their reasons."""
        return self.report.refused

    def collect(self, concept: str, *, tool: str, positives: int, negatives: int, seed: int) -> list[Instance]:
        """Pictures of the concept first in the source's order. A picture that is found for two concepts counts for the first only.

        Raises:
            DataError: the search cannot be reached.
        """
        found = self._pictures.find_pictures(concept, most=positives, report=self.report)
        if not found:
            return []
        group = self._pictures.find_group(concept)
        taken = [self._make(picture, concept, label=concept, group=group, tool=tool) for picture in found]
        seen = {picture.sha256 for picture in found}
        names = self._list_confusable(concept, group, seed=seed) if negatives else ()
        share = -(-negatives // len(names)) if names else 0
        for name in names:
            for picture in self._pictures.find_pictures(name, most=share, report=self.report):
                if picture.sha256 not in seen and len(taken) < len(found) + negatives:
                    seen.add(picture.sha256)
                    taken.append(self._make(picture, concept, label=name, group=self._pictures.find_group(name), tool=tool))
        return split_instances(taken, validation_share=self._share, seed=seed)

    def _list_confusable(self, concept: str, group: str, *, seed: int) -> tuple[str, ...]:
        if self._name_negatives is not None:
            named = self._name_negatives(concept, group, self._confusable)
            names = [name for name in dict.fromkeys(named) if name.lower() != concept.lower()]
        else:  # every sibling: nobody has said which of them are the most confusable
            names = sorted(self._pictures.list_siblings(concept), key=lambda name: seed_for(seed, concept, name))
        refused = {name: reason for name in names if (reason := self._refuse(name))}
        self.report.refused += [Skip(name, reason) for name, reason in refused.items()]
        return tuple(name for name in names if name not in refused)

    def _make(self, picture: FoundPicture, concept: str, *, label: str, group: str, tool: str) -> Instance:
        return Instance(
            id=make_id("instance", self.source, tool, concept, label, picture.sha256),
            tool=tool,
            concept=concept,
            image=f"{self._prefix}{picture.name}",
            positive=label == concept,
            split="train",
            source=self.source,
            label=label,
            group=group,
            origin=picture.origin,
            licence=picture.licence,
        )
