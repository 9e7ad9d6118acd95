"""Net benefit of women, against counting in a population that is as large as it takes."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from pipeline.evaluation.decisions import decision_curve
from pipeline.evaluation.decisions.decision_curve import (
    DECISION_COLUMNS,
    THRESHOLDS,
    draw_up_decisions,
    fit_screening_risk,
)
from pipeline.evaluation.operating_point import SCREENING_PREVALENCE
from pipeline.reporting.sections.decision_text import describe_decisions
from tests.pipeline.synthetic_tables import make_breasts, shuffle


def draw_up(breasts: pd.DataFrame, num_replicates=200) -> pd.DataFrame:
    curve = draw_up_decisions(breasts, num_replicates=num_replicates)
    assert curve.undefined == ""
    return curve.points


def take_women(breasts: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (patient, part["fold"].iloc[0], part["cancer"].max(), part["probability"].max())
        for patient, part in breasts.groupby("patient_id")
    ]
    return pd.DataFrame(rows, columns=["patient_id", "fold", "cancer", "probability"])


def test_the_curve_is_that_of_counting_women_one_by_one():
    """Each woman stands for as many as make 5 of 1,000 have cancer; her risk is learned from other folds."""
    breasts = make_breasts()
    women = take_women(breasts)
    num_cancers, num_others = women["cancer"].sum(), (1 - women["cancer"]).sum()
    risks = {}
    for fold in women["fold"].unique():
        others = women[women["fold"] != fold]
        scaled = fit_screening_risk(others["cancer"].to_numpy(float), others["probability"].to_numpy())
        for row in women[women["fold"] == fold].itertuples():
            risks[row.patient_id] = float(scaled(np.array([row.probability]))[0])
    points = draw_up(breasts, 10)
    assert list(points) == DECISION_COLUMNS
    for point in points.to_dict("records"):
        threshold, true_positives, false_positives = point["threshold"], 0.0, 0.0
        for row in women.itertuples():
            if risks[row.patient_id] >= threshold:
                true_positives += row.cancer * SCREENING_PREVALENCE / num_cancers
                false_positives += (1 - row.cancer) * (1 - SCREENING_PREVALENCE) / num_others
        benefit = true_positives - false_positives * threshold / (1 - threshold)
        assert point["net_benefit"] == pytest.approx(benefit, abs=1e-12)
        assert point["recall_rate"] == pytest.approx(true_positives + false_positives)
        assert point["sensitivity"] * SCREENING_PREVALENCE == pytest.approx(true_positives)


def test_recalling_all_breaks_even_where_the_risk_is_the_prevalence_and_recalling_none_costs_nothing():
    points = draw_up(make_breasts(), 10)
    at_prevalence = points[np.isclose(points["threshold"], SCREENING_PREVALENCE)]
    assert at_prevalence["recall_all"].to_numpy() == pytest.approx([0], abs=1e-12)
    assert (points["recall_none"] == 0).all()
    assert points["recall_all"].is_monotonic_decreasing


def test_risks_mean_what_they_say_in_a_screening_population():
    """The same women with their cancers thinned out to 5 of 1,000 ask for the same logistic curve."""
    generator = np.random.default_rng(0)
    cancer = (generator.random(40_000) < 0.3).astype(float)
    score = generator.normal(2 * cancer - 3, 1)
    fitted = fit_screening_risk(cancer, expit(score))
    weight = np.where(
        cancer == 1, SCREENING_PREVALENCE / cancer.sum(), (1 - SCREENING_PREVALENCE) / (1 - cancer).sum()
    )
    model = LogisticRegression(C=np.inf, tol=1e-8).fit(score[:, None], cancer, sample_weight=weight * 1e6)
    assert fitted.slope == pytest.approx(model.coef_[0, 0], rel=0.05)
    assert np.average(fitted(expit(score)), weights=weight) == pytest.approx(SCREENING_PREVALENCE, rel=0.05)


def test_a_womans_risk_is_that_of_her_worse_breast():
    breasts = make_breasts()
    mirrored = breasts.assign(laterality=breasts["laterality"].map({"L": "R", "R": "L"}))
    highest = breasts.groupby("patient_id")["probability"].transform("max")
    cancer = breasts.groupby("patient_id")["cancer"].transform("max")
    expected = draw_up(breasts, 10)
    pd.testing.assert_frame_equal(draw_up(mirrored, 10), expected)
    pd.testing.assert_frame_equal(draw_up(breasts.assign(probability=highest, cancer=cancer), 10), expected)


def test_a_model_that_knows_does_as_much_good_as_can_be_done():
    breasts = make_breasts()
    points = draw_up(breasts.assign(probability=np.where(breasts["cancer"] == 1, 0.99, 0.01)))
    at_2_percent = points[points["threshold"] == 0.02].iloc[0]
    assert at_2_percent["net_benefit"] == pytest.approx(SCREENING_PREVALENCE)
    assert at_2_percent["low"] == pytest.approx(SCREENING_PREVALENCE)


def test_intervals_hold_the_curve_and_no_order_of_rows_changes_it():
    breasts = make_breasts()
    points = draw_up(breasts)
    assert (points["low"] <= points["net_benefit"] + 1e-12).all()
    assert (points["net_benefit"] <= points["high"] + 1e-12).all()
    assert (points["low"] < points["high"]).any()
    pd.testing.assert_frame_equal(draw_up(shuffle(breasts)), points)


def test_intervals_are_those_of_copied_patients(monkeypatch):
    """Of one draw the interval is that draw's own net benefit: of so many copies of each woman."""
    breasts = make_breasts()
    patients = sorted(breasts["patient_id"].unique())
    drawn = np.random.default_rng(3).integers(len(patients), size=len(patients))
    times = np.bincount(drawn, minlength=len(patients))
    monkeypatch.setattr(decision_curve, "draw_weights", lambda *_, **__: iter([times[:, None].astype(float)]))
    points = draw_up(breasts)
    women = take_women(breasts).set_index("patient_id").loc[patients]
    risks = decision_curve.cross_fit(women, fit_screening_risk)["probability"].to_numpy()
    copies = np.repeat(np.arange(len(patients)), times)
    cancer = women["cancer"].to_numpy()[copies] == 1
    for threshold, low, high in points[["threshold", "low", "high"]].to_numpy():
        recalled = risks[copies] >= threshold
        found, wrong = recalled[cancer].mean(), recalled[~cancer].mean()
        benefit = SCREENING_PREVALENCE * found
        benefit -= (1 - SCREENING_PREVALENCE) * wrong * threshold / (1 - threshold)
        assert [low, high] == pytest.approx([benefit, benefit], abs=1e-12)


@pytest.mark.parametrize("cancer", [0, 1])
def test_without_two_classes_to_learn_from_there_is_no_curve(cancer: int):
    curve = draw_up_decisions(make_breasts().assign(cancer=cancer))
    assert curve.points.empty
    assert list(curve.points) == DECISION_COLUMNS
    assert "no longer women with and without cancer" in curve.undefined


def test_the_risks_are_those_of_screening():
    assert THRESHOLDS[0] == 0.002
    assert THRESHOLDS[-1] == 0.1
    assert logit(THRESHOLDS[0]) < logit(SCREENING_PREVALENCE) < logit(THRESHOLDS[-1])


def test_each_exam_counts_where_they_are_told_apart():
    """As where each is a woman's own; but a woman is drawn as a whole, so intervals are hers."""
    breasts = make_breasts()
    rounds = pd.concat([breasts.assign(exam_id="1"), breasts.assign(exam_id="2")], ignore_index=True)
    others = rounds.assign(patient_id=rounds["patient_id"].astype(str) + "-" + rounds["exam_id"])
    found, expected = draw_up(rounds, 50), draw_up(others.drop(columns="exam_id"), 50)
    of_draws = ["low", "high"]
    pd.testing.assert_frame_equal(found.drop(columns=of_draws), expected.drop(columns=of_draws))
    assert (found["high"] - found["low"]).mean() > 1.2 * (expected["high"] - expected["low"]).mean()


@pytest.mark.parametrize(("num_cancers", "has_few"), [(4, True), (40, False)])
def test_few_women_with_cancer_are_marked(num_cancers, has_few):
    number = np.arange(300)
    breasts = pd.DataFrame({"patient_id": number.astype(str), "laterality": "L", "fold": number % 2})
    breasts["cancer"] = (number < num_cancers).astype(int)
    breasts["probability"] = np.where(breasts["cancer"] == 1, 0.9, 0.1)
    curve = draw_up_decisions(breasts, num_replicates=100)
    assert curve.has_few_cancers == has_few
    assert ("too few to tell it from chance" in describe_decisions(curve)) == has_few
