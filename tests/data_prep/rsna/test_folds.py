"""Folds: scikit-learn is the oracle; no patient in two folds, every fold with both labels, or a refusal."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.errors import UserError
from data_prep.rsna.exam_table import read_exams
from data_prep.rsna.folds import make_folds


def make_exams(patients: list[tuple[int, int, int, int]]) -> pd.DataFrame:
    """Each patient is (images left, images right, cancer left, cancer right)."""
    rows = [
        {"patient_id": str(patient), "laterality": side, "cancer": cancer}
        for patient, (num_left, num_right, left, right) in enumerate(patients, start=1)
        for side, num_images, cancer in [("L", num_left, left), ("R", num_right, right)]
        for _ in range(num_images)
    ]
    exams = pd.DataFrame(rows, columns=["patient_id", "laterality", "cancer"])
    return exams.assign(image_id=[str(number) for number in range(1, len(exams) + 1)])


def simple_exams(num_positive: int, num_negative: int) -> pd.DataFrame:
    return make_exams([(2, 2, 1, 0)] * num_positive + [(2, 2, 0, 0)] * num_negative)


def deal_with_scikit_learn(exams: pd.DataFrame, num_folds: int, seed: int) -> dict[str, int]:
    """Takes rows that are sorted by id already."""
    splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(exams)), exams["cancer"], groups=exams["patient_id"])
    return {
        patient_id: fold
        for fold, (_, validation) in enumerate(parts)
        for patient_id in exams["patient_id"].iloc[validation]
    }


def test_folds_are_those_of_scikit_learn_on_rows_sorted_by_id() -> None:
    exams = simple_exams(8, 20)
    folds = make_folds(exams, num_folds=4, seed=11)
    found = dict(zip(folds["patient_id"], folds["fold"], strict=True))
    assert found == deal_with_scikit_learn(exams, 4, 11)
    assert list(folds) == ["patient_id", "fold"]
    assert folds["patient_id"].tolist() == [str(number) for number in range(1, 29)]


def test_the_order_of_rows_makes_no_difference_and_the_input_stays_as_it_was() -> None:
    exams = simple_exams(6, 14)
    shuffled = exams.sample(frac=1, random_state=5)
    before = shuffled.copy()
    pd.testing.assert_frame_equal(
        make_folds(exams, num_folds=3, seed=0), make_folds(shuffled, num_folds=3, seed=0)
    )
    pd.testing.assert_frame_equal(shuffled, before)


def test_another_seed_gives_other_folds_and_the_same_seed_the_same() -> None:
    exams = simple_exams(10, 30)
    first, again, other = (make_folds(exams, num_folds=5, seed=seed)["fold"].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def can_be_dealt(exams: pd.DataFrame, num_folds: int, seed: int) -> bool:
    """Whether there are enough patients of both kinds, and scikit-learn gives every fold both labels."""
    num_patients = exams.groupby("cancer")["patient_id"].nunique().reindex([0, 1], fill_value=0)
    if num_folds < 2 or num_patients.min() < num_folds:
        return False
    folds = exams["patient_id"].map(deal_with_scikit_learn(exams, num_folds, seed))
    return bool(exams.groupby(folds)["cancer"].nunique().reindex(range(num_folds)).eq(2).all())


@settings(deadline=None, max_examples=100)
@given(
    patients=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 1), st.integers(0, 1)), max_size=14
    ),
    num_folds=st.integers(-1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_small_tables_get_sound_folds_where_there_are_some_and_one_sentence_else(
    patients: list[tuple[int, int, int, int]], num_folds: int, seed: int
) -> None:
    exams = make_exams(patients)
    if not can_be_dealt(exams, num_folds, seed):
        with pytest.raises(UserError, match=r"fold.*(fewer folds|2 or more)"):
            make_folds(exams, num_folds=num_folds, seed=seed)
        return
    folds = make_folds(exams, num_folds=num_folds, seed=seed)
    assert folds["patient_id"].is_unique
    assert set(folds["patient_id"]) == set(exams["patient_id"])
    assert exams.merge(folds, on="patient_id").groupby("fold")["cancer"].nunique().tolist() == [2] * num_folds


@pytest.mark.parametrize(
    ("exams", "num_folds", "what"),
    [
        (simple_exams(3, 3), 1, "1 folds asked for: cross-validation needs 2 or more"),
        (simple_exams(2, 1), 5, "5 folds of 3 patients: every fold needs one; use fewer folds"),
        (simple_exams(3, 20), 5, "5 folds of 23 patients: .*breast with cancer, but only 3 of"),
        (make_exams([(2, 2, 1, 1)] * 9 + [(2, 2, 0, 0)]), 2, "breast without cancer, but only 1 of"),
        (simple_exams(0, 9), 3, "breast with cancer, but only 0 of"),
    ],
)
def test_impossible_folds_are_refused_with_counts(exams: pd.DataFrame, num_folds: int, what: str) -> None:
    with pytest.raises(UserError, match=what):
        make_folds(exams, num_folds=num_folds, seed=0)


def test_a_fold_that_the_dealing_left_without_a_label_is_refused() -> None:
    """Two patients of either kind are enough for two folds, but scikit-learn deals these badly."""
    exams = make_exams([(7, 7, 0, 0), (8, 9, 1, 0), (5, 2, 1, 1)])
    with pytest.raises(UserError, match="would hold 7 images with cancer and 0 without, but needs both"):
        make_folds(exams, num_folds=2, seed=0)


@pytest.mark.slow
def test_real_folds_hold_like_shares_of_cancer_and_of_patients(real_data: Path) -> None:
    exams = read_exams(real_data / "rsna_csv", "train")
    folds = make_folds(exams, num_folds=5, seed=0)
    assert folds["patient_id"].is_unique
    assert len(folds) == exams["patient_id"].nunique()
    by_fold = exams.merge(folds, on="patient_id").groupby("fold")
    num_cancers = by_fold["cancer"].sum()
    assert num_cancers.max() - num_cancers.min() <= 4  # of about 142 images
    assert by_fold.size().max() / by_fold.size().min() < 1.02


def deal_by_hand(exams: pd.DataFrame, num_folds: int, known: dict[str, int]) -> dict[int, tuple[int, int]]:
    """Returns each fold's cancer images and images, of known patients alone."""
    of_known = exams.assign(fold=exams["patient_id"].map(known)).dropna(subset="fold")
    sums = of_known.groupby("fold")["cancer"].agg(["sum", "size"]).reindex(range(num_folds), fill_value=0)
    return {int(str(fold)): tuple(counts) for fold, *counts in sums.itertuples()}


@pytest.mark.parametrize(("num_pos", "num_neg"), [(0, 0), (0, 1), (1, 0), (3, 8), (8, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_known_patients_keep_their_folds_and_new_ones_even_them_out(
    seed: int, num_pos: int, num_neg: int
) -> None:
    earlier = make_folds(simple_exams(6, 9), num_folds=3, seed=seed)
    known = dict(earlier.itertuples(index=False))
    exams = simple_exams(6 + num_pos, 9 + num_neg)
    exams["patient_id"] = rename_so_that_the_first_are_known(exams["patient_id"], num_pos)
    folds = make_folds(exams, num_folds=3, seed=seed, known=known)
    now = dict(folds.itertuples(index=False))
    assert set(now) == set(exams["patient_id"])
    assert now.items() >= {name: fold for name, fold in known.items() if name in now}.items()
    before, after = deal_by_hand(exams, 3, known), deal_by_hand(exams, 3, now)
    spread_before, spread_after = (
        max(cancers for cancers, _ in each.values()) - min(cancers for cancers, _ in each.values())
        for each in (before, after)
    )
    assert spread_after <= max(spread_before, 2)  # a patient has two images with cancer
    assert make_folds(exams, num_folds=3, seed=seed, known=now).equals(folds)


def rename_so_that_the_first_are_known(patients: "pd.Series[str]", num_new_pos: int) -> "pd.Series[str]":
    """Numbers six patients with cancer and all without as the earlier table does, and new ones from 1001."""
    numbers = patients.astype(int)
    is_new = (numbers > 6) & (numbers <= 6 + num_new_pos)
    return numbers.where(numbers <= 6, numbers - num_new_pos).mask(is_new, 1000 + numbers).astype(str)


def test_new_patients_go_with_the_known_one_whose_picture_they_share_and_two_folds_are_refused() -> None:
    exams = simple_exams(6, 9)
    known = dict(make_folds(exams, num_folds=3, seed=0).itertuples(index=False))
    new = exams[exams["patient_id"] == "1"].assign(patient_id="99", image_id=["901", "902", "903", "904"])
    both = pd.concat([exams, new], ignore_index=True)
    for fold in range(3):
        twin = next(name for name, number in known.items() if number == fold)
        groups = both["patient_id"].replace({"99": twin})
        now = dict(make_folds(both, num_folds=3, seed=0, groups=groups, known=known).itertuples(index=False))
        assert now["99"] == fold
    torn = exams["patient_id"].replace({name: "group" for name in known if known[name] < 2})
    with pytest.raises(UserError, match="share a picture, and the run"):
        make_folds(exams, num_folds=3, seed=0, groups=torn, known=known)


def test_new_patients_without_cancer_are_dealt_out_evenly_too() -> None:
    """Also where none of the known ones is left in the table, as with the images of another hospital."""
    exams = simple_exams(44, 500)
    folds = make_folds(exams, num_folds=5, seed=0, known={"elsewhere": 1})
    dealt = exams.merge(folds, on="patient_id")
    assert np.ptp(dealt.groupby("fold").size()) <= 4  # the images of a patient
    assert np.ptp(dealt.groupby("fold")["cancer"].sum()) <= 2
