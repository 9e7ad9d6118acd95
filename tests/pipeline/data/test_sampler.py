"""The order of training: every negative once, positives recycled fairly, all of it a pure function."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sampler import log_odds, plan_balanced, plan_natural, plan_weighted, split_batch


@st.composite
def problems(draw) -> tuple[np.ndarray, dict]:
    """Labels in any order with both classes, and arguments of `plan_balanced`."""
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
    negatives = [row for row in rows_of(plan_balanced(labels, **arguments)) if labels[row] == 0]
    assert sorted(negatives) == np.flatnonzero(labels == 0).tolist()


@given(problems())
def test_every_batch_has_the_same_number_of_positives_and_at_least_one_of_each_class(problem) -> None:
    labels, arguments = problem
    positives = [int(labels[rows].sum()) for rows in plan_balanced(labels, **arguments)]
    sizes = [len(rows) for rows in plan_balanced(labels, **arguments)]
    batch_size = arguments["batch_size"]
    assert len(set(positives)) == 1
    assert all(1 <= count < size <= batch_size for count, size in zip(positives, sizes, strict=True))
    assert max(sizes) - min(sizes) <= 1


@given(problems())
def test_positives_fill_the_share_that_is_asked_for_to_half_an_image(problem) -> None:
    labels, arguments = problem
    batch_size, share = arguments["batch_size"], arguments["positive_share"]
    (rows, *_) = plan_balanced(labels, **arguments)
    reachable = min(max(share * batch_size, 1), batch_size - 1)
    assert abs(labels[rows].sum() - reachable) <= 0.5


@given(problems())
def test_no_positive_comes_again_before_all_have_come_whatever_the_epoch(problem) -> None:
    labels, arguments = problem
    num_positives = int(labels.sum())
    drawn = [
        row
        for epoch in range(4)
        for row in rows_of(plan_balanced(labels, **(arguments | {"epoch": epoch})))
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
    first = plan_balanced(labels, **arguments)
    np.random.seed(1)  # noqa: NPY002
    second = plan_balanced(labels, **arguments)
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]


@pytest.mark.parametrize("make_plan", [plan_balanced, plan_weighted])
@pytest.mark.parametrize("name", ["seed", "fold", "epoch"])
def test_seed_fold_and_epoch_each_change_the_plan(make_plan, name: str) -> None:
    labels = np.arange(60) % 6 == 0
    arguments = {"batch_size": 8, "positive_share": 0.25, "seed": 1, "fold": 1, "epoch": 1}
    plans = [rows_of(make_plan(labels, **(arguments | {name: value}))) for value in range(5)]
    for part in (labels, ~labels):
        orders = {tuple(row for row in plan if part[row]) for plan in plans}
        assert len(orders) == 5


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 9))
def test_the_natural_order_takes_every_row_once_in_equal_batches(
    num_rows: int, batch_size: int, epoch: int
) -> None:
    plan = plan_natural(num_rows, batch_size=batch_size, entropy=[0, epoch])
    sizes = [len(rows) for rows in plan]
    assert sorted(rows_of(plan)) == list(range(num_rows))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(problems())
def test_a_weighted_epoch_draws_as_many_rows_as_there_are(problem) -> None:
    labels, arguments = problem
    plan = plan_weighted(labels, **arguments)
    assert len(rows_of(plan)) == len(labels)
    assert max(len(rows) for rows in plan) <= arguments["batch_size"]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_weighted_draws_are_positive_as_often_as_asked_for_and_equal_within_a_class(share: float) -> None:
    labels = np.arange(20) % 10 == 0
    plans = [
        plan_weighted(labels, batch_size=8, positive_share=share, seed=0, fold=0, epoch=epoch)
        for epoch in range(1000)
    ]
    counts = np.bincount(np.concatenate([np.concatenate(plan) for plan in plans]), minlength=20) / 20_000
    np.testing.assert_allclose(counts[labels], share / 2, rtol=0.05)
    np.testing.assert_allclose(counts[~labels], (1 - share) / 18, rtol=0.2)


@given(problems(), st.integers(1, 5), st.integers(1, 4))
def test_processes_share_each_batch_without_overlap_in_the_same_number_of_parts(
    problem, world_size: int, num_parts: int
) -> None:
    labels, arguments = problem
    for rows in plan_balanced(labels, **arguments):
        if len(rows) < world_size * num_parts:
            with pytest.raises(ValueError, match="cannot be split"):
                split_batch(rows, rank=0, world_size=world_size, num_parts=num_parts)
            continue
        parts = [
            split_batch(rows, rank=rank, world_size=world_size, num_parts=num_parts)
            for rank in range(world_size)
        ]
        assert {len(part) for part in parts} == {num_parts}
        assert np.concatenate([rows for part in parts for rows in part]).tolist() == rows.tolist()
        sizes = [len(rows) for part in parts for rows in part]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


def test_positives_do_not_all_stand_at_the_end_of_a_batch() -> None:
    labels = np.arange(400) % 4 == 0
    plan = plan_balanced(labels, batch_size=16, positive_share=0.25, seed=0, fold=0, epoch=0)
    places = Counter(place for rows in plan for place in np.flatnonzero(labels[rows]).tolist())
    assert set(places) == set(range(16))


@pytest.mark.parametrize(
    ("label", "sentence"), [(0, "0 positives and 5 negatives"), (1, "5 positives and 0")]
)
def test_a_missing_class_is_refused(label: int, sentence: str) -> None:
    for make_plan in (plan_balanced, plan_weighted):
        with pytest.raises(ValueError, match=sentence):
            make_plan(np.full(5, label), batch_size=4, positive_share=0.5, seed=0, fold=0, epoch=0)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_log_odds_are_the_logit_of_the_share(num_positives: int, num_negatives: int) -> None:
    labels = np.repeat([1, 0], [num_positives, num_negatives])
    share = labels.mean()
    assert log_odds(labels) == pytest.approx(np.log(share / (1 - share)))
