"""The order of training: every negative once, positives recycled fairly, all of it a pure function."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampler import log_odds, plan_epoch


@st.composite
def problems(draw) -> tuple[np.ndarray, dict]:
    """Labels in any order with both classes, and arguments of `plan_epoch`."""
    num_positives, num_negatives = draw(st.integers(1, 30)), draw(st.integers(1, 80))
    labels = draw(st.permutations([1] * num_positives + [0] * num_negatives))
    arguments = {
        "batch_size": draw(st.integers(2, 40)),
        "positive_share": draw(st.floats(0.01, 0.99)),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "fold": draw(st.integers(0, 9)),
        "epoch": draw(st.integers(0, 50)),
    }
    return np.array(labels), arguments


def rows_of(plan: list[np.ndarray]) -> list[int]:
    return np.concatenate(plan).tolist()


@given(problems())
def test_every_negative_comes_exactly_once_in_an_epoch(problem) -> None:
    labels, arguments = problem
    negatives = [row for row in rows_of(plan_epoch(labels, **arguments)) if labels[row] == 0]
    assert sorted(negatives) == np.flatnonzero(labels == 0).tolist()


@given(problems())
def test_every_batch_has_the_same_number_of_positives_and_at_least_one_of_each_class(problem) -> None:
    labels, arguments = problem
    positives = [int(labels[rows].sum()) for rows in plan_epoch(labels, **arguments)]
    sizes = [len(rows) for rows in plan_epoch(labels, **arguments)]
    batch_size = arguments["batch_size"]
    assert len(set(positives)) == 1
    assert all(1 <= count < size <= batch_size for count, size in zip(positives, sizes, strict=True))
    assert max(sizes) - min(sizes) <= 1


@given(problems())
def test_positives_fill_the_share_that_is_asked_for_to_half_an_image(problem) -> None:
    labels, arguments = problem
    batch_size, share = arguments["batch_size"], arguments["positive_share"]
    (rows, *_) = plan_epoch(labels, **arguments)
    reachable = min(max(share * batch_size, 1), batch_size - 1)
    assert abs(labels[rows].sum() - reachable) <= 0.5


@given(problems())
def test_no_positive_comes_again_before_all_have_come_whatever_the_epoch(problem) -> None:
    labels, arguments = problem
    num_positives = int(labels.sum())
    drawn = [
        row
        for epoch in range(4)
        for row in rows_of(plan_epoch(labels, **(arguments | {"epoch": epoch})))
        if labels[row] == 1
    ]
    counts = Counter(drawn)
    each = [counts[row] for row in np.flatnonzero(labels == 1)]
    assert max(each) - min(each) <= 1
    assert max(each) == -(-len(drawn) // num_positives)


@given(problems())
def test_the_same_arguments_give_the_same_plan(problem) -> None:
    labels, arguments = problem
    np.random.seed(0)  # noqa: NPY002  a global state that must not matter
    first = plan_epoch(labels, **arguments)
    np.random.seed(1)  # noqa: NPY002
    second = plan_epoch(labels, **arguments)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


@pytest.mark.parametrize("name", ["seed", "fold", "epoch"])
def test_seed_fold_and_epoch_each_change_the_plan(name: str) -> None:
    labels = np.arange(60) % 6 == 0
    arguments = {"batch_size": 8, "positive_share": 0.25, "seed": 1, "fold": 1, "epoch": 1}
    plans = [rows_of(plan_epoch(labels, **(arguments | {name: value}))) for value in range(5)]
    for part in (labels, ~labels):
        orders = {tuple(row for row in plan if part[row]) for plan in plans}
        assert len(orders) == 5


def test_positives_do_not_all_stand_at_the_end_of_a_batch() -> None:
    labels = np.arange(400) % 4 == 0
    plan = plan_epoch(labels, batch_size=16, positive_share=0.25, seed=0, fold=0, epoch=0)
    places = Counter(place for rows in plan for place in np.flatnonzero(labels[rows]).tolist())
    assert set(places) == set(range(16))


@pytest.mark.parametrize(
    ("label", "sentence"), [(0, "0 positives and 5 negatives"), (1, "5 positives and 0")]
)
def test_a_missing_class_is_refused(label: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_epoch(np.full(5, label), batch_size=4, positive_share=0.5, seed=0, fold=0, epoch=0)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_log_odds_are_the_logit_of_the_share(num_positives: int, num_negatives: int) -> None:
    labels = np.repeat([1, 0], [num_positives, num_negatives])
    share = labels.mean()
    assert log_odds(labels) == pytest.approx(np.log(share / (1 - share)))
