"""Regions of drawn pictures without a model: what differs from the ground, in connected parts (the proposals of LOC and SEG).

Made for pictures of about 100 pixels a side on a flat or noisy, greyish ground. An object stays one region whatever pattern is
drawn on it; objects that touch are parted where their colours differ, and blocks of one colour by their sides.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from visloop.tools.values import Box, Mask

BLOCK_SIDES: Final = (30, 20, 10)
"""Sides in pixels of the blocks that NLVR stacks; blocks of one colour that touch are told apart by them."""

_DISTANCES, _NOISE_FACTOR = (25.0, 65.0), 4.2
"""A pixel belongs to an object from so many standard deviations of the ground's noise, but from no less and no more than these distances
from the ground (RGB levels)."""
_EDGE_SHARE = 0.4
"""A pixel at the rim of an object counts as its own from this share of its neighbours' contrast: the rest is anti-aliasing."""
_GREY_SPREAD, _GREY_RANGE = 50.0, (60.0, 235.0)
"""A colour can be ground if its channels lie this close together, and their mean in this range."""
_NEAR = 40.0
_LEAST_GROUND = 0.12
"""Less than this share of a picture is no ground: the blurred rim of a tightly cropped object looks like it."""
_LEAST_THICKNESS = 4
"""Pixels from the middle of a plain part to its rim from which it is an object of its own and not part of a pattern."""
_OTHER_COLOR = 60.0
_MOST_BLOCKS = 8

_Pixels = NDArray[np.float64]
_EIGHT = np.ones((3, 3), dtype=bool)


def propose_regions(image: Image.Image, *, least_area: int = 16, most: int = 64) -> list[tuple[Box, Mask]]:
    """Boxes and masks (height, width) of the objects, in reading order of their first pixels.

    A picture without any ground, such as the tight crop of a square, is one region. A picture of ground alone has none.

    Args:
        least_area: pixels from which a region counts; smaller ones are noise.
        most: at most so many regions, the largest.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    found = _find_ground(pixels)
    if found is None:
        masks = [np.ones(pixels.shape[:2], dtype=bool)]
    else:
        ground, noise = found
        masks = [part for mask in _find_parts(pixels, ground, noise, least_area=least_area) for part in _split_part(mask, pixels, noise)]
    masks = [mask for mask in masks if mask.sum() >= least_area]
    if len(masks) > most:
        limit = sorted((int(mask.sum()) for mask in masks), reverse=True)[most - 1]
        masks = [mask for mask in masks if mask.sum() >= limit][:most]
    return [(box_of_mask(mask), mask) for mask in masks]


def box_of_mask(mask: Mask) -> Box:
    """The tightest box around the true pixels of ``mask`` (height, width).

    Raises:
        ValueError: no pixel is true.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box")
    return Box(left=float(columns[0]), top=float(rows[0]), right=float(columns[-1] + 1), bottom=float(rows[-1] + 1))


def _find_ground(pixels: _Pixels) -> tuple[_Pixels, float] | None:
    """Colour (3,) and noise of the ground: the greyish colour that most of the picture's border has; None without one."""
    border = np.concatenate([side.reshape(-1, 3) for side in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])])
    # one whole number per bin of 16 levels a channel
    bins = ((border // 16) @ (256, 16, 1)).astype(np.int64)
    counts = np.bincount(bins)
    best, best_share = None, 0.05
    for number in np.argsort(-counts, kind="stable")[: min(12, np.count_nonzero(counts))]:
        color = np.median(border[bins == number], axis=0)
        color = np.median(border[np.linalg.norm(border - color, axis=1) < _NEAR], axis=0)
        share = float((np.linalg.norm(border - color, axis=1) < _NEAR).mean())
        greyish = np.ptp(color) <= _GREY_SPREAD and _GREY_RANGE[0] <= color.mean() <= _GREY_RANGE[1]
        if greyish and share > best_share:
            best, best_share = color, share
    if best is None:
        return None
    near = pixels[np.linalg.norm(pixels - best, axis=2) < _NEAR]
    if len(near) < _LEAST_GROUND * pixels.shape[0] * pixels.shape[1]:
        return None
    ground = np.median(near, axis=0)
    deviations = 1.4826 * np.median(np.abs(near - ground), axis=0)
    return ground, float(np.sqrt((deviations**2).mean()))


def _find_parts(pixels: _Pixels, ground: _Pixels, noise: float, *, least_area: int) -> list[Mask]:
    """Connected parts that differ from the ground, as masks of the whole picture."""
    distance = np.linalg.norm(pixels - ground, axis=2)
    differs = distance > np.clip(_NOISE_FACTOR * noise, *_DISTANCES)
    rim = differs & ~ndimage.binary_erosion(differs, border_value=1)
    contrast = ndimage.maximum_filter(np.where(differs, distance, 0.0), size=3)
    differs &= ~(rim & (distance < _EDGE_SHARE * contrast))
    labels, count = ndimage.label(differs, structure=_EIGHT)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
    return [labels == index for index in range(1, count + 1) if sizes[index] >= least_area]


def _split_part(mask: Mask, pixels: _Pixels, noise: float) -> list[Mask]:
    """The objects of one connected part."""
    box = box_of_mask(mask)
    window = np.s_[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
    parts = []
    for piece in _split_colors(mask[window], pixels[window], noise):
        flat = float(np.ptp(pixels[window][piece], axis=0).max()) <= 2.0
        for block in _split_blocks(piece) if flat else [piece]:
            whole = np.zeros_like(mask)
            whole[window] = block
            parts.append(whole)
    return parts


def _split_colors(mask: Mask, pixels: _Pixels, noise: float) -> list[Mask]:
    """Part objects of different colours that touch. Every pixel goes to the nearest plain, thick piece; thin pieces are pattern."""
    tolerance = 20.0 + 6.0 * noise
    spread = np.zeros(mask.shape)
    for channel in range(3):
        values = pixels[:, :, channel]
        highest = ndimage.maximum_filter(np.where(mask, values, -np.inf), size=3, mode="nearest")
        lowest = ndimage.minimum_filter(np.where(mask, values, np.inf), size=3, mode="nearest")
        spread = np.maximum(spread, highest - lowest)
    labels, count = ndimage.label(mask & (spread <= tolerance))
    if count < 2:
        return [mask]
    padded = np.pad(labels > 0, 1)
    depth = ndimage.distance_transform_cdt(padded, metric="chessboard")[1:-1, 1:-1]
    thick = [index for index in range(1, count + 1) if depth[labels == index].max() >= _LEAST_THICKNESS]
    colors = {index: np.median(pixels[labels == index], axis=0) for index in thick}
    groups: list[list[int]] = []
    for index in thick:
        home = next((group for group in groups if np.linalg.norm(colors[group[0]] - colors[index]) < _OTHER_COLOR), None)
        groups.append([index]) if home is None else home.append(index)
    if len(groups) < 2:
        return [mask]
    seeds = np.zeros(mask.shape, dtype=np.int64)
    for number, group in enumerate(groups, start=1):
        seeds[np.isin(labels, group)] = number
    rows, columns = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    nearest = np.where(mask, seeds[rows, columns], 0)
    pieces = []
    for number in range(1, len(groups) + 1):
        parts, total = ndimage.label(nearest == number, structure=_EIGHT)
        pieces += [parts == index for index in range(1, total + 1)]
    return sorted(pieces, key=lambda piece: int(np.flatnonzero(piece)[0]))


def _split_blocks(piece: Mask) -> list[Mask]:
    """Part touching blocks of one colour: the fewest squares of known sides that cover the piece exactly; else the piece itself."""
    box = box_of_mask(piece)
    if piece.sum() == box.area and box.right - box.left == box.bottom - box.top:
        return [piece]
    tiles = _cover_squares(piece, most=_MOST_BLOCKS)
    if tiles is None:
        return [piece]
    blocks = []
    for top, left, side in tiles:
        block = np.zeros_like(piece)
        block[top : top + side, left : left + side] = True
        blocks.append(block)
    return blocks


def _cover_squares(rest: Mask, *, most: int) -> list[tuple[int, int, int]] | None:
    """The fewest disjoint squares (top, left, side) that make up ``rest``, at most ``most``; None where there are none."""
    area = int(rest.sum())
    if not area:
        return []
    if area > most * BLOCK_SIDES[0] ** 2 or area < BLOCK_SIDES[-1] ** 2:
        return None
    top, left = divmod(int(np.flatnonzero(rest)[0]), rest.shape[1])
    best: list[tuple[int, int, int]] | None = None
    for side in BLOCK_SIDES:
        square = rest[top : top + side, left : left + side]
        if square.shape != (side, side) or not square.all():
            continue
        after = rest.copy()
        after[top : top + side, left : left + side] = False
        others = _cover_squares(after, most=most - 1)
        if others is not None:
            best, most = [(top, left, side), *others], len(others)
    return best
