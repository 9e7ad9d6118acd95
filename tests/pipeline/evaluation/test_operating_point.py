"""The two-by-two tables at the operating point, against counting and scikit-learn."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import class_likelihood_ratios, confusion_matrix, precision_score

from pipeline.evaluation import compare
from pipeline.evaluation.operating_point import (
    CELLS,
    MOST_UNDEFINED,
    NO_THRESHOLD,
    SCREENING_PREVALENCE,
    describe_operating_point,
    find_rates,
)
from tests.pipeline.synthetic_tables import make_breasts, shuffle


def describe(breasts):
    point = describe_operating_point(breasts, num_replicates=300)
    assert point.undefined == ""
    return {table.unit: table for table in point.tables}


def test_the_cells_and_ratios_are_scikit_learns():
    breasts = make_breasts()
    found = describe(breasts)["breast"]
    recalled = breasts["probability"] >= breasts["threshold"]
    (tn, fp), (fn, tp) = confusion_matrix(breasts["cancer"], recalled)
    assert [found.cells[name] for name in CELLS] == [tp, fp, fn, tn]
    ratios = class_likelihood_ratios(breasts["cancer"], recalled)
    assert found.figures["likelihood_ratio_positive"] == pytest.approx(ratios[0])
    assert found.figures["likelihood_ratio_negative"] == pytest.approx(ratios[1])
    assert found.figures["ppv"] == pytest.approx(precision_score(breasts["cancer"], recalled))
    assert found.figures["recall_rate"] == pytest.approx(recalled.mean())
    assert found.figures["recalled_per_cancer_found"] == pytest.approx(1 / found.figures["ppv"])


def test_a_woman_is_recalled_for_either_breast():
    """Three women: cancer found; recalled for the wrong breast, which finds her all the same; nothing."""
    breasts = pd.DataFrame(
        {
            "patient_id": ["1", "1", "2", "2", "3", "3"],
            "cancer": [1, 0, 1, 0, 0, 0],
            "probability": [0.9, 0.1, 0.1, 0.9, 0.1, 0.1],
            "threshold": 0.5,
        }
    )
    found = describe(breasts)
    assert [found["breast"].cells[name] for name in CELLS] == [1, 1, 1, 3]
    assert [found["woman"].cells[name] for name in CELLS] == [2, 0, 0, 1]
    assert found["woman"].figures["cancers_found_per_1000"] == pytest.approx(2000 / 3)
    assert found["woman"].figures["specificity"] == 1
    assert found["woman"].figures["likelihood_ratio_positive"] is None  # divided by no false positive
    assert found["woman"].intervals["sensitivity"].low == pytest.approx(0.025**0.5)  # two women, both found


def test_re_weighted_figures_are_those_of_a_set_as_rare_as_screening():
    """1,000 women of whom 5 have cancer, found with a sensitivity of 0.8 and a specificity of 0.9."""
    enriched = find_rates(dict(zip(CELLS, np.array([[80.0], [10], [20], [90]]), strict=True)))
    screening = find_rates(dict(zip(CELLS, np.array([[4.0], [99.5], [1], [895.5]]), strict=True)))
    assert SCREENING_PREVALENCE == 0.005
    for name in ("recall_rate", "ppv", "cancers_found_per_1000", "recalled_per_cancer_found"):
        assert enriched[f"screening_{name}"] == pytest.approx(screening[name])
        assert screening[f"screening_{name}"] == pytest.approx(screening[name])


def test_only_women_are_re_weighted_since_the_prevalence_is_theirs():
    found = describe(make_breasts())
    re_weighted = {name for name in found["woman"].figures if name.startswith("screening_")}
    assert len(re_weighted) == 4
    assert set(found["breast"].figures) == set(found["woman"].figures) - re_weighted
    assert set(found["woman"].intervals) >= re_weighted
    assert set(found["breast"].intervals) <= set(found["breast"].figures)


def test_intervals_are_those_of_copied_patients_and_hold_the_figures():
    found = describe(make_breasts(num_patients=400, num_cancers=60))
    for table in found.values():
        assert set(table.intervals) >= {"sensitivity", "specificity", "ppv", "recall_rate"}
        for name, interval in table.intervals.items():
            assert interval.low < table.figures[name] < interval.high
    narrow = describe(make_breasts(num_patients=6_400, num_cancers=960))["breast"].intervals["sensitivity"]
    wide = found["breast"].intervals["sensitivity"]
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 4, rel=0.35)


def make_recalls(*counts):
    """Women with one breast each, so many in each cell."""
    recalled, cancer = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    ids = np.arange(len(cancer)).astype(str)
    return pd.DataFrame({"patient_id": ids, "cancer": cancer, "probability": recalled, "threshold": 0.5})


@pytest.mark.parametrize("counts", [(1, 30, 9, 160), (30, 1, 9, 160)])
def test_a_figure_that_is_infinite_in_many_replicates_has_no_interval(counts):
    """One woman who is drawn in 63 % of the replicates alone: found, or recalled without cancer."""
    found = describe(make_recalls(*counts))["woman"]
    by_one = "recalled_per_cancer_found" if counts[0] == 1 else "likelihood_ratio_positive"
    reason = re.fullmatch(r"undefined or infinite in (\d+)% of the replicates", found.no_interval[by_one])
    assert 25 < int(reason[1]) < 50  # 37 %, were there no end of replicates
    assert by_one not in found.intervals
    assert found.figures[by_one] is not None
    assert {"sensitivity", "ppv", "likelihood_ratio_negative"} <= set(found.intervals)


def test_a_few_replicates_without_a_value_leave_the_interval():
    found = describe(make_recalls(5, 30, 9, 160))["woman"].intervals["recalled_per_cancer_found"]
    assert 0 < found.num_undefined <= MOST_UNDEFINED * 300


def test_each_defined_figure_has_an_interval_or_a_reason():
    for counts in ((1, 30, 9, 160), (30, 1, 9, 160), (5, 0, 0, 5), (0, 3, 3, 3)):
        for table in describe(make_recalls(*counts)).values():
            defined = {name for name, value in table.figures.items() if value is not None}
            assert set(table.intervals) | set(table.no_interval) == defined
            assert not set(table.intervals) & set(table.no_interval)


def test_the_limit_is_the_one_of_comparisons():
    assert MOST_UNDEFINED == compare.MOST_UNDEFINED


def test_the_order_of_the_rows_changes_nothing():
    breasts = make_breasts()
    assert describe(breasts) == describe(shuffle(breasts))


def test_without_a_threshold_nobody_is_recalled_and_the_reason_stands_there():
    breasts = make_breasts()
    breasts.loc[breasts["fold"] == 1, "threshold"] = np.nan
    assert describe_operating_point(breasts).undefined == NO_THRESHOLD
