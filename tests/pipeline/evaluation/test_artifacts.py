"""Evaluation of run folders made of random numbers: the written figures, and bad folders."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score

from data_prep.errors import UserError
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.artifacts import FOLD_METRICS_COLUMNS, SLICES_COLUMNS, evaluate_run, write_evaluation
from pipeline.evaluation.metrics import FIGURES, NO_CANCER, SEVERAL_THRESHOLDS, measure
from pipeline.evaluation.oof import collect_oof
from pipeline.runs.run_folder import OOF_COLUMNS, OOF_EXAM_COLUMNS, read_oof
from tests.pipeline.synthetic_run import add_exam_columns, make_oof, write_run


def evaluate(run):
    """Computes and writes."""
    evaluation = evaluate_run(run)
    write_evaluation(run, evaluation)
    return evaluation


def change(path, **columns):
    """Overwrites columns of a CSV."""
    pd.read_csv(path, dtype=str).assign(**columns).to_csv(path, index=False)


def test_the_figures_are_those_of_breast_means(tmp_path):
    """Recomputed from the image predictions with pandas and scikit-learn."""
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    table = pd.read_csv(run.fold_metrics)
    assert list(table) == FOLD_METRICS_COLUMNS
    assert table["fold"].tolist() == [0, 1, 2]
    for row in table.itertuples():
        logits = oof.assign(probability=logit(oof["probability"]))[oof["fold"] == row.fold]
        means = logits.groupby(["patient_id", "laterality"])[["cancer", "probability"]].mean()
        cancer, probability = means["cancer"], expit(means["probability"])
        assert (row.num_images, row.num_breasts, row.num_cancers) == (80, 40, cancer.sum())
        assert row.auc == pytest.approx(roc_auc_score(cancer, probability))
        assert row.average_precision == pytest.approx(average_precision_score(cancer, probability))


def test_metrics_json_holds_folds_pooled_intervals_and_threshold(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    evaluation = evaluate(run)
    content = json.loads(run.metrics.read_text())
    assert [fold["fold"] for fold in content["folds"]] == [0, 1, 2]
    assert content["threshold"] == evaluation.threshold == content["pooled"]["threshold_best"]
    recalled = evaluation.breasts.table["probability"] >= evaluation.threshold
    assert content["recall_rate"] == recalled.mean()
    assert content["threshold_of_mean"] == evaluation.threshold_of_mean
    assert content["pooled"]["num_breasts"] == 120
    for name in ("auc", "average_precision", "pf1", "pf1_best", "pf1_transferred", "partial_auc"):
        low, high = content["pooled"]["interval_95"][name]
        assert low <= content["pooled"][name] <= high
    assert content["pooled"]["few_cancers"]
    assert content["images"]["pooled"]["auc_weighted"] is not None
    for name, reason in content["pooled"]["no_interval"].items():
        assert content["pooled"]["interval_95"][name] is None
        assert reason
    assert set(content["heterogeneity"]) == {"views", "laterality"}
    audited = {(row["level"], row["trait"]) for row in content["shortcut_audit"]["traits"]}
    assert audited >= {("breast", "images per breast"), ("image", "order of image ids")}
    assert "file size" in content["shortcut_audit"]["not_looked_at"]
    assert content["shortcut_audit"]["counting_tells_the_label"] is False
    assert content["images"]["pooled"]["num_cancers"] == 30
    assert content["pooled"]["undefined"] == {"threshold_transferred": SEVERAL_THRESHOLDS}
    calibration = content["calibration"]
    assert {*calibration["parameters"], *calibration["left_out"]} == {"platt", "isotonic", "temperature"}
    assert set(calibration["platt_by_model"]) == {"0", "1", "2"}
    assert "one model" in calibration["parameters_are_for"]
    for method in calibration["methods"].values():
        assert set(method["calibration_error"]) == {"found", "constant", "perfect"}
        low, high = method["recalibration"]["interval_95"]["slope"]
        assert low < method["recalibration"]["slope"] < high
    assert [row["num_patients_elsewhere"] for row in content["fold_table"]] == [0, 0, 0]
    assert len(content["threshold_stability"]) == 26


def test_both_levels_of_fold_metrics_are_measured_on_the_fold_alone(tmp_path):
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    row = pd.read_csv(run.fold_metrics).set_index("fold").loc[1]
    part = oof[oof["fold"] == 1]
    expected = measure(part["cancer"], part["probability"], patients=part["patient_id"])
    for name in set(FIGURES) - {"pf1_transferred", "threshold_transferred"}:
        assert row[f"image_{name}"] == pytest.approx(getattr(expected, name))
    others = collect_oof(run)
    others = others[others["fold"] != 1]
    breasts = to_breasts(others)
    threshold = measure(breasts["cancer"], breasts["probability"]).threshold_best
    assert row["threshold_transferred"] == pytest.approx(threshold)


def test_slices_are_written_with_counts_intervals_and_reasons(tmp_path):
    oof = add_exam_columns(make_oof())
    run = write_run(tmp_path / "run", oof)
    evaluation = evaluate(run)
    assert evaluation.missing_slices == {}
    slices = pd.read_csv(run.table("slices"), dtype={"value": str})
    assert list(slices) == SLICES_COLUMNS
    of_breasts, of_images = slices[slices["level"] == "breast"], slices[slices["level"] == "image"]
    kinds = ["site", "machine", "density", "age", "implant", "views", "laterality"]
    assert list(of_breasts["slice"].unique()) == kinds
    assert set(of_images["slice"]) == {*kinds, "view"}
    for _, kind in of_breasts[of_breasts["figure"] == "auc"].groupby("slice"):
        assert kind["num_breasts"].sum() == 120
        assert kind["num_cancers"].sum() == 15
    mlo = of_images[(of_images["value"] == "MLO") & (of_images["figure"] == "auc_pooled")].iloc[0]
    part = oof[oof["view"] == "MLO"]
    assert mlo["estimate"] == pytest.approx(roc_auc_score(part["cancer"], part["probability"]))
    assert mlo["low"] < mlo["estimate"] < mlo["high"]
    assert (slices["estimate"].isna() == slices["undefined"].notna()).all()
    assert slices["undefined"].notna().any()


def test_oof_without_exam_columns_has_fewer_slices_and_says_which(tmp_path):
    oof = add_exam_columns(make_oof()).drop(columns=["density", "view"])
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    content = json.loads(run.metrics.read_text())
    assert content["missing_slices"] == {
        "view": "the run's predictions have no column view",
        "density": "the run's predictions have no column density",
    }
    assert {part["slice"] for part in content["images"]["slices"]}.isdisjoint({"view", "density"})


def test_exam_columns_are_read_back_as_text(tmp_path):
    run = write_run(tmp_path / "run", add_exam_columns(make_oof()))
    evaluate(run)
    written = read_oof(run.oof)
    assert list(written) == [*OOF_COLUMNS, *OOF_EXAM_COLUMNS]
    assert set(written["site_id"]) == {"1", "2"}
    assert written["age"].dtype == float


def test_oof_csv_holds_every_prediction_once_in_the_order_of_ids(tmp_path):
    """Read back without losing a bit."""
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    written = pd.read_csv(run.oof, dtype={"patient_id": str, "image_id": str})
    assert list(written) == OOF_COLUMNS
    numbers = written[["patient_id", "image_id"]].astype(int)
    assert numbers.equals(numbers.sort_values(["patient_id", "image_id"], ignore_index=True))
    expected = oof.set_index("image_id")["probability"][written["image_id"]]
    assert written["probability"].tolist() == expected.tolist()


def test_evaluating_again_writes_the_same_bytes(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    paths = [run.oof, run.fold_metrics, run.metrics, run.table("slices"), run.table("calibration")]
    evaluate(run)
    first = [path.read_bytes() for path in paths]
    evaluate(run)
    assert [path.read_bytes() for path in paths] == first


def test_the_order_of_the_predictions_does_not_matter(tmp_path):
    oof = add_exam_columns(make_oof())
    run = write_run(tmp_path / "run", oof)
    shuffled = write_run(tmp_path / "shuffled", oof.sample(frac=1, random_state=1))
    evaluate(run)
    evaluate(shuffled)
    assert run.metrics.read_bytes() == shuffled.metrics.read_bytes()
    assert run.oof.read_bytes() == shuffled.oof.read_bytes()
    for name in ("fold_table", "slices", "calibration", "threshold_stability"):
        assert run.table(name).read_bytes() == shuffled.table(name).read_bytes()


def test_undefined_figures_are_empty_cells_and_null_with_a_reason(tmp_path):
    oof = make_oof()
    oof.loc[oof["fold"] == 1, "cancer"] = 0
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    assert run.fold_metrics.read_text().splitlines()[2].startswith("1,80,40,0,,,,,,20,")
    fold = json.loads(run.metrics.read_text())["folds"][1]
    assert fold["auc"] is None
    assert fold["undefined"]["auc"] == NO_CANCER["breast"]


def test_a_reason_speaks_of_breasts_or_of_images(tmp_path):
    """In slices.csv and metrics.json, of whatever the figure is of."""
    oof = add_exam_columns(make_oof())
    oof.loc[oof["view"] == "CC", "cancer"] = 0
    oof["laterality"] = np.where(oof["view"] == "CC", "L", "R")
    oof["patient_id"] = oof["patient_id"] + "0" + oof.groupby(["patient_id", "view"]).cumcount().astype(str)
    run = write_run(tmp_path / "run", oof)
    evaluate(run)
    slices = pd.read_csv(run.table("slices")).dropna(subset="undefined")
    reasons = slices[slices["undefined"].str.contains("cancer")].groupby("level")["undefined"].unique()
    assert set(reasons["breast"]) == {NO_CANCER["breast"]}
    assert set(reasons["image"]) == {NO_CANCER["image"]}
    (cc,) = [
        part for part in json.loads(run.metrics.read_text())["images"]["slices"] if part["value"] == "CC"
    ]
    assert cc["undefined"]["auc"] == "there is no image with cancer"


def test_a_run_without_any_cancer_is_evaluated_too(tmp_path):
    run = write_run(tmp_path / "run", make_oof(num_cancers=0))
    evaluation = evaluate(run)
    assert evaluation.threshold is None
    assert set(evaluation.breasts.pooled.intervals) == {"brier"}
    content = json.loads(run.metrics.read_text())
    assert content["calibration"]["undefined"].startswith("without fold 0 there are no longer breasts")
    assert content["threshold_stability"] == []


def test_an_image_that_could_not_be_prepared_is_simply_not_counted(tmp_path):
    oof = make_oof()
    run = write_run(tmp_path / "run", oof.drop(index=[0, 1, 7]))
    evaluation = evaluate(run)
    assert evaluation.breasts.pooled.num_images == len(oof) - 3
    assert evaluation.breasts.pooled.num_breasts == 119


def remove_a_fold(run):
    run.fold(1).oof.unlink()


def copy_an_image(run):
    image_id = read_oof(run.fold(0).oof)["image_id"].iloc[0]
    ids = read_oof(run.fold(2).oof)["image_id"].tolist()
    change(run.fold(2).oof, image_id=[image_id, *ids[1:]])


def repeat_a_row(run):
    oof = read_oof(run.fold(0).oof)
    pd.concat([oof, oof.tail(1)]).to_csv(run.fold(0).oof, index=False)


def move_a_patient(run):
    folds = run.read_folds()
    change(run.folds, fold=[2, *folds["fold"].tolist()[1:]])


def forget_a_patient(run):
    run.read_folds().iloc[1:].to_csv(run.folds, index=False)


def put_a_patient_in_two_folds(run):
    folds = run.read_folds()
    pd.concat([folds, folds.head(1).assign(fold=1)]).to_csv(run.folds, index=False)


def lose_an_image(run):
    read_oof(run.fold(0).oof).iloc[1:].to_csv(run.fold(0).oof, index=False)


def invent_an_image(run):
    oof = read_oof(run.fold(0).oof)
    pd.concat([oof, oof.tail(1).assign(image_id="5")]).to_csv(run.fold(0).oof, index=False)


def empty_a_file(run):
    run.fold(0).oof.write_text("")


def drop_a_column(run):
    read_oof(run.fold(0).oof).drop(columns="cancer").to_csv(run.fold(0).oof, index=False)


def empty_all_folds(run):
    for fold in range(3):
        read_oof(run.fold(fold).oof).head(0).to_csv(run.fold(fold).oof, index=False)


def relabel_an_image(run):
    cancer = read_oof(run.fold(0).oof)["cancer"].tolist()
    change(run.fold(0).oof, cancer=[1 - cancer[0], *cancer[1:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_fold, "fold 1 of 3 still to be trained"),
        (copy_an_image, "image 1000000 is predicted in folds 0, 2"),
        (repeat_a_row, "twice"),
        (move_a_patient, "patient 0 is not in fold 0 of folds.csv"),
        (forget_a_patient, "patient 0 is not in fold 0 of folds.csv"),
        (put_a_patient_in_two_folds, "patient 0 stands there twice"),
        (lose_an_image, "images of patient 0 are predicted, but folds.csv counts"),
        (invent_an_image, "5 images of patient 57 are predicted, but folds.csv counts 4"),
        (empty_a_file, r"oof.csv is damaged \(EmptyDataError\): remove it and train again"),
        (drop_a_column, "lacks the column cancer"),
        (empty_all_folds, "holds no predictions"),
        (relabel_an_image, "breast 0_L has images of different cancer"),
        (lambda run: change(run.fold(0).oof, probability="nan"), "probability nan, which must be a number"),
        (lambda run: change(run.fold(0).oof, probability="high"), "probability high, which must be a number"),
        (lambda run: change(run.fold(0).oof, probability="1.5"), "probability 1.5, which must be a number"),
        (lambda run: change(run.fold(0).oof, cancer="2"), "cancer 2, which must be 0 or 1"),
        (lambda run: change(run.fold(0).oof, age="old"), "age old, which must be years or empty"),
        (lambda run: change(run.fold(0).oof, laterality="B"), "laterality B, which must be L or R"),
        (lambda run: change(run.fold(0).oof, fold="4"), "fold 4, which must be 0 like its folder"),
    ],
)
def test_a_damaged_run_is_one_clear_sentence_and_nothing_is_written(tmp_path, damage, message):
    run = write_run(tmp_path / "run", make_oof())
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(run)
    assert "\n" not in str(caught.value)
    written = {path.name for path in run.folder.iterdir() if path.is_file()}
    assert written == {"folds.csv", "settings.toml", "environment.json"}


def test_collecting_gives_labels_and_probabilities_as_numbers(tmp_path):
    oof = collect_oof(write_run(tmp_path / "run", make_oof()))
    assert oof["cancer"].dtype == int
    assert oof["probability"].dtype == float
