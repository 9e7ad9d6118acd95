"""Evaluation of run folders made of random numbers: the written figures, and bad folders."""

import json

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from data_prep.errors import UserError
from pipeline.evaluate import collect_oof, evaluate_run
from pipeline.metrics import NO_CANCER
from pipeline.run import FOLD_METRICS_COLUMNS, OOF_COLUMNS, read_oof
from tests.pipeline.synthetic_run import make_oof, write_run


def change(path, **columns):
    """Overwrites columns of a CSV."""
    pd.read_csv(path, dtype=str).assign(**columns).to_csv(path, index=False)


def test_the_figures_are_those_of_breast_means(tmp_path):
    """Recomputed from the image predictions with pandas and scikit-learn."""
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    evaluate_run(run)
    table = pd.read_csv(run.fold_metrics)
    assert list(table) == FOLD_METRICS_COLUMNS
    assert table["fold"].tolist() == [0, 1, 2]
    for row in table.itertuples():
        breasts = oof[oof["fold"] == row.fold].groupby(["patient_id", "laterality"])[
            ["cancer", "probability"]
        ]
        cancer, probability = breasts.mean()["cancer"], breasts.mean()["probability"]
        assert (row.num_images, row.num_breasts, row.num_cancers) == (80, 40, cancer.sum())
        assert row.auc == pytest.approx(roc_auc_score(cancer, probability))
        assert row.average_precision == pytest.approx(average_precision_score(cancer, probability))


def test_metrics_json_holds_folds_pooled_intervals_and_threshold(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    evaluation = evaluate_run(run)
    content = json.loads(run.metrics.read_text())
    assert [fold["fold"] for fold in content["folds"]] == [0, 1, 2]
    assert content["threshold"] == evaluation.threshold == content["pooled"]["threshold_best"]
    assert content["pooled"]["num_breasts"] == 120
    for name in ("auc", "average_precision", "pf1", "pf1_best"):
        low, high = content["pooled"]["interval_95"][name]
        assert low <= content["pooled"][name] <= high


def test_oof_csv_holds_every_prediction_once_in_the_order_of_ids(tmp_path):
    """Read back without losing a bit."""
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    evaluate_run(run)
    written = pd.read_csv(run.oof, dtype={"patient_id": str, "image_id": str})
    assert list(written) == OOF_COLUMNS
    numbers = written[["patient_id", "image_id"]].astype(int)
    assert numbers.equals(numbers.sort_values(["patient_id", "image_id"], ignore_index=True))
    expected = oof.set_index("image_id")["probability"][written["image_id"]]
    assert written["probability"].tolist() == expected.tolist()


def test_evaluating_again_writes_the_same_bytes(tmp_path):
    run = write_run(tmp_path / "run", make_oof())
    paths = [run.oof, run.fold_metrics, run.metrics]
    evaluate_run(run)
    first = [path.read_bytes() for path in paths]
    evaluate_run(run)
    assert [path.read_bytes() for path in paths] == first


def test_the_order_of_the_predictions_does_not_matter(tmp_path):
    oof = make_oof()
    run = write_run(tmp_path / "run", oof)
    shuffled = write_run(tmp_path / "shuffled", oof.sample(frac=1, random_state=1))
    evaluate_run(run)
    evaluate_run(shuffled)
    assert run.metrics.read_bytes() == shuffled.metrics.read_bytes()
    assert run.oof.read_bytes() == shuffled.oof.read_bytes()


def test_undefined_figures_are_empty_cells_and_null_with_a_reason(tmp_path):
    oof = make_oof()
    oof.loc[oof["fold"] == 1, "cancer"] = 0
    run = write_run(tmp_path / "run", oof)
    evaluate_run(run)
    assert run.fold_metrics.read_text().splitlines()[2] == "1,80,40,0,,,,,"
    fold = json.loads(run.metrics.read_text())["folds"][1]
    assert fold["auc"] is None
    assert fold["undefined"]["auc"] == NO_CANCER


def test_a_run_without_any_cancer_is_evaluated_too(tmp_path):
    run = write_run(tmp_path / "run", make_oof(num_cancers=0))
    evaluation = evaluate_run(run)
    assert evaluation.threshold is None
    assert evaluation.intervals == {}
    assert json.loads(run.metrics.read_text())["pooled"]["interval_95"] == {}


def test_an_image_that_could_not_be_prepared_is_simply_not_counted(tmp_path):
    oof = make_oof()
    run = write_run(tmp_path / "run", oof.drop(index=[0, 1, 7]))
    evaluation = evaluate_run(run)
    assert evaluation.pooled.num_images == len(oof) - 3
    assert evaluation.pooled.num_breasts == 119


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
        (remove_a_fold, "of 3 folds, 1 still to be trained"),
        (copy_an_image, "image 1000000 is predicted in folds 0, 2"),
        (repeat_a_row, "twice"),
        (move_a_patient, "patient 0 is not in fold 0 of folds.csv"),
        (forget_a_patient, "patient 0 is not in fold 0 of folds.csv"),
        (put_a_patient_in_two_folds, "patient 0 stands there twice"),
        (lose_an_image, "images of patient 0 are predicted, but folds.csv counts"),
        (empty_a_file, r"oof.csv is damaged \(EmptyDataError\): remove it and train again"),
        (drop_a_column, "lacks the column cancer"),
        (empty_all_folds, "holds no predictions"),
        (relabel_an_image, "breast 0_L has images of different cancer"),
        (lambda run: change(run.fold(0).oof, probability="nan"), "probability nan, which must be a number"),
        (lambda run: change(run.fold(0).oof, probability="high"), "probability high, which must be a number"),
        (lambda run: change(run.fold(0).oof, probability="1.5"), "probability 1.5, which must be a number"),
        (lambda run: change(run.fold(0).oof, cancer="2"), "cancer 2, which must be 0 or 1"),
        (lambda run: change(run.fold(0).oof, laterality="B"), "laterality B, which must be L or R"),
        (lambda run: change(run.fold(0).oof, fold="4"), "fold 4, which must be 0 like its folder"),
    ],
)
def test_a_damaged_run_is_one_clear_sentence_and_nothing_is_written(tmp_path, damage, message):
    run = write_run(tmp_path / "run", make_oof())
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        evaluate_run(run)
    assert "\n" not in str(caught.value)
    assert not any(path.exists() for path in (run.oof, run.fold_metrics, run.metrics))


def test_collecting_gives_labels_and_probabilities_as_numbers(tmp_path):
    oof = collect_oof(write_run(tmp_path / "run", make_oof()))
    assert oof["cancer"].dtype == int
    assert oof["probability"].dtype == float
