"""The background's level is found where it slopes and bends, and beside frames that are no part of it."""

import numpy as np
import pytest

from data_prep.imageio.frame import Display
from data_prep.preprocessing.background import find_background, find_inner, measure_contrast

SHAPE = (160, 120)


def make_slope(across: float, down: float, bend: float = 0.0) -> Display:
    y, x = np.meshgrid(*(np.linspace(-0.5, 0.5, size) for size in SHAPE), indexing="ij")
    return (0.3 + across * x + down * y + bend * x * y).astype(np.float32)


def put_breast(background: Display) -> tuple[Display, Display]:
    """Returns the picture and how much brighter than the background it is."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    depth = 1 - (x / 70) ** 2 - ((y - 80) / 60) ** 2
    texture = 0.1 * np.random.default_rng(0).random(SHAPE)
    above = np.where(depth > 0, 0.1 + texture + 0.4 * depth.clip(min=0) ** 0.5, 0).astype(np.float32)
    return background + above, above


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("across", "down", "bend"), [(0, 0, 0), (0.12, 0, 0), (0, -0.12, 0), (0.05, 0.1, 0.05)]
)
def test_what_is_beside_the_breast_has_no_contrast(
    sign: int, across: float, down: float, bend: float
) -> None:
    background = make_slope(across, down, bend)
    picture, above = put_breast(background)
    shown = picture if sign == 1 else 1 - picture
    contrast = measure_contrast(shown)
    assert contrast.is_inverted == (sign == -1)
    assert (contrast.values[above == 0] < 1).all()
    assert (contrast.values[above > 0] > 1).all()
    expected = background if sign == 1 else 1 - background
    assert np.abs(find_background(shown) - expected)[above == 0].max() < 0.01


def test_faint_fat_does_not_bend_an_even_background() -> None:
    picture = np.zeros(SHAPE, np.float32)
    picture[30:130, :70] = 0.02
    assert np.abs(find_background(picture)).max() < 1e-6


@pytest.mark.parametrize("frame", [0.0, 1.0])
def test_a_frame_is_off_and_background_that_goes_on_is_not(frame: float) -> None:
    picture, _ = put_breast(make_slope(0, 0))
    framed = np.pad(picture, ((6, 0), (0, 9)), constant_values=frame)
    assert find_inner(framed) == (slice(7, 166), slice(0, 119))
    assert find_inner(picture) == (slice(0, 160), slice(0, 120))


def test_noise_decides_what_is_faint() -> None:
    picture, _ = put_breast(make_slope(0, 0))
    noisy = picture + 0.03 * np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    assert measure_contrast(picture).faint < 0.5
    assert measure_contrast(noisy).faint == 1
