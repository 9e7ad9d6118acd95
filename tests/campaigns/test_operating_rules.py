"""The simulation of `make campaign`, with fewer runs."""

import numpy as np
import pytest

from tests.campaigns.operating_rules import compare_rules


@pytest.mark.slow
def test_the_threshold_of_the_mean_beats_the_pooled_one_and_only_a_drawn_apart_mean_has_slope_1() -> None:
    """Of the mean of five models that differ in scale, on a set as large and with as many cancers."""
    f1, rates, quality = compare_rules(12, auc=0.8, agreement=0.5, prevalence=0.02, num_women=4_000)
    gain = f1["of_mean"] - f1["pooled"]
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
    assert rates["pooled"].mean() < 0.8 * rates["of_mean"].mean()
    assert all((f1["best"] >= f1[name]).all() for name in ("pooled", "of_mean", "rate", "nested"))
    slopes = {name: np.median(values[:, 0]) for name, values in quality.items()}
    assert slopes["spread"] == pytest.approx(1, abs=0.1)
    assert min(slopes["pooled"], slopes["calibrated"]) > 1.4
