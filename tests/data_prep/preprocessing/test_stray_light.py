"""Strips of light along the edges are taken off, folds of skin and the breast are not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.imageio.frame import Display
from data_prep.preprocessing.stray_light import cut_strips, find_runs

ROWS, COLUMNS = 160, 110
y, x = np.mgrid[:ROWS, :COLUMNS]
BREAST = ((x / 60) ** 2 + ((y - 80) / 50) ** 2) < 1


def make_contrast(strip: NDArray[np.float64]) -> Display:
    texture = np.random.default_rng(0).uniform(3, 20, BREAST.shape)
    return (np.where(BREAST, texture, 0) + strip).astype(np.float32)


STRIPS = {
    "fading": 12 * np.exp(-x / 3),
    "sharp": 25.0 * (x < 5),
    "faint": 2.0 * (x < 4),
    "opposite": 25.0 * (x > COLUMNS - 6),
    "above": 25 * np.exp(-y / 2),
    "below": 9.0 * (y > ROWS - 8),
    "all around": 20.0 * ((x < 5) | (x > COLUMNS - 5) | (y < 5) | (y > ROWS - 5)),
}


@pytest.mark.parametrize("name", STRIPS)
def test_only_the_breast_is_left(name: str) -> None:
    is_left = cut_strips(make_contrast(STRIPS[name])) > 1
    assert is_left[BREAST].mean() > 0.97
    assert np.nonzero((is_left & ~BREAST).any(axis=1))[0].tolist() == []


def test_the_breasts_end_is_told_from_light_on_it_by_its_own_brightness() -> None:
    kept = cut_strips(make_contrast(8 * np.exp(-x / 4)))
    rows = np.nonzero(BREAST.any(axis=1))[0]
    assert (kept[rows, :12] > 1).any(axis=1).mean() > 0.95


def test_a_fold_of_skin_beside_the_chest_wall_stays() -> None:
    width = 6 + 3 * np.sin(y[:, :1] / 7)
    fold = np.where((x < width) & (y > 125), 8 + 6 * np.sin(y / 4) + np.where(x > width - 2, 8, 0), 0)
    contrast = make_contrast(fold)
    assert np.array_equal(cut_strips(contrast), contrast)


def test_a_breast_alone_stays_as_it_is() -> None:
    contrast = make_contrast(np.zeros(BREAST.shape))
    assert np.array_equal(cut_strips(contrast), contrast)


def test_runs_of_true() -> None:
    assert find_runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert find_runs(np.zeros(3, bool)) == []
