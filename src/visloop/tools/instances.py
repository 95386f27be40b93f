"""From instance records to crops: which region of its picture an instance shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from visloop.errors import DataError
from visloop.records.assistant import Instance
from visloop.tools.crops import cut_crop
from visloop.tools.naming import Region
from visloop.tools.values import Box, overlap_ratio

LEAST_OVERLAP = 0.5
"""Intersection over union from which a proposed region is the instance's box, so that its mask is the instance's."""


@dataclass(frozen=True, slots=True, eq=False)
class InstanceCrop:
    """One instance with its picture, the region it shows and the crop of it."""

    instance: Instance
    picture: Image.Image
    region: Region
    crop: Image.Image


def read_instances(instances: Sequence[Instance], *, root: Path, propose: Callable[[Image.Image], Sequence[Region]]) -> list[InstanceCrop]:
    """Read the pictures (paths are relative to ``root``) and cut the regions, as the tools cut them.

    Args:
        propose: gives the regions of a picture.

    Raises:
        DataError: a picture or mask is missing or unreadable.
    """
    return [_read_instance(instance, root, propose) for instance in instances]


def _read_instance(instance: Instance, root: Path, propose: Callable[[Image.Image], Sequence[Region]]) -> InstanceCrop:
    picture = _read_image(root / instance.image, instance).convert("RGB")
    proposed = propose(picture)
    if instance.box is None:
        width, height = picture.size
        whole = Region(Box(left=0, top=0, right=width, bottom=height))
        region = max(proposed, key=lambda found: found.size, default=whole)
    else:
        left, top, right, bottom = instance.box
        box = Box(left=left, top=top, right=right, bottom=bottom)
        if instance.mask is not None:
            region = Region(box, np.asarray(_read_image(root / instance.mask, instance).convert("L")) > 127)
        else:
            region = match_region(box, proposed)
    return InstanceCrop(instance, picture, region, cut_crop(np.asarray(picture), region.box, region.mask))


def match_region(box: Box, proposed: Sequence[Region]) -> Region:
    """The proposed region that is this box, or the box without a mask."""
    best = max(proposed, key=lambda found: overlap_ratio(found.box, box), default=None)
    return best if best is not None and overlap_ratio(best.box, box) >= LEAST_OVERLAP else Region(box)


def _read_image(path: Path, instance: Instance) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"instance {instance.id}: cannot read the picture {path}: {error}") from error
