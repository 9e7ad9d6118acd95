"""Patient-level bootstrap: draws, and the percentile intervals of the figures.

Patients are drawn with replacement, not breasts, because the two breasts of a woman resemble each other.
A draw is a weight per patient, how often she was drawn. All sets that are given together see the same draws,
a fold or a slice what falls into it, so that differences between them are paired.

Shape suffixes: M patients, R replicates.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.evaluation.formulas import find_best
from pipeline.evaluation.metrics import compute_figures
from pipeline.evaluation.patient_stats import Floats, PatientSums

NUM_REPLICATES = 2_000
MOST_UNDEFINED = 0.05
"""Share of replicates without a figure above which the others' percentiles tell nothing."""
SEED = 0
CHUNK_CELLS = 3_000_000
"""Weights held at a time: 24 MB, whatever the number of patients."""

SetKey = TypeVar("SetKey", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval.

    Attributes:
        num_undefined: replicates that were left out because the figure is undefined in them.
    """

    low: float
    high: float
    num_undefined: int

    @property
    def has_width(self) -> bool:
        """Whether the replicates differ; few cancers may all give the same figure, which is not certainty."""
        return self.low < self.high


def replicate(
    sets: Mapping[SetKey, PatientSums], *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> dict[SetKey, dict[str, Floats]]:
    """Computes every figure of every set in every replicate, [R]; NaN where it is undefined.

    `pf1_best` keeps the threshold that was chosen on all patients; that it was chosen on the very same
    predictions is not part of its spread. `threshold_best` is chosen anew each time.

    Args:
        sets: of the same patients, numbered alike.
        seed: the same seed gives the same replicates.
        num_replicates: draws.
    """
    num_patients = max((sums.num_patients for sums in sets.values()), default=0)
    best = {key: find_best(sums.add_up()) for key, sums in sets.items()}
    chunks: dict[SetKey, list[dict[str, Floats]]] = {key: [] for key in sets}
    for weights_MR in draw_weights(num_patients, seed=seed, num_replicates=num_replicates):
        for key, sums in sets.items():
            chunks[key].append(compute_figures(sums.add_up(weights_MR), best=best[key]))
    return {
        key: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for key, parts in chunks.items()
    }


def draw_weights(num_patients: int, *, seed: int, num_replicates: int) -> Iterator[Floats]:
    """Yields chunks [M, R] of how often each patient was drawn; together `num_replicates` columns."""
    generator = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_CELLS // max(1, num_patients))
    for start in range(0, num_replicates, per_chunk):
        weights_MR = np.empty((num_patients, min(per_chunk, num_replicates - start)))
        for column in range(weights_MR.shape[1]):
            draw = generator.integers(num_patients, size=num_patients)
            weights_MR[:, column] = np.bincount(draw, minlength=num_patients)
        yield weights_MR


def find_interval(replicates_R: Floats) -> Interval | None:
    """Returns the 2.5th to 97.5th percentile; None where every replicate is undefined."""
    is_undefined_R = np.isnan(replicates_R)
    if is_undefined_R.all():
        return None
    low, high = np.percentile(replicates_R[~is_undefined_R], [2.5, 97.5])
    return Interval(float(low), float(high), int(is_undefined_R.sum()))
