"""The shift between two sets: numbers that a reader could count, and differences by their formula."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.external.shift import (
    SHIFT_COLUMNS,
    TONES,
    describe_shift,
    find_difference_of_means,
    find_difference_of_shares,
)
from tests.pipeline.synthetic_run import add_exam_columns, make_oof
from tests.pipeline.synthetic_tables import shuffle

NOTHING = pd.DataFrame(columns=["image_id", *TONES])


def tones(mean: float, seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame({name: generator.normal(mean, 0.05, 200) for name in TONES})


def look(shift: pd.DataFrame, trait: str, value: str, statistic: str) -> pd.Series:
    (row,) = shift[
        (shift["trait"] == trait) & (shift["value"] == value) & (shift["statistic"] == statistic)
    ].to_dict("records")
    return pd.Series(row)


def test_a_set_does_not_differ_from_itself() -> None:
    images = add_exam_columns(make_oof())
    shift = describe_shift(images, shuffle(images), tones(0.3, 0), tones(0.3, 0))
    assert list(shift) == SHIFT_COLUMNS
    assert (shift["run"] == shift["external"]).all()
    assert (shift["standardized_difference"].dropna() == 0).all()


def test_counts_and_shares_are_those_of_plain_counting() -> None:
    own, external = (
        add_exam_columns(make_oof()),
        add_exam_columns(make_oof(30, num_cancers=12, seed=3), seed=4),
    )
    shift = describe_shift(own, external, tones(0.3, 1), tones(0.4, 2))
    assert look(shift, "patients", "", "count")[["run", "external"]].tolist() == [60, 30]
    assert look(shift, "cancer, of breasts", "", "share")[["run", "external"]].tolist() == [15 / 120, 12 / 60]
    machines = external.drop_duplicates("patient_id")["machine_id"]
    for machine in machines.unique():
        row = look(shift, "machine, of patients", machine, "share")
        assert row["external"] == pytest.approx((machines == machine).mean())
    ages = own.drop_duplicates("patient_id")["age"]
    assert look(shift, "age", "", "median")["run"] == ages.median()
    assert look(shift, "age", "not recorded", "share")["run"] == pytest.approx(ages.isna().mean())
    difference = look(shift, "brightness of pictures", "", "mean")["standardized_difference"]
    assert difference == pytest.approx(2, abs=0.4)  # a tenth, in deviations of a twentieth


def test_what_is_not_known_is_nan_and_makes_no_noise() -> None:
    shift = describe_shift(make_oof(), add_exam_columns(make_oof(30)), NOTHING, NOTHING)
    assert np.isnan(look(shift, "brightness of pictures", "", "mean")["run"])
    assert np.isnan(look(shift, "age", "", "mean")["run"])
    assert look(shift, "machine, of patients", "not recorded", "share")[["run", "external"]].tolist() == [
        1,
        0,
    ]


def test_differences_follow_their_formula() -> None:
    first, second = pd.Series([0.0, 2.0]), pd.Series([3.0, 5.0])
    assert find_difference_of_means(first, second) == pytest.approx(3 / np.sqrt(2))
    assert find_difference_of_shares(0.2, 0.5) == pytest.approx(0.3 / np.sqrt((0.16 + 0.25) / 2))
    assert np.isnan(find_difference_of_shares(0.0, 1.0))
    assert np.isnan(find_difference_of_means(first * 0, second * 0))
