"""Patient-level bootstrap intervals. Knows no files and no folds; the figures themselves stand in `metrics`.

Patients are drawn with replacement, not breasts, because the two breasts of a woman resemble each other.
A draw is a weight per breast, how often its patient was drawn: a replicate is a weighted formula, not a copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.metrics import Floats, weighted_auc, weighted_average_precision, weighted_f1, weighted_pf1

NUM_REPLICATES = 2_000
CHUNK_CELLS = 1_000_000
"""Weights held at a time: 8 MB, whatever the number of breasts."""

Figure = Callable[[Floats], Floats]
"""Weights [R, N] to one figure per weighting [R], NaN where it is undefined."""


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval.

    Attributes:
        num_undefined: replicates that were left out because the figure is undefined in them.
    """

    low: float
    high: float
    num_undefined: int


def find_intervals(
    breasts: pd.DataFrame, threshold: float | None, *, seed: int, num_replicates: int = NUM_REPLICATES
) -> dict[str, Interval]:
    """Computes the intervals of auc, average_precision, pf1 and, at the fixed `threshold`, of pf1_best.

    Args:
        breasts: one row per breast: patient_id, cancer, probability.
        threshold: chosen before; that it was chosen on the same breasts is not part of the interval.
        seed: the same seed gives the same intervals.
        num_replicates: draws.

    Returns:
        An interval per figure; a figure that is undefined in every replicate has none.
    """
    labels, probabilities = breasts["cancer"].to_numpy(), breasts["probability"].to_numpy()
    figures: dict[str, Figure] = {
        "pf1": lambda weights_RN: weighted_pf1(labels, probabilities, weights_RN),
        "auc": lambda weights_RN: weighted_auc(labels, probabilities, weights_RN),
        "average_precision": lambda weights_RN: weighted_average_precision(labels, probabilities, weights_RN),
    }
    if threshold is not None:
        answers = probabilities >= threshold
        figures["pf1_best"] = lambda weights_RN: weighted_f1(labels, answers, weights_RN)
    chunks: dict[str, list[Floats]] = {name: [] for name in figures}
    for weights_RN in draw_weights(breasts["patient_id"], seed=seed, num_replicates=num_replicates):
        for name, figure in figures.items():
            chunks[name].append(figure(weights_RN))
    replicates = {name: np.concatenate(parts) for name, parts in chunks.items()}
    return {name: _interval(values) for name, values in replicates.items() if not np.isnan(values).all()}


def draw_weights(patients: "pd.Series[str]", *, seed: int, num_replicates: int) -> Iterator[Floats]:
    """Yields chunks [R, N] of how often each row's patient was drawn; together `num_replicates` rows.

    The draws depend on the set of patients and the seed, not on the order of the rows.
    """
    ids, patient_N = np.unique(patients.to_numpy(dtype=np.str_), return_inverse=True)
    generator = np.random.default_rng(seed)
    rows_per_chunk = max(1, CHUNK_CELLS // max(1, len(patient_N)))
    for start in range(0, num_replicates, rows_per_chunk):
        num_rows = min(rows_per_chunk, num_replicates - start)
        draws = [generator.integers(len(ids), size=len(ids)) for _ in range(num_rows)]
        counts = np.stack([np.bincount(draw, minlength=len(ids)) for draw in draws])
        yield counts[:, patient_N].astype(np.float64)


def _interval(replicates: Floats) -> Interval:
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return Interval(float(low), float(high), int(np.isnan(replicates).sum()))
