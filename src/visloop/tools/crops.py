"""Crops of regions as a CLIP sees them: square, with a margin, and on even grey where the region's mask is known."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

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
            inside = ndimage.binary_fill_holes(ndimage.binary_dilation(mask[y0:y1, x0:x1]))
            part = np.where(inside[:, :, None], part, np.array(GROUND, np.uint8))
        crop[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return Image.fromarray(crop)
