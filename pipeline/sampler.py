"""Which images make which batch: a pure function of (labels, seed, fold, epoch). Knows no files."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

NEGATIVES, POSITIVES, MIXER = 0, 1, 2  # the random streams


def plan_epoch(
    labels: NDArray[np.integer], *, batch_size: int, positive_share: float, seed: int, fold: int, epoch: int
) -> list[Rows]:
    """Returns the rows of each batch of one epoch.

    Every negative comes exactly once. Positives fill `positive_share` of each batch, at least one; they come
    from a reshuffled pool, and none comes again before the pool is used up, epochs' borders included.

    Raises:
        ValueError: if a class is missing.
    """
    negatives, positives = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    if not len(negatives) or not len(positives):
        raise ValueError(f"{len(positives)} positives and {len(negatives)} negatives: one of each is needed")
    per_batch = min(max(1, round(batch_size * positive_share)), batch_size - 1)
    num_batches = -(-len(negatives) // (batch_size - per_batch))
    shuffled = np.random.default_rng([seed, fold, NEGATIVES, epoch]).permutation(negatives)
    # Equal parts rather than full batches and a small rest: every step weighs the same.
    parts = np.array_split(shuffled, num_batches)
    first = epoch * num_batches * per_batch
    drawn = _draw_positives(positives, first, num_batches * per_batch, seed=seed, fold=fold)
    mixer = np.random.default_rng([seed, fold, MIXER, epoch])
    return [
        mixer.permutation(np.concatenate([part, extra]))
        for part, extra in zip(parts, drawn.reshape(num_batches, per_batch), strict=True)
    ]


def _draw_positives(positives: Rows, first: int, count: int, *, seed: int, fold: int) -> Rows:
    """Returns positions first..first + count - 1 of the endless sequence of reshuffled pools."""
    size = len(positives)
    pools = range(first // size, (first + count - 1) // size + 1)
    sequence = np.concatenate(
        [np.random.default_rng([seed, fold, POSITIVES, pool]).permutation(positives) for pool in pools]
    )
    start = first - pools.start * size
    return sequence[start : start + count]


def log_odds(labels: NDArray[np.integer]) -> float:
    """Returns log(positives / negatives).

    That of all labels minus that of the rows drawn, added to a logit, undoes over-sampling (King and Zeng
    2001, eq. 7).
    """
    num_positives = int((labels == 1).sum())
    return float(np.log(num_positives / (len(labels) - num_positives)))
