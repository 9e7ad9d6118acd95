"""Curves whose areas are the figures beside them."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from pipeline.evaluation.metrics import find_operating_points, measure
from pipeline.reporting.plots.curves import average_roc
from tests.pipeline.synthetic_tables import make_breasts


def make_folds(*, ties, seed=0):
    """Four folds, of models on scales of their own; the last has no cancer."""
    breasts = make_breasts(num_patients=100, num_cancers=30, seed=seed)
    shifted = np.log(breasts["probability"] / (1 - breasts["probability"])) + breasts["fold"]
    breasts["probability"] = 1 / (1 + np.exp(-(np.round(shifted) if ties else shifted)))
    breasts.loc[breasts["fold"] == 3, "cancer"] = 0
    return breasts


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_the_mean_roc_curve_is_the_auc_within_folds(ties, seed):
    breasts = make_folds(ties=ties, seed=seed)
    of_folds = [
        find_operating_points(part["cancer"], part["probability"])
        for _, part in breasts.groupby("fold")
        if part["cancer"].any()
    ]
    rates, sensitivities = average_roc(of_folds)
    figures = measure(breasts["cancer"], breasts["probability"], folds=breasts["fold"])
    assert np.trapezoid(sensitivities, rates) == pytest.approx(figures.auc)
    assert np.trapezoid(sensitivities, rates) != pytest.approx(figures.auc_pooled, abs=1e-3)
    assert (np.diff(rates) >= 0).all()
    assert (np.diff(sensitivities) >= -1e-12).all()
    assert (rates[0], rates[-1], sensitivities[-1]) == (0, 1, 1)


def test_the_mean_of_one_fold_is_its_own_curve():
    breasts = make_breasts(num_folds=1)
    rates, sensitivities = average_roc([find_operating_points(breasts["cancer"], breasts["probability"])])
    expected = roc_curve(breasts["cancer"], breasts["probability"], drop_intermediate=False)
    for rate, sensitivity in zip(*expected[:2], strict=True):
        own = sensitivities[np.isclose(rates, rate)]
        assert own.min() - 1e-12 <= sensitivity <= own.max() + 1e-12
