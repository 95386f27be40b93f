"""Crops of regions: square, with ground around them and in place of what the mask leaves out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from visloop.tools.crops import GROUND, cut_crop
from visloop.tools.values import Box

RED = (200, 30, 30)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.8]))
def test_a_crop_shows_the_mask_grown_by_a_pixel_and_without_holes(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((24, 24)) < share
    picture = np.full((24, 24, 3), RED, np.uint8)
    crop = np.asarray(cut_crop(picture, Box(left=2, top=2, right=22, bottom=22), mask))  # with its margin the whole picture
    expected = ndimage.binary_fill_holes(ndimage.binary_dilation(mask))
    assert ((crop == RED).all(axis=2) == expected).all()
    assert (crop[~expected] == GROUND).all()


def test_what_lies_outside_of_the_picture_is_ground() -> None:
    crop = np.asarray(cut_crop(np.full((10, 10, 3), RED, np.uint8), Box(left=-4, top=4, right=6, bottom=14)))
    assert crop.shape == (12, 12, 3)
    red = (crop == RED).all(axis=2)
    assert red.sum() == 7 * 7
    assert (crop[~red] == GROUND).all()
    assert red[:7, 5:].all()
