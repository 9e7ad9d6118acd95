"""Comparison of runs: paired, on the same breasts, with a verdict that can be trusted."""

import numpy as np
import pytest

from data_prep.errors import UserError
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.compare import (
    COMPARED,
    COMPARISON_COLUMNS,
    compare,
    correct_by_holm,
    tabulate_differences,
)
from pipeline.evaluation.estimates import AUC_WEIGHTED
from pipeline.evaluation.metrics import LOWER_IS_BETTER, measure
from tests.pipeline.synthetic_run import make_oof

FEW = "fewer than 20 women with cancer"


def blur(oof, amount, seed=9):
    """The same predictions with noise on the logit."""
    logits = np.log(oof["probability"] / (1 - oof["probability"]))
    noise = np.random.default_rng(seed).normal(0, amount, len(oof))
    return oof.assign(probability=1 / (1 + np.exp(-logits - noise)))


def by_figure(differences):
    return {found.figure: found for found in differences}


def test_the_difference_is_that_of_the_runs_own_figures():
    first = make_oof(num_patients=300, num_cancers=80)
    second = blur(first, 2.0)
    found = by_figure(compare({"a": first, "b": second}, num_replicates=200))
    assert list(found) == ["auc", *(name for name in COMPARED if name != "auc")]
    assert [name for name in found if found[name].is_primary] == ["auc"]
    aucs = []
    for oof in (first, second):
        breasts = to_breasts(oof)
        aucs.append(measure(breasts["cancer"], breasts["probability"], folds=breasts["fold"]).auc)
    assert (found["auc"].reference_value, found["auc"].value) == pytest.approx(tuple(aucs))
    assert found["auc"].difference == pytest.approx(aucs[1] - aucs[0])
    assert found["auc"].interval.low < found["auc"].difference < found["auc"].interval.high


def test_the_verdict_turns_with_the_order_of_the_runs():
    good = make_oof(num_patients=300, num_cancers=80, skill=2.0)
    bad = blur(good, 3.0)
    forth, back = (
        by_figure(compare(runs)) for runs in ({"good": good, "bad": bad}, {"bad": bad, "good": good})
    )
    assert forth["auc"].verdict == "worse"
    assert back["auc"].verdict == "better"
    assert "brier" in LOWER_IS_BETTER
    assert forth["brier"].difference > 0
    assert forth["brier"].verdict == "worse"
    assert back["brier"].verdict == "better"
    for name in COMPARED:
        assert back[name].interval.low == pytest.approx(-forth[name].interval.high)
        assert back[name].p == pytest.approx(forth[name].p)


def test_a_run_cannot_be_told_apart_from_its_copy():
    oof = make_oof(num_cancers=30)
    for found in compare({"a": oof, "b": oof.copy()}, num_replicates=50):
        assert (found.difference, found.interval, found.p_holm, found.verdict) == (0, None, None, "unclear")


def test_pairing_makes_the_interval_narrower_than_two_independent_ones():
    first = make_oof(num_patients=300, num_cancers=60)
    paired = by_figure(compare({"a": first, "b": blur(first, 0.2)}, num_replicates=300))["auc"].interval
    other = make_oof(num_patients=300, num_cancers=60, seed=0)
    other["probability"] = other["probability"].sample(frac=1, random_state=0).to_numpy()
    unlike = by_figure(compare({"a": first, "b": other}, num_replicates=300))["auc"].interval
    assert paired.high - paired.low < (unlike.high - unlike.low) / 3


def test_every_run_is_compared_with_the_first():
    oof = make_oof()
    differences = compare({"a": oof, "b": blur(oof, 1), "c": blur(oof, 2)}, num_replicates=5)
    assert [(found.run, found.reference) for found in differences[:: len(COMPARED)]] == [
        ("b", "a"),
        ("c", "a"),
    ]


def test_folds_may_differ_and_the_order_of_rows_does_not_matter():
    oof = make_oof()
    other = blur(make_oof(num_folds=5), 1)
    assert len(set(other["fold"])) == 5
    first = compare({"a": oof, "b": other}, num_replicates=20)
    second = compare({"a": oof, "b": other.sample(frac=1, random_state=2)}, num_replicates=20)
    assert first == second


def test_an_undefined_figure_has_no_difference():
    oof = make_oof(num_cancers=0)
    differences = compare({"a": oof, "b": blur(oof, 1)}, num_replicates=5)
    found = by_figure(differences)
    assert (found["auc"].difference, found["auc"].verdict) == (None, "undefined")
    assert (found["brier"].verdict, found["brier"].reason) == ("unclear", FEW)
    table = tabulate_differences(differences).set_index("figure")
    assert table.reset_index()[COMPARISON_COLUMNS].shape == (len(COMPARED), len(COMPARISON_COLUMNS))
    assert table.loc["auc", ["value", "difference", "low", "high"]].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda oof: oof[oof["patient_id"] != "7"], "b has no prediction of 2 breasts of a, 7_L for one"),
        (
            lambda oof: oof.assign(patient_id=oof["patient_id"].replace("7", "70")),
            "b has no prediction of 2 breasts of a, 7_L for one",
        ),
        (lambda oof: oof.assign(cancer=1), "they give 105 breasts different labels"),
    ],
)
def test_runs_on_other_patients_or_labels_are_refused_in_one_sentence(change, message):
    oof = make_oof()
    with pytest.raises(UserError, match=message) as caught:
        compare({"a": oof, "b": change(oof)})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a and b cannot be compared: ")


def test_extra_patients_are_refused_too():
    oof = make_oof()
    with pytest.raises(UserError, match="a has no prediction of 2 breasts of b, 7_L for one"):
        compare({"a": oof[oof["patient_id"] != "7"], "b": oof})


def test_one_run_is_no_comparison():
    with pytest.raises(UserError, match="needs two different runs or more"):
        compare({"a": make_oof()})


def test_holms_correction_of_an_example_by_hand():
    """The smallest of four times 4, the next times 3, ..., and none below the one before it."""
    assert correct_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_by_holm([0.6, 0.7]) == [1, 1]
    assert correct_by_holm([]) == []


@pytest.mark.parametrize(("num_women", "is_judged"), [(1, False), (19, False), (20, True)])
def test_below_20_women_with_cancer_nothing_is_better(num_women, is_judged):
    """The good run puts every cancer above everything; three of the women have two."""
    bad = make_oof(num_patients=150, num_cancers=0)
    numbers = bad["patient_id"].astype(int)
    bad["cancer"] = ((numbers < num_women) & ((bad["laterality"] == "L") | (numbers < 3))).astype(int)
    good = bad.assign(probability=np.where(bad["cancer"] == 1, 0.99, bad["probability"] / 2))
    found = by_figure(compare({"bad": bad, "good": good}, num_replicates=200))
    verdicts = {each.verdict for each in found.values()}
    if is_judged:
        assert found["auc"].verdict == "better"
    else:
        assert verdicts <= {"unclear", "undefined"}
        assert found["auc"].reason == found["brier"].reason == FEW


def test_a_figure_that_many_replicates_lack_is_unclear():
    """Only two patients have healthy breasts: one replicate in seven has nobody to tell cancers from."""
    oof = make_oof(num_patients=30, num_cancers=0, num_folds=1).assign(cancer=1)
    oof.loc[oof["patient_id"].isin(["3", "7"]), "cancer"] = 0
    worse = oof.assign(probability=np.where(oof["cancer"] == 1, 0.1, 0.9))
    found = by_figure(compare({"a": oof, "b": blur(worse, 1)}, num_replicates=500))
    assert found["partial_auc"].verdict == "unclear"
    assert found["partial_auc"].reason.startswith("undefined in 1")


def test_secondary_figures_are_held_to_a_higher_standard():
    first = make_oof(num_patients=300, num_cancers=60)
    found = compare({"a": first, "b": blur(first, 1.2)}, num_replicates=500)
    assert found[0].is_primary
    assert found[0].p_holm == found[0].p
    for each in found[1:]:
        assert not each.is_primary
        assert (each.p_holm is None) == (each.p is None)
        assert (each.verdict == "unclear") == (each.p_holm is None or each.p_holm > 0.05)
    p_values = [1.0 if each.p is None else each.p for each in found[1:]]
    corrected = correct_by_holm(p_values)
    assert [each.p_holm for each in found[1:] if each.p is not None] == [
        p for p, each in zip(corrected, found[1:], strict=True) if each.p is not None
    ]
    assert max(corrected) > max(p_values) or max(p_values) == 1
    assert any(p > 2 * each.p for p, each in zip(corrected, found[1:], strict=True) if each.p)
    table = tabulate_differences(found)
    assert table["role"].tolist() == ["primary", *["secondary"] * (len(COMPARED) - 1)]


def test_the_primary_figure_is_corrected_for_the_number_of_runs():
    """Three runs are compared with the first: by Holm's correction, and all their other figures together."""
    first = make_oof(num_patients=200, num_cancers=60)
    runs = {"a": first} | {
        name: blur(first, amount) for name, amount in {"b": 0.9, "c": 1.2, "d": 0.5}.items()
    }
    found = compare(runs, num_replicates=100)
    primary = [each for each in found if each.is_primary]
    assert [each.run for each in primary] == ["b", "c", "d"]
    assert [each.p_holm for each in primary] == correct_by_holm([each.p for each in primary])
    assert min(each.p_holm for each in primary) == pytest.approx(3 * min(each.p for each in primary))
    secondary = [each for each in found if not each.is_primary]
    expected = correct_by_holm([1.0 if each.p is None else each.p for each in secondary])
    for each, p in zip(secondary, expected, strict=True):
        assert each.p_holm == (None if each.p is None else p)
    alone = compare({name: runs[name] for name in "ab"}, num_replicates=100)
    assert alone[0].p_holm == alone[0].p == primary[0].p


def test_where_counting_tells_the_label_images_decide():
    """Breasts with cancer have two images, the others one: each image counts by one over their number."""
    oof = make_oof(num_patients=200, num_cancers=60)
    is_second = oof.duplicated(["patient_id", "laterality"])
    oof = oof[(oof["cancer"] == 1) | ~is_second].reset_index(drop=True)
    noise = np.random.default_rng(2).random(len(oof)) / 100
    size = oof.groupby(["patient_id", "laterality"])["image_id"].transform("size")
    counting = oof.assign(probability=0.2 * size + noise)
    random = oof.assign(probability=0.2 + noise[::-1])
    found = compare({"random": random, "counting": counting}, num_replicates=50)
    assert (found[0].figure, found[0].is_primary) == (AUC_WEIGHTED, True)
    again = compare({"random": random, "other": oof.assign(probability=0.2 + noise)}, num_replicates=50)
    assert again[0].verdict == "unclear"
