"""Bootstrap: patients drawn, seeded, paired, and of the right spread."""

import numpy as np
import pytest

from pipeline.evaluation import bootstrap, metrics
from pipeline.evaluation.bootstrap import draw_weights, find_interval, replicate
from pipeline.evaluation.patient_stats import PatientSums
from tests.pipeline.synthetic_tables import make_breasts


def add_up(breasts, patients=None):
    """The breasts' sums, by default each patient by her number."""
    patients = breasts["patient_id"].astype(int) if patients is None else patients
    return PatientSums(
        breasts["cancer"],
        breasts["probability"],
        patients,
        num_patients=int(max(patients)) + 1,
        recalled=breasts["probability"] >= breasts["threshold"],
    )


def test_each_draw_has_as_many_patients_as_there_are():
    weights_MR = np.concatenate(list(draw_weights(200, seed=3, num_replicates=50)), axis=1)
    assert weights_MR.shape == (200, 50)
    assert (weights_MR.sum(axis=0) == 200).all()


def test_the_weighted_replicates_are_those_of_copied_patients():
    """The slow way, a table put together from the drawn patients, gives the same figures."""
    breasts = make_breasts(num_patients=60, num_cancers=15)
    threshold = metrics.measure(breasts["cancer"], breasts["probability"]).threshold_best
    found = replicate({"all": add_up(breasts)}, seed=5, num_replicates=100)["all"]
    (weights_MR,) = draw_weights(60, seed=5, num_replicates=100)
    patients = breasts["patient_id"].to_numpy(int)
    for number, weights_M in enumerate(weights_MR.T.astype(int)):
        copy = breasts.loc[np.repeat(breasts.index, weights_M[patients])]
        serial = np.concatenate([np.arange(weights_M[patient]) for patient in patients])
        expected = metrics.measure(
            copy["cancer"],
            copy["probability"],
            patients=copy["patient_id"] + "_" + serial.astype(str),  # a patient drawn twice is two
            thresholds=copy["threshold"],
        )
        at_threshold = metrics.measure(copy["cancer"], copy["probability"] >= threshold)
        assert found["pf1_best"][number] == pytest.approx(at_threshold.pf1)
        for name in set(found) - {"pf1_best"}:
            assert found[name][number] == pytest.approx(getattr(expected, name)), name


def delong_variance(labels, probabilities):
    """DeLong, DeLong and Clarke-Pearson 1988, equation 5, for one curve, as written."""
    cancers, others = probabilities[labels == 1], probabilities[labels == 0]
    wins = (cancers[:, None] > others) + 0.5 * (cancers[:, None] == others)
    return wins.mean(axis=1).var(ddof=1) / len(cancers) + wins.mean(axis=0).var(ddof=1) / len(others)


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_the_spread_of_the_auc_is_delongs_where_each_patient_has_one_breast(skill):
    breasts = make_breasts(num_patients=500, num_cancers=100, skill=skill)
    sums = add_up(breasts, patients=np.arange(1_000))
    replicates = replicate({"all": sums}, seed=0, num_replicates=2_000)["all"]["auc"]
    expected = delong_variance(breasts["cancer"].to_numpy(), breasts["probability"].to_numpy())
    assert replicates.var() == pytest.approx(expected, rel=0.15)


def test_breasts_that_resemble_each_other_widen_the_spread():
    """Drawn by patient, a copy of every breast adds nothing; drawn by breast it would seem to."""
    breasts = make_breasts(num_patients=200, num_cancers=40)
    by_breast = add_up(breasts, patients=np.arange(400))
    both = np.concatenate([np.arange(400), np.arange(400)])
    doubled = breasts.loc[np.concatenate([breasts.index, breasts.index])]
    copied = add_up(doubled, patients=both)
    found = replicate({"once": by_breast, "twice": copied}, seed=0, num_replicates=300)
    assert found["twice"]["auc"] == pytest.approx(found["once"]["auc"])


def test_the_interval_holds_the_figure_and_narrows_with_more_patients():
    widths = []
    for num_patients in (100, 1_600):
        breasts = make_breasts(num_patients, num_cancers=num_patients // 5)
        replicates = replicate({"all": add_up(breasts)}, seed=0, num_replicates=500)
        interval = find_interval(replicates["all"]["auc"])
        assert interval.low < metrics.measure(breasts["cancer"], breasts["probability"]).auc < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)  # one over the square root of 16


def test_same_seed_same_replicates_whatever_the_chunks(monkeypatch):
    sums = {"all": add_up(make_breasts())}
    whole = replicate(sums, seed=1, num_replicates=100)["all"]
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 7 * 200)
    in_parts, other = (replicate(sums, seed=seed, num_replicates=100)["all"] for seed in (1, 2))
    for name, values in whole.items():
        assert in_parts[name] == pytest.approx(values, rel=1e-12)
    assert (in_parts["auc"] != other["auc"]).any()


def test_undefined_replicates_are_left_out_and_counted():
    """With one cancer among 20 patients a draw misses it with probability 0.95 ** 20 = 0.36."""
    sums = add_up(make_breasts(num_patients=20, num_cancers=1))
    replicates = replicate({"all": sums}, seed=0, num_replicates=1_000)["all"]
    for name in ("auc", "partial_auc", "pf1", "pf1_best", "average_precision", "threshold_best"):
        interval = find_interval(replicates[name])
        assert interval.num_undefined == pytest.approx(358, abs=50)
        assert 0 <= interval.low <= interval.high <= 1
    assert find_interval(replicates["brier"]).num_undefined == 0


def test_a_figure_that_is_never_defined_has_no_interval():
    replicates = replicate({"all": add_up(make_breasts(num_cancers=0))}, seed=0, num_replicates=10)
    assert find_interval(replicates["all"]["auc"]) is None
