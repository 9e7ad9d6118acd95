"""The expected calibration error beside what no knowledge and perfect knowledge score on the same data.

It is a sum of absolute values, so chance makes it larger than 0 even of probabilities that are right: by
itself it says nothing. It has no interval, since each draw of patients would add chance of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.bootstrap import SEED
from pipeline.evaluation.patient_stats import Floats, Integers

NUM_BINS = 10
"""Each with a tenth of the predictions; equal probabilities share a bin."""
NUM_DRAWS = 500
"""Sets of labels that are drawn from the probabilities, to see what these score where they are right."""


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error over ten bins of equal size, and what it is to be compared with.

    Attributes:
        found: of the probabilities.
        constant: of answering for all of a fold the share of cancers in the other folds.
        perfect: its mean if the probabilities were right, each label drawn from its own probability.
    """

    found: float
    constant: float
    perfect: float

    @classmethod
    def compare(
        cls, labels: ArrayLike, probabilities: ArrayLike, folds: ArrayLike, *, seed: int = SEED
    ) -> "CalibrationError":
        """Computes all three; the order of the predictions changes nothing."""
        columns = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64), np.asarray(folds)
        order_N = np.lexsort((columns[2], columns[0], columns[1]))
        labels_N, probabilities_N, folds_N = (column[order_N] for column in columns)
        constant_N = _share_of_other_folds(labels_N, folds_N)
        return cls(
            _find_error(labels_N, probabilities_N, find_bins(probabilities_N)),
            _find_error(labels_N, constant_N, find_bins(constant_N)),
            expect_error(probabilities_N, seed=seed),
        )


def expect_error(probabilities_N: Floats, *, seed: int = SEED, num_draws: int = NUM_DRAWS) -> float:
    """Returns the mean calibration error of probabilities that are right, over labels drawn from them."""
    generator, bins_N = np.random.default_rng(seed), find_bins(probabilities_N)
    draws = (generator.random(len(bins_N)) < probabilities_N for _ in range(num_draws))
    return float(np.mean([_find_error(drawn_N.astype(float), probabilities_N, bins_N) for drawn_N in draws]))


def find_bins(probabilities_N: Floats) -> Integers:
    """Returns the number of each probability's bin."""
    inner_edges = np.quantile(probabilities_N, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    return np.searchsorted(inner_edges, probabilities_N)


def _share_of_other_folds(labels_N: Floats, folds_N: NDArray[np.generic]) -> Floats:
    """Returns the share of cancers in the other folds; of a single fold, its own."""
    numbers_N = np.unique(folds_N, return_inverse=True)[1]
    cancers_F, sizes_F = np.bincount(numbers_N, weights=labels_N), np.bincount(numbers_N)
    if len(sizes_F) == 1:
        return np.full(len(labels_N), labels_N.mean())
    shares_F: Floats = (labels_N.sum() - cancers_F) / (len(labels_N) - sizes_F)
    return shares_F[numbers_N]


def _find_error(labels_N: Floats, probabilities_N: Floats, bins_N: Integers) -> float:
    excess_B = np.bincount(bins_N, weights=probabilities_N - labels_N, minlength=NUM_BINS)
    return float(np.abs(excess_B).sum() / len(labels_N))
