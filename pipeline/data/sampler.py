"""Which images make which batch: a pure function of (labels, seed, fold, epoch)."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

SampleKey = tuple[int, int]
"""(draw, row): which row, and the number of the draw that changes it."""

NEGATIVES, POSITIVES, MIXER, ALL, DRAWN = range(5)  # the random streams


def plan_natural(num_rows: int, *, batch_size: int, entropy: Sequence[int]) -> list[Rows]:
    """Returns the rows of each batch of one epoch: all rows once, in an order drawn from `entropy`."""
    order = np.random.default_rng(entropy).permutation(num_rows)
    return np.array_split(order, -(-num_rows // batch_size))


def plan_weighted(
    labels: NDArray[np.integer], *, batch_size: int, positive_share: float, seed: int, fold: int, epoch: int
) -> list[Rows]:
    """Returns the rows of each batch of one epoch, each row drawn by itself.

    A draw is positive with probability `positive_share`, so that a batch may have any number of positives; as
    many rows are drawn as there are.

    Raises:
        ValueError: if a class is missing.
    """
    negatives, positives = _split_classes(labels)
    generator = np.random.default_rng([seed, fold, DRAWN, epoch])
    is_positive = generator.random(len(labels)) < positive_share
    rows = np.where(
        is_positive, generator.choice(positives, len(labels)), generator.choice(negatives, len(labels))
    )
    return np.array_split(rows, -(-len(rows) // batch_size))


def plan_balanced(
    labels: NDArray[np.integer], *, batch_size: int, positive_share: float, seed: int, fold: int, epoch: int
) -> list[Rows]:
    """Returns the rows of each batch of one epoch.

    Every negative comes exactly once. Positives fill `positive_share` of each batch, at least one; they come
    from a reshuffled pool, and none comes again before the pool is used up, epochs' borders included.

    Raises:
        ValueError: if a class is missing.
    """
    negatives, positives = _split_classes(labels)
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


def split_batch(rows: Rows, *, rank: int, world_size: int, num_parts: int) -> list[Rows]:
    """Returns the parts of a global batch that one process takes one after the other.

    All processes together take each row once, in as many parts each; parts differ by one row at most.

    Raises:
        ValueError: if there are more parts than rows.
    """
    if len(rows) < world_size * num_parts:
        raise ValueError(f"a batch of {len(rows)} rows cannot be split over {world_size} x {num_parts} parts")
    return np.array_split(rows, world_size * num_parts)[rank * num_parts : (rank + 1) * num_parts]


def plan_parts(
    plan: Iterable[Rows], *, first_step: int, batch_size: int, rank: int, world_size: int, num_parts: int
) -> Iterator[list[SampleKey]]:
    """Yields the keys of all parts that one process takes, batch after batch.

    A draw is a place in the whole training, so that a positive that comes again is changed anew.

    Args:
        plan: the rows of each batch, of which the first is that of optimizer step `first_step`.
        first_step: from 0.
        batch_size: of the largest batch.
        rank: of this process.
        world_size: number of processes.
        num_parts: of a batch in each process.

    Raises:
        ValueError: if a batch has fewer rows than there are parts.
    """
    for step, rows in enumerate(plan, first_step):
        parts = split_batch(np.arange(len(rows)), rank=rank, world_size=world_size, num_parts=num_parts)
        for places in parts:
            yield [(step * batch_size + int(place), int(rows[place])) for place in places]


def pack(units: Iterable[int], count_images: Callable[[int], int], most: int) -> list[list[int]]:
    """Returns the units of each batch, in their order: so many images at most, or a single unit."""
    packs: list[list[int]] = []
    room = 0
    for unit in units:
        num_images = count_images(unit)
        if not packs or num_images > room:
            packs.append([])
            room = most
        packs[-1].append(unit)
        room -= num_images
    return packs


def _split_classes(labels: NDArray[np.integer]) -> tuple[Rows, Rows]:
    negatives, positives = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    if not len(negatives) or not len(positives):
        raise ValueError(f"{len(positives)} positives and {len(negatives)} negatives: one of each is needed")
    return negatives, positives


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
