"""Pictures of the page: uploads taken in, samples to choose from, boxes drawn on what a step saw."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageDraw

from visloop.chat.images import load_image
from visloop.datasets.images import StoredImage, store_picture
from visloop.errors import DataError
from visloop.tools.values import Box, VisualObject

MAX_UPLOAD_BYTES = 10_000_000
"""Bytes of one uploaded picture."""
MAX_PICTURES = 3
MAX_SIDE, MIN_SIDE = 1024, 4
"""Pixels: a longer side is scaled down to the first, a shorter one than the second is refused."""
_SHOWN_SIDE = 224
_COLORS = ("#d6336c", "#1971c2", "#2f9e44", "#e8590c", "#7048e8", "#0c8599")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in the page's folder: its path relative to the data folder, the SHA-256 of its bytes, and of the file as it came."""

    path: str
    sha256: str
    upload: str


class PictureStore:
    """The pictures below ``data/page/pictures``, each under the hash of its bytes."""

    def __init__(self, data: Path, page: Path) -> None:
        self._data, self._folder = data, page / "pictures"

    def take_upload(self, content: bytes, *, name: str) -> Picture:
        """Decode an uploaded file whole and keep its pixels, as a PNG: none of its own bytes, its name or what hides in it.

        Raises:
            DataError: too large, too small, damaged, or not a picture.
        """
        shown = Path(name.replace("\\", "/")).name[:60] or "the upload"
        if len(content) > MAX_UPLOAD_BYTES:
            raise DataError(f"{shown}: {len(content) / 1e6:.1f} MB; a picture may have {MAX_UPLOAD_BYTES / 1e6:.0f} MB")
        with tempfile.TemporaryDirectory(prefix="visloop-") as folder:
            candidate = Path(folder) / "upload"
            candidate.write_bytes(content)
            try:
                picture = load_image(candidate, max_pixels=MAX_SIDE * MAX_SIDE)
            except DataError as error:
                raise DataError(str(error).replace(str(candidate), shown)) from error.__cause__
        if min(picture.size) < MIN_SIDE:
            raise DataError(f"{shown}: {picture.width}x{picture.height} pixels; sides of {MIN_SIDE} or more are needed")
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        return self._picture(store_picture(picture.convert("RGB"), out=self._folder), upload=sha256(content).hexdigest())

    def take_known(self, path: str) -> Picture:
        """A copy of a picture that lies in the data folder.

        Raises:
            DataError: it is gone or does not open.
        """
        picture = load_image(self._data / path, max_pixels=MAX_SIDE * MAX_SIDE)
        return self._picture(store_picture(picture, out=self._folder), upload=sha256((self._data / path).read_bytes()).hexdigest())

    def keep(self, picture: Image.Image) -> str:
        """Keep a picture that the page made; its path relative to the data folder."""
        return self._picture(store_picture(picture.convert("RGB"), out=self._folder), upload="").path

    def _picture(self, stored: StoredImage, *, upload: str) -> Picture:
        path = (self._folder / stored.name).relative_to(self._data).as_posix()
        return Picture(path=path, sha256=stored.sha256, upload=upload)


def find_picture(data: Path, path: str) -> Path | None:
    """The file of a picture that may be shown: inside the data folder, whatever the path says, and a picture by its suffix."""
    place = (data / path).resolve()
    inside = place.is_relative_to(data.resolve()) and place.suffix.lower() in (".png", ".jpg", ".jpeg")
    return place if inside and place.is_file() else None


def draw_regions(picture: Image.Image, regions: Sequence[Box | VisualObject]) -> Image.Image:
    """The picture enlarged, with numbered boxes and their labels."""
    scale = max(1, round(_SHOWN_SIDE / max(picture.size)))
    drawn = picture.convert("RGB").resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    for number, region in enumerate(regions, start=1):
        box = region.box if isinstance(region, VisualObject) else region
        label = (region.label or box.label) if isinstance(region, VisualObject) else box.label
        color = _COLORS[(number - 1) % len(_COLORS)]
        left, top, right, bottom = (round(value * scale) for value in box.corners)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
        text = f"{number} {label}".strip()
        width = pen.textlength(text) + 6
        x, y = min(left, max(0, drawn.width - round(width))), top - 13 if top >= 13 else min(bottom, drawn.height - 13)
        pen.rectangle((x, y, x + width, y + 12), fill=color)
        pen.text((x + 3, y), text, fill="white")
    return drawn
