"""What age adds to pixels: found where it does, not where it cannot, by figures that others compute."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.age.age_gain import AGE_ALONE, BOTH, PIXELS, measure_age, measure_age_elsewhere
from pipeline.evaluation.age.age_regression import add_age_to_ensemble, add_age_to_oof, fit_folds
from pipeline.evaluation.aggregate import to_breasts
from pipeline.reporting.sections.age_text import describe_age, tabulate_age, tabulate_regressions
from tests.pipeline.evaluation.age.age_tables import as_ensemble, make_oof_of_ages, shuffle_ages


def test_both_beat_either_beyond_chance_where_both_tell() -> None:
    gain = measure_age(make_oof_of_ages(), counting_tells=False)
    for name in (PIXELS, AGE_ALONE):
        assert gain.rows[name].loss > 0.02
        assert gain.rows[name].loss_interval.low > 0
        assert gain.rows[name].p < 0.05
    assert not gain.is_used
    assert 0.05 < gain.share_unknown < 0.15


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_ages_gain_nothing(seed: int) -> None:
    gain = measure_age(shuffle_ages(make_oof_of_ages(seed=seed)), counting_tells=False)
    row = gain.rows[PIXELS]
    assert row.loss < 0.01
    assert row.loss_interval.low < 0
    assert gain.rows[AGE_ALONE].auc == pytest.approx(0.5, abs=0.08)


def test_the_aucs_are_those_of_scikit_learn_on_one_fold() -> None:
    """An external set is one ranking."""
    oof, images = make_oof_of_ages(600), as_ensemble(make_oof_of_ages(600, seed=1))
    gain = measure_age_elsewhere(images, oof, counting_tells=False)
    added = add_age_to_ensemble(images, fit_folds(oof))
    for name, column in {
        PIXELS: "pixel_probability",
        AGE_ALONE: "age_probability",
        BOTH: "probability",
    }.items():
        breasts = to_breasts(added.assign(probability=added[column]))
        assert gain.rows[name].auc == pytest.approx(roc_auc_score(breasts["cancer"], breasts["probability"]))


def test_where_counting_tells_images_lead_each_breast_counting_once() -> None:
    oof = make_oof_of_ages(600, num_folds=2)
    kept = oof[
        (oof["cancer"] == 1) | (oof["view"] == "CC")
    ]  # breasts with cancer have two images, others one
    gain = measure_age(kept, counting_tells=True)
    assert gain.figure == "auc_weighted"
    added = add_age_to_oof(kept)
    weights = 1 / added.groupby(["patient_id", "laterality"])["image_id"].transform("size")
    pairs = aucs = 0.0
    for fold in (0, 1):
        own = added["fold"] == fold
        labels, weight = added.loc[own, "cancer"], weights[own]
        of_fold = weight[labels == 1].sum() * weight[labels == 0].sum()
        aucs += of_fold * roc_auc_score(labels, added.loc[own, "probability"], sample_weight=weight)
        pairs += of_fold
    assert gain.rows[BOTH].auc == pytest.approx(aucs / pairs)


def test_a_run_that_takes_age_has_the_same_rows() -> None:
    oof = make_oof_of_ages(400)
    without, with_age = (measure_age(table, counting_tells=False) for table in (oof, add_age_to_oof(oof)))
    assert with_age.is_used
    assert with_age.rows == without.rows


def test_without_ages_it_says_so() -> None:
    oof = make_oof_of_ages(100)
    for table in (oof.drop(columns="age"), oof.assign(age=np.nan)):
        gain = measure_age(table, counting_tells=False)
        assert describe_age(gain) == "Not measured: no age is recorded."
        assert not tabulate_age(gain).rows
        assert not tabulate_regressions(gain).rows
    elsewhere = measure_age_elsewhere(as_ensemble(oof).drop(columns="age"), oof, counting_tells=False)
    assert describe_age(elsewhere) == "Not measured: no age is recorded here."


def test_the_sentences_say_what_the_rows_say() -> None:
    told = describe_age(measure_age(make_oof_of_ages(), counting_tells=False))
    assert "by the pixels alone; mammo train --set model.inputs='[\"age\"]'" in told
    assert "To the pixels, age adds +0.0" in told
    few = make_oof_of_ages(60)
    assert "Fewer than 20 women have cancer" in describe_age(measure_age(few, counting_tells=False))
    nothing = describe_age(measure_age(shuffle_ages(make_oof_of_ages()), counting_tells=False))
    assert "To the pixels, age adds nothing beyond chance: " in nothing
    taken = measure_age(add_age_to_oof(make_oof_of_ages()), counting_tells=False)
    assert describe_age(taken).startswith("All probabilities here are by the pixels and the woman's age.")
