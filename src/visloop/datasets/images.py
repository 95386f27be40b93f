"""Pictures of outside data: checked, stored once under their content hash, or refused with a reason that is kept."""

import hashlib
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from visloop.chat.images import load_image
from visloop.errors import DataError
from visloop.records.reasoning import Sample, Split
from visloop.records.shards import write_bytes

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a picture must be to enter the data: sides in pixels, longer side over shorter, pixels that are decoded at most.

    Large pictures are kept as they are; a model scales them to its own budget when it opens them.
    """

    min_side: int = 4
    max_aspect: float = 200.0
    max_bytes: int = 50_000_000


_PASSED: dict[tuple[str, ImageLimits], str] = {}
"""Suffixes of pictures that were decoded and passed, by hash and limits: the same ones are collected for many words."""
_MOST_PASSED = 100_000


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture in the data folder: its name (``<first two hex>/<sha256><suffix>``) and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Skip:
    """A row that was left out: where it stood and why."""

    where: str
    reason: str


@dataclass(slots=True)
class ReadReport:
    """What a reader met: rows read, rows kept, rows left out with their reasons."""

    read: int = 0
    kept: int = 0
    skipped: list[Skip] = field(default_factory=list)

    def skip(self, where: str, reason: str) -> None:
        self.skipped.append(Skip(where, reason))

    def check_rate(self, source: str, *, limit: float) -> None:
        """Refuse data of which too much is broken.

        Raises:
            DataError: nothing could be kept, or more than ``limit`` (a share of the rows read) was left out.
        """
        rate = len(self.skipped) / self.read if self.read else 1.0
        if self.kept == 0 or rate > limit:
            first = "; ".join(f"{skip.where}: {skip.reason}" for skip in self.skipped[:3]) or "there is no row"
            raise DataError(f"{source}: {len(self.skipped)} of {self.read} rows cannot be used (limit {limit:.0%}): {first}")


@dataclass(frozen=True, slots=True)
class DatasetRead:
    """Samples of an outside dataset and the report of reading them."""

    samples: list[Sample]
    report: ReadReport

    def select_split(self, split: Split) -> list[Sample]:
        """The samples of one split, in reading order."""
        return [sample for sample in self.samples if sample.split == split]


def store_picture(picture: Image.Image, *, out: Path) -> StoredImage:
    """Write a picture as PNG under its content hash; a picture that is there already is not written again."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return _store_bytes(buffer.getvalue(), suffix=".png", out=out)


def import_image(source: Path | bytes, *, out: Path, limits: ImageLimits | None = None) -> StoredImage:
    """Check a picture file (or its bytes) by decoding it whole, then store its own bytes unchanged.

    Raises:
        DataError: missing, damaged, of an unknown format, or outside ``limits``; nothing is left in ``out``.
    """
    limits = limits or ImageLimits()
    if isinstance(source, bytes):
        data, where = source, "picture"
    else:
        where = str(source)
        try:
            data = source.read_bytes()
        except OSError as error:
            raise DataError(f"{where}: the picture cannot be read ({error.strerror})") from error
    if len(data) > limits.max_bytes:
        raise DataError(f"{where}: {len(data)} bytes; at most {limits.max_bytes} are taken")
    key = (hashlib.sha256(data).hexdigest(), limits)
    suffix = _PASSED.get(key)
    if suffix is None:
        suffix = _PASSED[key] = _check_picture(data, where, limits)
        if len(_PASSED) > _MOST_PASSED:
            del _PASSED[next(iter(_PASSED))]
    return _store_bytes(data, suffix=suffix, out=out)


def _check_picture(data: bytes, where: str, limits: ImageLimits) -> str:
    """The suffix of a picture's format."""
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate"
        candidate.write_bytes(data)
        try:
            load_image(candidate, max_pixels=limits.max_bytes)
        except DataError as error:
            raise DataError(str(error).replace(str(candidate), where)) from error.__cause__
    with Image.open(io.BytesIO(data)) as picture:
        (width, height), kind = picture.size, picture.format or ""
    if min(width, height) < limits.min_side or max(width, height) > limits.max_aspect * min(width, height):
        raise DataError(
            f"{where}: {width}x{height} pixels; sides of {limits.min_side} or more and an aspect up to {limits.max_aspect:g} are needed"
        )
    if kind not in _SUFFIXES:
        raise DataError(f"{where}: format {kind or 'unknown'}; one of {', '.join(_SUFFIXES)} is needed")
    return _SUFFIXES[kind]


def _store_bytes(data: bytes, *, suffix: str, out: Path) -> StoredImage:
    """Write an encoded picture under its content hash; what is there already is not written again."""
    digest = hashlib.sha256(data).hexdigest()
    path = out / digest[:2] / f"{digest}{suffix}"
    if not path.is_file():
        # a file under its hash is never half-written, so that finding it means having it
        write_bytes(path, data, sync=False)
    return StoredImage(f"{digest[:2]}/{path.name}", digest)
