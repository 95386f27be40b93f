"""Open pictures for models: RGB, upright, within a pixel budget, or an error that names the file."""

import base64
import io
import math
from functools import lru_cache
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image, ImageOps, UnidentifiedImageError

from visloop.errors import DataError

MAX_DECLARED_PIXELS = 80_000_000
"""A header that declares more than this is refused before a pixel is decoded (a small file can unpack to gigabytes)."""

_CACHED_PICTURES = 64
_IN_USE: WeakValueDictionary[tuple[Path, int, int, int, int | None], Image.Image] = WeakValueDictionary()
_PASSED_THROUGH = {"JPEG": "image/jpeg", "PNG": "image/png"}


def load_image(path: Path | str, *, max_pixels: int, min_pixels: int | None = None) -> Image.Image:
    """The picture as RGB, turned upright by its EXIF tag, transparent parts white, scaled into the pixel budget.

    The aspect ratio is kept; a picture inside the budget keeps its size. Pictures in use and the last few others are kept
    in memory (until the file changes), so the returned image is shared: copy it before drawing on it.

    Args:
        max_pixels: largest width * height; a larger picture is scaled down.
        min_pixels: smallest width * height; a smaller picture is scaled up.

    Raises:
        DataError: the file is missing, not a picture, cut short, damaged, or declares more than ``MAX_DECLARED_PIXELS``.
    """
    path = Path(path)
    key = (path, *stamp_file(path), max_pixels, min_pixels)
    picture = _IN_USE.get(key)
    if picture is None:
        picture = _IN_USE[key] = _load_cached(*key)
    return picture


def encode_data_url(path: Path | str, *, max_pixels: int) -> str:
    """The picture as a base64 data URL: the file's own bytes for a JPEG or PNG inside the budget, else scaled and as PNG.

    Raises:
        DataError: as ``load_image``.
    """
    path = Path(path)
    picture = load_image(path, max_pixels=max_pixels)
    with Image.open(path) as original:
        kind, size = _PASSED_THROUGH.get(original.format or ""), original.size
    if kind and size == picture.size:
        data = path.read_bytes()
    else:
        kind, buffer = "image/png", io.BytesIO()
        picture.save(buffer, format="PNG")
        data = buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def stamp_file(path: Path) -> tuple[int, int]:
    """Time of the last change (ns) and size (bytes): with the path, what tells one picture from another.

    Raises:
        DataError: the file is missing or cannot be reached.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: the picture cannot be read ({error.strerror or error})") from error
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=_CACHED_PICTURES)
def _load_cached(path: Path, modified: int, size: int, max_pixels: int, min_pixels: int | None) -> Image.Image:
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > MAX_DECLARED_PIXELS:
                raise DataError(f"{path}: the picture declares {width}x{height} pixels; at most {MAX_DECLARED_PIXELS} are decoded")
            opened.load()
            picture = flatten_alpha(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture in a known format ({size} bytes)") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: the picture declares too many pixels ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the picture is damaged or cut short ({error})") from error
    return _fit_pixels(picture, max_pixels=max_pixels, min_pixels=min_pixels)


def flatten_alpha(picture: Image.Image) -> Image.Image:
    """The picture as RGB; transparent parts are white."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(canvas, layer).convert("RGB")


def _fit_pixels(picture: Image.Image, *, max_pixels: int, min_pixels: int | None) -> Image.Image:
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        scale = math.sqrt(max_pixels / pixels)
        size = (math.floor(picture.width * scale), math.floor(picture.height * scale))
    elif min_pixels is not None and pixels < min_pixels:
        scale = math.sqrt(min_pixels / pixels)
        size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
    else:
        return picture
    return picture.resize((max(1, size[0]), max(1, size[1])), Image.Resampling.BICUBIC)
