"""The shortcut audit: it finds each leak that is planted, and nothing else."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.audit.shortcuts import (
    AUDIT_COLUMNS,
    LARGEST_AUC,
    audit_shortcuts,
    deal_patients,
    does_counting_tell,
    score_out_of_fold,
    tabulate_audit,
)
from pipeline.evaluation.audit.traits import (
    AGE,
    BOTH_VIEWS,
    CROP_ASPECT,
    CROP_SIZE,
    FILE_SIZE,
    IMAGE_ORDER,
    NUM_IMAGES,
    OF_CACHE,
    PATCHES,
    TRANSFER_SYNTAX,
)
from tests.pipeline.synthetic_run import add_exam_columns, make_oof

PATIENT_ORDER = "order of patient ids"


def make_set(seed=0):
    """Predictions, and what a cache knows of the files, none of which depends on the label."""
    generator = np.random.default_rng(seed)
    oof = make_oof(num_patients=300, num_cancers=80, num_folds=5, seed=seed)
    oof["image_id"] = (10_000 + generator.permutation(len(oof))).astype(str)
    renamed = dict(zip(oof["patient_id"].unique(), generator.permutation(300).astype(str), strict=True))
    oof["patient_id"] = oof["patient_id"].map(renamed)
    oof = add_exam_columns(oof, seed=seed)
    files = pd.DataFrame(
        {
            "image_id": oof["image_id"],
            CROP_SIZE: generator.normal(4e6, 5e5, len(oof)),
            CROP_ASPECT: generator.normal(0.5, 0.05, len(oof)),
            PATCHES: generator.integers(220, 300, len(oof)).astype(float),
            FILE_SIZE: generator.normal(5e6, 1e6, len(oof)).round(),
            TRANSFER_SYNTAX: generator.choice(["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"], len(oof)),
        }
    )
    return oof, files


def plant(trait, oof, files):
    """Makes one trait depend on the label, and as little else as can be."""
    generator, cancer = np.random.default_rng(9), oof["cancer"].to_numpy() == 1
    oof, files = oof.copy(), files.copy()
    is_first = ~oof.duplicated(["patient_id", "laterality"])
    if trait == NUM_IMAGES:  # a second CC and MLO of breasts with cancer
        oof, files = (pd.concat([table, table[cancer]], ignore_index=True) for table in (oof, files))
        files["image_id"] = oof["image_id"] = (10_000 + generator.permutation(len(oof))).astype(str)
        return oof, files
    if trait == BOTH_VIEWS:
        oof.loc[~cancer & ~is_first, "view"] = "CC"
        oof.loc[cancer & ~is_first, "view"] = "MLO"
        oof["view"] = np.where(~cancer & (oof["patient_id"].astype(int) % 2 == 0), "MLO", oof["view"])
    elif trait == "view":
        oof["view"] = np.where(cancer & (generator.random(len(oof)) < 0.6), "CC", oof["view"])
        oof["view"] = np.where(~cancer & (generator.random(len(oof)) < 0.6), "MLO", oof["view"])
    elif trait == "laterality":
        keep = ~cancer | (oof["laterality"] == "L")
        oof, files = oof[keep].reset_index(drop=True), files[keep].reset_index(drop=True)
    elif trait in {"implant", "site", "machine"}:
        column, value = {
            "implant": ("implant", "1"),
            "site": ("site_id", "2"),
            "machine": ("machine_id", "99"),
        }[trait]
        sick = oof.groupby("patient_id")["cancer"].transform("max") == 1
        oof.loc[sick, column] = value
    elif trait == AGE:
        oof["age"] += 20 * oof.groupby("patient_id")["cancer"].transform("max")
    elif trait == PATIENT_ORDER:
        sick = oof.groupby("patient_id")["cancer"].transform("max") == 1
        oof["patient_id"] = np.where(sick, "1", "2") + oof["patient_id"].str.zfill(4)
    elif trait == IMAGE_ORDER:
        oof["image_id"] = np.where(cancer, "1", "2") + oof["image_id"]
        files["image_id"] = oof["image_id"]
    elif trait == TRANSFER_SYNTAX:
        files.loc[cancer, trait] = "1.2.840.10008.1.2.1"
    else:
        files.loc[cancer, trait] += 2 * files[trait].std()
    return oof, files


def audit(oof, files=None):
    return audit_shortcuts(oof, to_breasts(oof), files)


def named(found):
    return {each.trait for each in found.shortcuts}


@pytest.mark.parametrize("seed", range(3))
def test_without_a_leak_nothing_is_found_and_everything_was_looked_at(seed):
    found = audit(*make_set(seed))
    assert named(found) == set()
    assert found.not_looked_at == {}
    assert not found.counting_tells


LEAKS = [NUM_IMAGES, BOTH_VIEWS, "view", "laterality", "implant", "site", "machine"]
LEAKS += [PATIENT_ORDER, IMAGE_ORDER, *OF_CACHE]


@pytest.mark.parametrize("trait", LEAKS)
def test_a_planted_leak_is_found_and_nothing_else(trait):
    oof, files = plant(trait, *make_set())
    found = audit(oof, files)
    consequences = {BOTH_VIEWS: {"view"}, "view": {BOTH_VIEWS}}  # two sides of one thing
    assert {trait} <= named(found) <= {trait, *consequences.get(trait, set())}
    assert found.counting_tells == (
        trait in {NUM_IMAGES, BOTH_VIEWS, "view"} and bool(named(found) & {NUM_IMAGES, BOTH_VIEWS})
    )
    assert does_counting_tell(oof, to_breasts(oof)) == found.counting_tells


def test_on_clean_sets_with_few_cancers_shortcuts_are_seldom_seen():
    """Some thirty traits, each with an AUC above 0.60 by chance now and then."""
    num_false = 0
    for seed in range(20):
        oof = make_oof(num_patients=150, num_cancers=25, num_folds=5, seed=seed)
        generator = np.random.default_rng(seed)
        oof["image_id"] = (10_000 + generator.permutation(len(oof))).astype(str)
        renamed = dict(zip(oof["patient_id"].unique(), generator.permutation(150).astype(str), strict=True))
        oof["patient_id"] = oof["patient_id"].map(renamed)
        num_false += bool(audit(add_exam_columns(oof, seed=seed)).shortcuts)
    assert num_false <= 3


def test_counting_that_tells_of_images_alone_counts():
    """A few breasts with cancer have ten images each: their breasts are few, and their images many."""
    oof = make_oof(num_patients=300, num_cancers=80, num_folds=5)
    many = oof[(oof["cancer"] == 1) & (oof["patient_id"].astype(int) % 8 == 0)]
    oof = pd.concat([oof, *4 * [many]], ignore_index=True)
    oof["image_id"] = np.arange(len(oof)).astype(str)
    found = audit(oof)
    counting = {each.level for each in found.shortcuts if each.trait == NUM_IMAGES}
    assert counting == {"image"}
    assert found.counting_tells


def test_age_may_tell_and_is_shown_without_a_warning():
    found = audit(*plant(AGE, *make_set()))
    (of_breasts,) = [each for each in found.traits if (each.trait, each.level) == (AGE, "breast")]
    assert of_breasts.auc > LARGEST_AUC
    assert named(found) == set()


def test_without_a_cache_its_traits_are_named_as_not_looked_at():
    oof, _ = make_set()
    found = audit_shortcuts(oof.drop(columns="age"), to_breasts(oof), no_files="it is gone")
    assert found.not_looked_at == dict.fromkeys(OF_CACHE, "it is gone") | {
        AGE: "the run's predictions have no column age"
    }
    assert {each.trait for each in found.traits}.isdisjoint(OF_CACHE)


def test_a_score_never_sees_its_own_fold():
    """Labels of a fold may be turned round without a change of its scores."""
    oof, _ = make_set()
    labels, folds = oof["cancer"].to_numpy(float), oof["fold"].to_numpy()
    for trait in (oof["age"].astype(float), oof["machine_id"]):
        before = score_out_of_fold(trait, labels, folds)
        after = score_out_of_fold(trait, np.where(folds == 2, 1 - labels, labels), folds)
        assert (before[folds == 2] == after[folds == 2]).all()
        assert (before[folds != 2] != after[folds != 2]).any()


def test_a_number_may_tell_from_the_middle():
    generator = np.random.default_rng(0)
    number = pd.Series(generator.normal(size=2_000))
    labels, folds = (number.abs() < 0.5).to_numpy(float), np.arange(2_000) % 4
    scores = score_out_of_fold(number, labels, folds)
    assert roc_auc_score(labels, number) == pytest.approx(0.5, abs=0.05)
    assert roc_auc_score(labels, scores) > 0.9


def test_that_something_is_not_recorded_may_tell():
    labels, folds = np.arange(400) % 8 == 0, np.arange(400) // 8 % 4
    number = pd.Series(np.where(labels, np.nan, np.random.default_rng(0).normal(size=400)))
    assert roc_auc_score(labels, score_out_of_fold(number, labels.astype(float), folds)) == 1


def test_the_table_holds_every_trait_with_its_interval():
    found = audit(*make_set())
    table = tabulate_audit(found)
    assert list(table) == AUDIT_COLUMNS
    assert len(table) == len(found.traits)
    assert table.groupby("level")["trait"].agg(set)["image"] >= {*OF_CACHE, "view", IMAGE_ORDER, AGE}
    assert (table["low"] < table["auc"])[table["low"].notna()].all()
    constant = {NUM_IMAGES, BOTH_VIEWS, "view"}  # each breast has two images, one of either view
    assert set(table["trait"][table["low"].isna()]) == constant
    assert (table["auc"][table["low"].isna()] == 0.5).all()


def test_without_cancers_there_is_nothing_to_tell():
    oof = make_oof(num_cancers=0)
    found = audit(oof)
    assert all(each.auc is None for each in found.traits)
    assert named(found) == set()


def test_on_real_crops_counting_tells_everything_and_random_numbers_tell_nothing(real_data):
    """Half of the crops were drawn as cancers: nearly all breasts without one have a single image."""
    rows = pd.read_csv(
        real_data / "rsna_png256/train.csv", dtype=dict.fromkeys(["patient_id", "image_id", "site_id"], "str")
    )
    generator = np.random.default_rng(0)
    numbers = pd.factorize(rows["patient_id"])[0]
    oof = rows.assign(
        fold=generator.permutation(numbers.max() + 1)[numbers] % 5,
        probability=expit(generator.normal(-3, 1, len(rows))),
    )
    found = audit(oof)
    by_name = {each.trait: each for each in found.traits if each.level == "breast"}
    assert max(by_name[NUM_IMAGES].auc, by_name[BOTH_VIEWS].auc) > 0.99
    assert found.counting_tells


def test_a_value_is_drawn_towards_the_share_of_all_as_by_ten_predictions():
    """Fold 1 scores by fold 0: of 40 predictions 10 are cancers, of the 5 with value a all."""
    folds = np.repeat([0.0, 1.0], 40)
    labels = np.zeros(80)
    labels[:10] = 1
    trait = pd.Series(["a"] * 5 + ["b"] * 35 + ["a", "b", "c"] + ["b"] * 37)
    scores = score_out_of_fold(trait, labels, folds)
    assert scores[40:43] == pytest.approx([(5 + 2.5) / 15, (5 + 2.5) / 45, 0.25])


# Predictions of one model


def test_patients_of_one_model_are_dealt_out_evenly_by_class_whatever_the_order() -> None:
    oof = make_oof(num_patients=103, num_cancers=17, num_folds=1)
    dealt = deal_patients(oof)
    has_cancer = oof.groupby("patient_id")["cancer"].max()[dealt.index]
    for label in (0, 1):
        counts = dealt[has_cancer == label].value_counts()
        assert counts.max() - counts.min() <= 1
        assert len(counts) == 5
    assert deal_patients(oof.sample(frac=1, random_state=1)).sort_index().equals(dealt.sort_index())


def test_a_leak_in_predictions_of_one_model_is_found_and_nothing_else() -> None:
    oof, files = make_set()
    oof = oof.assign(fold=0)
    assert audit_shortcuts(oof, to_breasts(oof), files).shortcuts == []
    leaking = oof.assign(machine_id=np.where(oof["cancer"] == 1, "7", "8"))
    found = audit_shortcuts(leaking, to_breasts(leaking), files).shortcuts
    assert {each.trait for each in found} == {"machine"}
