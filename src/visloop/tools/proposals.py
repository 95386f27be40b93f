"""Regions of drawn pictures without a model: what differs from the ground, in connected parts (the proposals of LOC and SEG).

Made for pictures of about 100 pixels a side on a flat or noisy, greyish ground. An object stays one region whatever pattern is
drawn on it; objects that touch are parted where their colours differ, and blocks of one colour by their sides.
"""

from typing import Any, Final

import cv2
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

_Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3)."""
_Floats = NDArray[np.float64]
cv2.setNumThreads(1)  # of the process: labelling starts threads for the smallest picture, which costs a core and gains nothing
_SQUARE: Final = np.ones((3, 3), dtype=np.uint8)
CROSS: Final = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)
"""A pixel and the four beside it."""


def propose_regions(image: Image.Image, *, least_area: int = 16, most: int = 64) -> list[tuple[Box, Mask]]:
    """Boxes and masks (height, width) of the objects, in reading order of their first pixels.

    A picture without any ground, such as the tight crop of a square, is one region. A picture of ground alone has none.

    Args:
        least_area: pixels from which a region counts; smaller ones are noise.
        most: at most so many regions, the largest.
    """
    pixels = np.asarray(image.convert("RGB"))
    found = _find_ground(pixels)
    if found is None:
        masks = [np.ones(pixels.shape[:2], dtype=bool)]
    else:
        ground, noise = found
        masks = [part for mask in _find_parts(pixels, ground, noise, least_area=least_area) for part in _split_part(mask, pixels, noise)]
    masks = [mask for mask in masks if np.count_nonzero(mask) >= least_area]
    if len(masks) > most:
        limit = sorted((np.count_nonzero(mask) for mask in masks), reverse=True)[most - 1]
        masks = [mask for mask in masks if np.count_nonzero(mask) >= limit][:most]
    return [(box_of_mask(mask), mask) for mask in masks]


def box_of_mask(mask: Mask) -> Box:
    """The tightest box around the true pixels of ``mask`` (height, width).

    Raises:
        ValueError: no pixel is true.
    """
    left, top, width, height = cv2.boundingRect(np.asarray(mask, dtype=bool).view(np.uint8))
    if not width:
        raise ValueError("an empty mask has no box")
    return Box(left=float(left), top=float(top), right=float(left + width), bottom=float(top + height))


def _find_ground(pixels: _Pixels) -> tuple[_Floats, float] | None:
    """Colour (3,) and noise of the ground: the greyish colour that most of the picture's border has; None without one."""
    border = np.concatenate([side.reshape(-1, 3) for side in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])])
    # one whole number per bin of 16 levels a channel
    bins = (border >> 4).astype(np.int64) @ (256, 16, 1)
    counts = np.bincount(bins)
    best, best_share = None, 0.05
    for number in np.argsort(-counts, kind="stable")[: min(12, np.count_nonzero(counts))]:
        color = np.median(border[bins == number], axis=0)
        color = np.median(border[_squared_distance(border, color) < _NEAR**2], axis=0)
        if color.max() - color.min() > _GREY_SPREAD or not _GREY_RANGE[0] <= color.mean() <= _GREY_RANGE[1]:
            continue
        share = np.count_nonzero(_squared_distance(border, color) < _NEAR**2) / len(border)
        if share > best_share:
            best, best_share = color, share
    if best is None:
        return None
    near = (_squared_distance(pixels, best) < _NEAR**2).astype(np.uint8)
    if np.count_nonzero(near) < _LEAST_GROUND * near.size:
        return None
    channels = [_median_and_deviation(cv2.calcHist([pixels], [channel], near, [256], [0, 256])[:, 0]) for channel in range(3)]
    ground, deviations = np.array(channels).T
    return ground, float(np.sqrt(((1.4826 * deviations) ** 2).mean()))


def _squared_distance(pixels: _Pixels, color: _Floats) -> _Floats:
    """Of every pixel (..., 3) from a colour; without the last axis."""
    red, green, blue = (pixels[..., channel] - color[channel] for channel in range(3))
    squares: _Floats = red * red + green * green + blue * blue
    return squares


def _median_and_deviation(counts: NDArray[Any]) -> tuple[float, float]:
    """Median of levels (256,) that were counted, and the median of their distances from it."""
    levels = np.arange(len(counts))
    median = _weighted_median(levels, counts)
    distances = np.abs(levels - median)
    order = np.argsort(distances)
    return median, _weighted_median(distances[order], counts[order])


def _weighted_median(values: NDArray[Any], counts: NDArray[Any]) -> float:
    """The median of rising values that occur so many times each."""
    totals = np.cumsum(counts, dtype=np.float64)
    lower, upper = np.searchsorted(totals, [(totals[-1] - 1) // 2, totals[-1] // 2], side="right")
    return float(values[lower] + values[upper]) / 2


def _find_parts(pixels: _Pixels, ground: _Floats, noise: float, *, least_area: int) -> list[Mask]:
    """Connected parts that differ from the ground, as masks of the whole picture."""
    distance = np.sqrt(_squared_distance(pixels, ground))
    differs = distance > np.clip(_NOISE_FACTOR * noise, *_DISTANCES)
    inner = cv2.erode(differs.astype(np.uint8), CROSS).astype(bool)
    contrast = cv2.dilate(np.where(differs, distance, 0.0), _SQUARE)
    differs &= inner | (distance >= _EDGE_SHARE * contrast)
    labels, count = _label(differs, neighbours=8)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
    return [labels == index for index in range(1, count + 1) if sizes[index] >= least_area]


def _label(mask: Mask, *, neighbours: int) -> tuple[NDArray[np.int32], int]:
    """Connected parts, counted from 1 in reading order of their first pixels (0 is outside), and how many there are."""
    # this algorithm is the one that counts in reading order; that of blocks, the default, does not
    count, labels = cv2.connectedComponentsWithAlgorithm(mask.astype(np.uint8), neighbours, cv2.CV_32S, cv2.CCL_WU)
    return np.asarray(labels, dtype=np.int32), count - 1


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
    inside = mask[:, :, None]
    highest, lowest = cv2.dilate(np.where(inside, pixels, 0), _SQUARE), cv2.erode(np.where(inside, pixels, 255), _SQUARE)
    spread = cv2.subtract(highest, lowest).max(axis=2)
    labels, _ = _label(mask & (spread <= 20.0 + 6.0 * noise), neighbours=4)
    depth = cv2.distanceTransform(np.pad(labels > 0, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
    thick = np.unique(labels[depth >= _LEAST_THICKNESS])
    if len(thick) < 2:
        return [mask]
    groups: list[tuple[_Floats, list[int]]] = []
    for index in thick:
        color = np.median(pixels[labels == index], axis=0)
        home = next((members for first, members in groups if np.linalg.norm(first - color) < _OTHER_COLOR), None)
        groups.append((color, [index])) if home is None else home.append(index)
    if len(groups) < 2:
        return [mask]
    seeds = np.zeros(mask.shape, dtype=np.int64)
    for number, (_, group) in enumerate(groups, start=1):
        seeds[np.isin(labels, group)] = number
    rows, columns = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    nearest = np.where(mask, seeds[rows, columns], 0)
    pieces = []
    for number in range(1, len(groups) + 1):
        parts, total = _label(nearest == number, neighbours=8)
        pieces += [parts == index for index in range(1, total + 1)]
    return sorted(pieces, key=lambda piece: int(piece.argmax()))


def _split_blocks(piece: Mask) -> list[Mask]:
    """Part touching blocks of one colour: the fewest squares of known sides that cover the piece exactly; else the piece itself."""
    box = box_of_mask(piece)
    if np.count_nonzero(piece) == box.area and box.right - box.left == box.bottom - box.top:
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
    area = np.count_nonzero(rest)
    if not area:
        return []
    if area > most * BLOCK_SIDES[0] ** 2 or area < BLOCK_SIDES[-1] ** 2:
        return None
    top, left = divmod(int(rest.argmax()), rest.shape[1])
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
