"""What a report says of the decision curve: where the model is worth using, and how to read the picture."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.decisions.decision_curve import DecisionCurve, draw_up_decisions
from pipeline.reporting.sections.decision_text import describe_decisions, draw_decisions, tabulate_decisions
from tests.pipeline.synthetic_tables import make_breasts


@pytest.fixture(scope="module")
def curve() -> DecisionCurve:
    return draw_up_decisions(make_breasts(skill=2), num_replicates=100)


def change(curve: DecisionCurve, low: float, net_benefit: float, *, risks: list[float]) -> DecisionCurve:
    """Sets the model above the alternatives at these risks, below them elsewhere."""
    points = curve.points.assign(recall_all=0.0)
    is_above = np.isclose(points["threshold"].to_numpy()[:, None], risks).any(axis=1)
    return DecisionCurve(
        points.assign(low=np.where(is_above, low, -1.0), net_benefit=np.where(is_above, net_benefit, -1.0))
    )


def test_the_risks_at_which_the_model_is_worth_using_are_named_as_ranges(curve: DecisionCurve) -> None:
    risks = [0.004, 0.005, 0.006, 0.02, 0.099, 0.1]
    sure = describe_decisions(change(curve, 0.001, 0.002, risks=risks))
    assert sure.startswith("At thresholds of 0.4 to 0.6 or 2 or 9.9 to 10\u00a0% recalling by the model does")
    seeming = describe_decisions(change(curve, -0.001, 0.002, risks=risks))
    assert seeming.startswith(
        "At thresholds of 0.4 to 0.6 or 2 or 9.9 to 10\u00a0% recalling by the model seems"
    )
    assert describe_decisions(change(curve, 0, 0, risks=[])).startswith("At no threshold")


def test_a_model_of_noise_is_not_recommended() -> None:
    for seed in range(3):
        noise = draw_up_decisions(make_breasts(skill=0, seed=seed), num_replicates=200)
        assert "beyond chance at each by" not in describe_decisions(noise)


def test_the_table_and_the_picture_are_of_the_same_risks(curve: DecisionCurve) -> None:
    table = tabulate_decisions(curve)
    assert [row[0] for row in table.rows] == [
        f"{risk}\u00a0%" for risk in ("0.2", "0.5", "1", "2", "5", "10")
    ]
    at_1_percent = curve.points.set_index("threshold").loc[0.01]
    assert float(table.rows[2][1]) == pytest.approx(1000 * at_1_percent["net_benefit"], abs=0.005)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    (picture,) = draw_decisions(curve)
    for text in ("0.5 %", "recall none", "recall all", "by the model", "net benefit per 1,000 women"):
        assert text in picture.svg


def test_without_a_curve_the_reason_is_given() -> None:
    curve = draw_up_decisions(make_breasts().assign(cancer=0))
    assert "There is no decision curve: without fold 0" in describe_decisions(curve)
    assert draw_decisions(curve) == []
    assert tabulate_decisions(curve).rows == []
    assert isinstance(curve.points, pd.DataFrame)
