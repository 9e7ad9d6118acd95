"""Bootstrap intervals: patients drawn, seeded, undefined replicates counted."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipeline import bootstrap, metrics
from pipeline.bootstrap import draw_weights, find_intervals


def make_breasts(num_patients=200, num_cancers=20, seed=0):
    """Two breasts a patient; those with cancer tend to higher probabilities."""
    generator = np.random.default_rng(seed)
    cancer = np.zeros(2 * num_patients, dtype=int)
    cancer[generator.choice(2 * num_patients, num_cancers, replace=False)] = 1
    score = generator.normal(size=2 * num_patients) + cancer
    patients = np.repeat([str(number) for number in range(num_patients)], 2)
    return pd.DataFrame({"patient_id": patients, "cancer": cancer, "probability": 1 / (1 + np.exp(-score))})


def test_both_breasts_of_a_patient_are_drawn_together():
    breasts = make_breasts()
    weights_RN = np.concatenate(list(draw_weights(breasts["patient_id"], seed=3, num_replicates=50)))
    assert weights_RN.shape == (50, 400)
    assert (weights_RN[:, 0::2] == weights_RN[:, 1::2]).all()
    assert (weights_RN[:, 0::2].sum(axis=1) == 200).all()


def test_the_weighted_replicates_are_those_of_copied_patients():
    """The slow way, a table put together from the drawn patients, gives the same percentiles."""
    breasts = make_breasts(num_patients=60, num_cancers=15)
    (weights_RN,) = draw_weights(breasts["patient_id"], seed=5, num_replicates=200)
    copies = [breasts.loc[np.repeat(breasts.index, weights_N.astype(int))] for weights_N in weights_RN]
    threshold = 0.6
    slow = {
        "pf1": [metrics.pf1(copy["cancer"], copy["probability"]) for copy in copies],
        "pf1_best": [f1_score(copy["cancer"], copy["probability"] >= threshold) for copy in copies],
        "auc": [metrics.auc(copy["cancer"], copy["probability"]) for copy in copies],
        "average_precision": [
            metrics.average_precision(copy["cancer"], copy["probability"]) for copy in copies
        ],
    }
    intervals = find_intervals(breasts, threshold, seed=5, num_replicates=200)
    assert set(intervals) == set(slow)
    for name, figures in slow.items():
        assert [intervals[name].low, intervals[name].high] == pytest.approx(
            np.percentile(figures, [2.5, 97.5])
        )


def test_the_interval_holds_the_figure_and_narrows_with_more_patients():
    widths = []
    for num_patients in (100, 1_600):
        breasts = make_breasts(num_patients, num_cancers=num_patients // 5)
        interval = find_intervals(breasts, None, seed=0, num_replicates=500)["auc"]
        assert interval.low < metrics.auc(breasts["cancer"], breasts["probability"]) < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)  # one over the square root of 16


def test_same_seed_same_intervals_whatever_the_chunks(monkeypatch):
    breasts = make_breasts()
    whole = find_intervals(breasts, 0.5, seed=1, num_replicates=100)
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 7 * len(breasts))
    assert find_intervals(breasts, 0.5, seed=1, num_replicates=100) == whole
    assert find_intervals(breasts, 0.5, seed=2, num_replicates=100) != whole


def test_undefined_replicates_are_left_out_and_counted():
    """With one cancer among 20 patients a draw misses it with probability 0.95 ** 20 = 0.36."""
    breasts = make_breasts(num_patients=20, num_cancers=1)
    for interval in find_intervals(breasts, None, seed=0, num_replicates=1_000).values():
        assert interval.num_undefined == pytest.approx(358, abs=50)
        assert 0 <= interval.low <= interval.high <= 1


def test_a_figure_that_is_never_defined_has_no_interval():
    assert find_intervals(make_breasts(num_cancers=0), None, seed=0, num_replicates=10) == {}
