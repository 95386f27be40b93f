"""Exemplars: what REPLACE knows of a word. A shape is a mask, a colour its mean, a pattern a patch of ink, each taken from crops.

The exemplars of the model's own words lie beside its weights; those of learned words are the tensors of their prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import ndimage

from visloop.errors import DataError
from visloop.tools.naming import Region
from visloop.tools.values import Box, Mask

EXEMPLARS_NAME: Final = "exemplars.safetensors"
SHAPE, COLOR, PATTERN = "shape", "color", "pattern"
KINDS: Final = (SHAPE, COLOR, PATTERN)
"""The groups whose words can be drawn."""
SIDE = 32
INK_CONTRAST = 45.0
"""Levels between the dark and the light part of an object from which it has a pattern."""
DARK, PALE = 70.0, 190.0
INK_SHADE, PALE_INK = 0.12, 215.0
"""Ink is almost black, so that it shows on every colour; on a dark colour it is light grey."""

Exemplar = NDArray[np.float32]
"""Shape: cover (32, 32), 0-1. Colour: (1, 3), 0-1. Pattern: ink (32, 32), 0 or 1, one value per pixel."""


def find_ink(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The colour (3,) of an object and which of its pixels (n, 3) are ink."""
    light = pixels.mean(axis=1)
    low, high = np.percentile(light, [8, 92])
    if high - low < INK_CONTRAST:
        return np.median(pixels, axis=0), np.zeros(len(pixels), np.bool_)
    dark = light < (low + high) / 2
    brighter = np.median(pixels[~dark], axis=0)
    # Pale and grey on black is the ink of a dark object; any other dark part is ink itself.
    inverted = brighter.mean() > PALE and np.ptp(brighter) < 30
    ink = ~dark if inverted else dark
    return np.median(pixels[~ink], axis=0), ink


def make_exemplar(kind: str, samples: Sequence[tuple[NDArray[np.uint8], Region]]) -> Exemplar:
    """The exemplar of a word from pictures (height, width, 3) with the regions that show it.

    Raises:
        DataError: no sample, a region without a mask, or a kind that cannot be drawn.
    """
    if not samples or any(region.mask is None for _, region in samples) or kind not in KINDS:
        raise DataError(f"an exemplar needs samples with masks of one of {KINDS}; got {len(samples)} of {kind!r}")
    if kind == SHAPE:
        return _find_medoid([align_mask(region) for _, region in samples])
    if kind == COLOR:
        return _find_color([pixels[region.mask].astype(np.float64) for pixels, region in samples])
    return _find_pattern(samples)


def align_mask(region: Region) -> Exemplar:
    """A region's mask, holes filled, scaled so that its longer side is 32 pixels, centred (32, 32)."""
    assert region.mask is not None
    mask = ndimage.binary_fill_holes(region.mask)
    box = region.box
    side = max(box.right - box.left, box.bottom - box.top)
    center_x, center_y = box.center
    frame = (center_x - side / 2, center_y - side / 2, center_x + side / 2, center_y + side / 2)
    canvas = Image.fromarray(mask.astype(np.uint8) * 255)
    scaled = canvas.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=_clip_frame(frame, canvas.size))
    return (np.asarray(scaled) / 255).astype(np.float32)


def _clip_frame(frame: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The frame moved into the picture: an object at the wall is never larger than the picture."""
    left, top, right, _bottom = frame
    side = min(right - left, *size)
    left, top = min(max(left, 0.0), size[0] - side), min(max(top, 0.0), size[1] - side)
    return left, top, left + side, top + side


def _find_medoid(covers: Sequence[Exemplar]) -> Exemplar:
    """The cover that overlaps most with all others: the mean of turned stars has no points."""
    stack = np.stack(covers)
    shared = np.minimum(stack[:, None], stack[None]).sum((2, 3)) / np.maximum(np.maximum(stack[:, None], stack[None]).sum((2, 3)), 1e-6)
    return covers[int(shared.sum(1).argmax())]


def _find_color(regions: Sequence[NDArray[np.float64]]) -> Exemplar:
    """The colour that the samples share: the median of each one's colour, outliers left out once."""
    colors = np.stack([find_ink(pixels)[0] for pixels in regions])
    middle = np.median(colors, axis=0)
    near = np.linalg.norm(colors - middle, axis=1) <= 80
    return (np.median(colors[near] if near.any() else colors, axis=0) / 255)[None].astype(np.float32)


def _find_pattern(samples: Sequence[tuple[NDArray[np.uint8], Region]]) -> Exemplar:
    """The ink in the largest square inside of a sample, continued by reflection to 32 pixels at the sample's own scale."""
    best, widest = np.zeros((SIDE, SIDE), np.float32), 0
    for pixels, region in samples:
        mask = np.pad(ndimage.binary_fill_holes(region.mask), 1)
        depth = ndimage.distance_transform_cdt(mask, metric="chessboard")[1:-1, 1:-1]
        reach = int(depth.max()) - 1
        if reach <= widest:
            continue
        row, column = (int(value) for value in np.unravel_index(depth.argmax(), depth.shape))
        patch = pixels[row - reach : row + reach + 1, column - reach : column + reach + 1].astype(np.float64)
        _, ink = find_ink(patch.reshape(-1, 3))
        before = (SIDE - patch.shape[0]) // 2
        pad = (max(before, 0), max(SIDE - patch.shape[0] - before, 0))
        continued = np.pad(ink.reshape(patch.shape[:2]), (pad, pad), mode="symmetric")
        best, widest = continued[:SIDE, :SIDE].astype(np.float32), reach
    return best


def draw_exemplar(
    pixels: NDArray[np.uint8], box: Box, *, cover: NDArray[np.float32], color: NDArray[np.float64], ink: Exemplar | None
) -> tuple[NDArray[np.uint8], Mask]:
    """Draw an object into a picture.

    Args:
        cover: (height, width) of the whole picture, 0-1.
        color: RGB, 0-255.
        ink: a pattern, centred on the box and continued periodically, or None.

    Returns:
        The picture, and where the object is.
    """
    height, width = pixels.shape[:2]
    drawn = np.broadcast_to(color, (height, width, 3)).astype(np.float64)
    if ink is not None:
        x, y = box.center
        rows = (np.arange(height) - round(y) + SIDE // 2) % SIDE
        columns = (np.arange(width) - round(x) + SIDE // 2) % SIDE
        shade = color * INK_SHADE if color.mean() >= DARK else np.full(3, PALE_INK)
        drawn = np.where(ink[np.ix_(rows, columns)][:, :, None] > 0.5, shade, drawn)
    mixed = pixels * (1 - cover[:, :, None]) + drawn * cover[:, :, None]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), cover >= 0.5


def place_shape(shape: Exemplar, box: Box, *, size: tuple[int, int]) -> NDArray[np.float32]:
    """The cover (height, width) of a shape whose longer side fills the longer side of ``box``, centred on it."""
    side = max(round(max(box.right - box.left, box.bottom - box.top)), 2)
    x, y = box.center
    left, top = round(x - side / 2), round(y - side / 2)
    scaled = Image.fromarray(np.uint8(np.clip(shape, 0, 1) * 255)).resize((side, side), Image.Resampling.BILINEAR)
    canvas = Image.new("L", size)
    canvas.paste(scaled, (left, top))
    return (np.asarray(canvas) / 255).astype(np.float32)


def save_exemplars(exemplars: dict[str, Exemplar], folder: Path) -> None:
    """Write exemplars by ``<kind>.<word>``, in half precision."""
    save_file({name: np.ascontiguousarray(value.astype(np.float16)) for name, value in exemplars.items()}, folder / EXEMPLARS_NAME)


def load_exemplars(folder: Path | None) -> dict[str, Exemplar]:
    """The exemplars of a model's folder; none where there is no such file.

    Raises:
        DataError: the file is corrupt.
    """
    if folder is None or not (folder / EXEMPLARS_NAME).is_file():
        return {}
    try:
        return {name: value.astype(np.float32) for name, value in load_file(folder / EXEMPLARS_NAME).items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / EXEMPLARS_NAME}: not a safetensors file: {error}") from error
