"""Crops of regions as a CLIP sees them: square, with a margin, and on even grey where the region's mask is known."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visloop.tools.proposals import CROSS
from visloop.tools.values import Box, Mask

MARGIN = 0.1
"""Ground on every side of a box, as a share of its longer side."""
GROUND = (128, 128, 128)
"""What lies outside of a mask and outside of the picture."""


def cut_crop(pixels: NDArray[np.uint8], box: Box, mask: Mask | None = None) -> Image.Image:
    """The square around ``box`` of a picture (height, width, 3); ``mask`` (height, width) is the region's, or None.

    The square keeps the region's proportions when it is resized. Holes of the mask count as the region: dark dots of a pattern are often
    left out by what found it.
    """
    height, width = pixels.shape[:2]
    side = max(round(max(box.right - box.left, box.bottom - box.top) * (1 + 2 * MARGIN)), 2)
    center_x, center_y = box.center
    left, top = round(center_x - side / 2), round(center_y - side / 2)
    crop = np.empty((side, side, 3), np.uint8)
    crop[:] = GROUND
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        part = pixels[y0:y1, x0:x1]
        if mask is not None:
            part = np.where(_grow_and_fill(mask[y0:y1, x0:x1])[:, :, None], part, np.array(GROUND, np.uint8))
        crop[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return Image.fromarray(crop)


def _grow_and_fill(mask: Mask) -> Mask:
    """The mask with one more pixel on every side, and without holes."""
    grown = cv2.dilate(np.asarray(mask, dtype=bool).view(np.uint8), CROSS)
    outside = cv2.copyMakeBorder(grown, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2
