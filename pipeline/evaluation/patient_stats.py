"""Sums over each patient's predictions, from which every figure follows.

All sums are linear in how often each patient counts, so those of R bootstrap draws are one product of a
sparse matrix with the draws. They are few, because a threshold matters only where it finds one more cancer:
the ranking is kept as counts between the cancers.

Shape suffixes: N predictions, M patients, T thresholds (the distinct probabilities of cancers, falling),
K sums, R weightings of the patients.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import logit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROUNDING = 1e-9
SCORE_DECIMALS = 9
SMALLEST_PROBABILITY = 1e-7

SCALARS = ["predictions", "probability", "probability_of_cancers", "squared_error", "recalled", "found"]


@dataclass(frozen=True)
class Totals:
    """The sums of R weightings.

    Attributes:
        thresholds: the distinct probabilities of cancers, falling, [T].
        cancers: cancers with exactly that probability, [T, R].
        negatives_above: negatives with a higher one, [T, R].
        negatives_through: negatives with that or a higher one, [T, R].
        exams_through: exams of which any prediction reaches it, [T, R]; parts alone have it, if any.
        num_exams: exams with a prediction, [R]; likewise.
        scalars: by name of `SCALARS`, each [R]; `probability` counts as at most 1 and at least 0,
            `recalled` and `found` (of them) are NaN where it is not known who is recalled.
        parts: the same of each fold; empty where all predictions are of one fold.
        standardized: the same of all folds' scores on one scale; None where all are of one fold.
    """

    thresholds: Floats
    cancers: Floats
    negatives_above: Floats
    negatives_through: Floats
    exams_through: Floats
    num_exams: Floats
    scalars: dict[str, Floats]
    parts: "tuple[Totals, ...]" = ()
    standardized: "Totals | None" = None

    @property
    def by_fold(self) -> "tuple[Totals, ...]":
        """The sums of each fold; a fold is one model, and only its own probabilities can be ranked."""
        return self.parts or (self,)

    @cached_property
    def found(self) -> Floats:
        """Cancers that a threshold finds, [T, R]."""
        return np.cumsum(self.cancers, axis=0)

    @cached_property
    def num_cancers(self) -> Floats:
        """All cancers, [R]."""
        return self.cancers.sum(axis=0)

    @cached_property
    def num_negatives(self) -> Floats:
        """All predictions without cancer, [R]."""
        return self.scalars["predictions"] - self.num_cancers


class PatientSums:
    """Predictions of one set, such as a fold's breasts, as sums per patient; forgets their order.

    Args:
        labels: 0 or 1, of each prediction.
        probabilities: of each prediction.
        patients: number of each prediction's patient.
        num_patients: of whom some may have no prediction here.
        recalled: whether each prediction is recalled; None where that is not known.
        folds: of each prediction; None where all are of one model.
        exams: number of each prediction's exam; None where a patient has one.
        ranks_only: leaves out all scalars but the first, which a ranking does without.

    Raises:
        ValueError: if lengths differ, a label is not 0 or 1, or a probability is NaN.
    """

    def __init__(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        patients: ArrayLike,
        *,
        num_patients: int,
        recalled: ArrayLike | None = None,
        folds: ArrayLike | None = None,
        exams: ArrayLike | None = None,
        ranks_only: bool = False,
    ) -> None:
        labels_N, probabilities_N = check_predictions(labels, probabilities)
        patients_N = np.asarray(patients)
        recalled_N = np.full(len(labels_N), np.nan) if recalled is None else np.asarray(recalled)
        order_N = np.lexsort(
            (recalled_N, labels_N, probabilities_N, patients_N)
        )  # floats add up in one order
        self.labels_N, self.probabilities_N = labels_N[order_N], probabilities_N[order_N]
        self.num_patients = num_patients
        self.thresholds_T = np.unique(self.probabilities_N[self.labels_N == 1])[::-1]
        self._patients_N = patients_N[order_N].astype(np.int64)
        exams_N = patients_N if exams is None else np.asarray(exams)
        self._exams_N = exams_N[order_N]
        folds_N = np.zeros(len(labels_N)) if folds is None else np.asarray(folds)
        distinct = np.unique(folds_N)
        self._has_parts, self._ranks_only = len(distinct) > 1, ranks_only
        blocks = self._make_blocks(recalled_N[order_N].astype(np.float64))
        self._ends = np.cumsum([block.shape[0] for block in blocks])[:-1]
        self._sums_KM = sparse.vstack(blocks, format="csr")
        scores_N = standardize_folds(labels_N, probabilities_N, folds_N)
        self._standardized = (
            PatientSums(
                labels_N,
                scores_N,
                patients_N,
                num_patients=num_patients,
                exams=exams_N,
                ranks_only=True,
            )
            if self._has_parts
            else None
        )
        self._parts = [
            PatientSums(
                labels_N[own],
                probabilities_N[own],
                patients_N[own],
                num_patients=num_patients,
                exams=exams_N[own],
                ranks_only=True,
            )
            for own in (folds_N == fold for fold in distinct if self._has_parts)
        ]

    def add_up(self, weights_MR: Floats | None = None) -> Totals:
        """Returns the sums where each patient counts as often as the weights say, by default once."""
        weights_MR = np.ones((self.num_patients, 1)) if weights_MR is None else weights_MR
        cancers_TR, negatives, exams, scalars = np.split(self._sums_KM @ weights_MR, self._ends)
        cumulative = np.cumsum(negatives, axis=0)
        reached = np.cumsum(exams, axis=0)
        return Totals(
            thresholds=self.thresholds_T,
            cancers=cancers_TR,
            negatives_above=cumulative[:-1:2],
            negatives_through=cumulative[1::2],
            exams_through=reached[:-1],
            num_exams=reached[-1:].sum(axis=0),
            scalars=dict(zip(SCALARS[: len(scalars)], scalars, strict=True)),
            parts=tuple(part.add_up(weights_MR) for part in self._parts),
            standardized=self._standardized.add_up(weights_MR) if self._standardized else None,
        )

    def _make_blocks(self, recalled_N: Floats) -> list[sparse.csr_matrix]:
        labels_N, clipped_N = self.labels_N, np.clip(self.probabilities_N, 0.0, 1.0)
        is_cancer_N = labels_N == 1
        higher_N, is_level_N = self._place(self.probabilities_N)
        places_N = 2 * higher_N + is_level_N  # even between two thresholds, odd level with one
        own_M, highest_M = self._find_highest()
        if self._has_parts:  # exams are recalled within folds
            own_M, highest_M = own_M[:0], highest_M[:0]
        values = {
            "predictions": np.ones_like(labels_N),
            "probability": clipped_N,
            "probability_of_cancers": clipped_N * labels_N,
            "squared_error": (self.probabilities_N - labels_N) ** 2,
            "recalled": recalled_N,
            "found": recalled_N * labels_N,
        }
        num_thresholds, everyone_N = len(self.thresholds_T), self._patients_N
        return [
            self._block(higher_N[is_cancer_N], everyone_N[is_cancer_N], num_thresholds),
            self._block(places_N[~is_cancer_N], everyone_N[~is_cancer_N], 2 * num_thresholds + 1),
            self._block(self._place(highest_M)[0], own_M, 0 if self._has_parts else num_thresholds + 1),
            self._make_scalars(values),
        ]

    def _make_scalars(self, values: dict[str, Floats]) -> sparse.csr_matrix:
        """Returns the block of what does not depend on the ranking."""
        everyone_N = self._patients_N
        if self._ranks_only:
            return self._block(0 * everyone_N, everyone_N, 1)
        return self._block(
            np.repeat(np.arange(len(SCALARS)), len(everyone_N)),
            np.tile(everyone_N, len(SCALARS)),
            len(SCALARS),
            np.concatenate([values[name] for name in SCALARS]),
        )

    def _place(self, probabilities: Floats) -> tuple[Integers, NDArray[np.bool_]]:
        """Returns how many thresholds are higher than each probability, and whether one equals it."""
        rising_T = self.thresholds_T[::-1]
        not_higher = np.searchsorted(rising_T, probabilities, side="right")
        return len(rising_T) - not_higher, not_higher > np.searchsorted(rising_T, probabilities, side="left")

    def _find_highest(self) -> tuple[Integers, Floats]:
        """Returns the patient of each exam that has predictions, and the highest of these."""
        order_N = np.lexsort((self.probabilities_N, self._exams_N))
        exams_N = self._exams_N[order_N]
        last = order_N[np.append(exams_N[1:] != exams_N[:-1], True)[: len(exams_N)]]
        return self._patients_N[last], self.probabilities_N[last]

    def _block(
        self, rows: Integers, patients: Integers, num_rows: int, values: Floats | None = None
    ) -> sparse.csr_matrix:
        values = np.ones(len(rows)) if values is None else values
        return sparse.csr_matrix((values, (rows, patients)), shape=(num_rows, self.num_patients))


def standardize_folds(labels_N: Floats, probabilities_N: Floats, folds_N: NDArray[np.generic]) -> Floats:
    """Returns the logits, moved and scaled so that each fold's negatives have mean 0 and deviation 1.

    A fold without negatives keeps its logits, one whose negatives are alike keeps their scale. Ranking within
    a fold stays, but for probabilities within `SMALLEST_PROBABILITY` of 0 or of 1, which tie. Scores of two
    folds that differ by rounding alone tie too.
    """
    scores_N = logit(np.clip(probabilities_N, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))
    for fold in np.unique(folds_N):
        is_own_N = folds_N == fold
        negatives = np.sort(scores_N[is_own_N & (labels_N == 0)])  # floats add up in one order
        if len(negatives):
            deviation = negatives.std()
            scale = deviation if deviation > ROUNDING else 1.0
            scores_N[is_own_N] = (scores_N[is_own_N] - negatives.mean()) / scale
    return np.round(scores_N, SCORE_DECIMALS)


def check_predictions(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Floats, Floats]:
    """Returns both as float64.

    Raises:
        ValueError: if they differ in length, a label is not 0 or 1, or a probability is NaN.
    """
    labels_N, probabilities_N = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    if labels_N.ndim != 1 or labels_N.shape != probabilities_N.shape:
        raise ValueError(
            f"labels {labels_N.shape} and probabilities {probabilities_N.shape} must be 1-D of one length"
        )
    if not np.isin(labels_N, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(probabilities_N).any():
        raise ValueError("probabilities must not be NaN")
    return labels_N, probabilities_N
