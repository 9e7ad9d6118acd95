"""The figures of a class run, judged by scikit-learn; and predictions that do not fit their run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from data_prep.errors import UserError
from pipeline.classification.class_run import probability_column
from pipeline.classification.metrics import (
    evaluate_classes,
    evaluate_predictions,
    find_confused_pairs,
    top_k_accuracy,
    write_class_evaluation,
)
from tests.pipeline.class_run import make_labels, make_predictions, write_class_run


@pytest.mark.parametrize("skill", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("num_classes", [2, 6, 37])
def test_scikit_learn_finds_the_same(num_classes: int, skill: float) -> None:
    table, labels = make_predictions(num_classes, skill=skill), make_labels(num_classes)
    probabilities = table[[probability_column(label) for label in labels]]
    found = evaluate_predictions(table, labels, guess=labels[0])
    assert found.accuracy == accuracy_score(table["label"], table["predicted"])
    assert found.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(table["label"], table["predicted"])
    )
    assert found.cross_entropy == pytest.approx(log_loss(table["label"], probabilities, labels=labels))
    expected = confusion_matrix(table["label"], table["predicted"], labels=labels)
    np.testing.assert_array_equal(found.confusion, expected)
    if num_classes > 5:
        assert found.top_5_accuracy == top_k_accuracy_score(table["label"], probabilities, k=5, labels=labels)
    else:
        assert found.top_5_accuracy is None
    precision, recall, _, support = precision_recall_fscore_support(
        table["label"], table["predicted"], labels=labels, zero_division=np.nan
    )
    for name, values in {"precision": precision, "recall": recall, "support": support}.items():
        ours = [np.nan if getattr(row, name) is None else getattr(row, name) for row in found.classes]
        np.testing.assert_allclose(ours, values, err_msg=name)


def test_classes_without_images_or_predictions_have_no_figure() -> None:
    labels = make_labels(3)
    table = make_predictions(3, num_images=30)
    table = table[table["label"] != labels[2]].assign(predicted=labels[0])
    found = evaluate_predictions(table, labels, guess=labels[1])
    assert [row.recall for row in found.classes] == [1, 0, None]
    assert [row.precision for row in found.classes] == [pytest.approx(found.accuracy), None, None]
    assert found.balanced_accuracy == 0.5
    assert found.guess_accuracy == pytest.approx(1 - found.accuracy)


@pytest.mark.parametrize(
    ("num_right", "num_images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(num_right: int, num_images: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    right, wrong = num_right * ["a"], (num_images - num_right) * ["b"]
    table = pd.DataFrame({"label": "a", "predicted": right + wrong, "p_a": 0.5, "p_b": 0.5})
    interval = evaluate_predictions(table, ["a", "b"], guess="a").accuracy_interval
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_of_equal_probabilities_the_first_classes_count() -> None:
    probabilities = np.full((4, 4), 0.25)
    assert [top_k_accuracy(np.arange(4), probabilities, k=k) for k in (1, 2, 4)] == [0.25, 0.5, 1.0]


def test_a_probability_of_zero_costs_much_but_not_everything() -> None:
    labels = make_labels(2)
    table = pd.DataFrame(
        {"label": labels[:1], "predicted": labels[1:], "probability": 1.0, "p_breed_00": 0.0}
    )
    found = evaluate_predictions(table.assign(p_breed_01=1.0), labels, guess=labels[0])
    assert 20 < found.cross_entropy < 40


def test_confused_pairs_come_by_their_number() -> None:
    labels = make_labels(3)
    pairs = [(0, 1)] * 3 + [(2, 1)] * 5 + [(2, 2)] * 5 + [(1, 1)] * 9 + [(0, 2)]
    table = pd.DataFrame([(labels[true], labels[predicted]) for true, predicted in pairs])
    table.columns = ["label", "predicted"]
    found = evaluate_predictions(
        table.assign(p_breed_00=0.2, p_breed_01=0.5, p_breed_02=0.3), labels, guess=""
    )
    expected = [
        (labels[2], labels[1], 5, 0.5),
        (labels[0], labels[1], 3, 0.75),
        (labels[0], labels[2], 1, 0.25),
    ]
    assert find_confused_pairs(found, most=9) == expected
    assert find_confused_pairs(found, most=2) == expected[:2]


def test_metrics_json_holds_every_figure(tmp_path: Path) -> None:
    table = make_predictions(6, num_images=50)
    run = write_class_run(tmp_path / "run", table)
    evaluation = evaluate_classes(run)
    write_class_evaluation(run, evaluation)
    written = json.loads(run.metrics.read_text())
    assert list(written) == [
        "num_images",
        "num_classes",
        "accuracy",
        "accuracy_interval_95",
        "top_5_accuracy",
        "balanced_accuracy",
        "cross_entropy",
        "guess",
        "classes",
        "confusion",
    ]
    assert (written["num_images"], written["num_classes"]) == (56, 6)
    assert written["accuracy"] == accuracy_score(table["label"], table["predicted"])
    assert written["accuracy_interval_95"] == list(evaluation.accuracy_interval)
    assert written["guess"] == {"label": "breed_05", "accuracy": (table["label"] == "breed_05").mean()}
    assert list(written["classes"][0]) == ["label", "support", "predicted", "recall", "precision"]
    assert written["confusion"]["labels"] == make_labels(6)
    assert np.sum(written["confusion"]["counts"]) == 56


def swap_labels(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label=table["label"].to_numpy()[::-1])


def drop_an_image(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[1:]


def repeat_an_image(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table.iloc[:1], table])


def predict_an_unknown_class(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(predicted=["cat", *table["predicted"].iloc[1:]])


def exceed_one(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(p_breed_01=[1.5, *table["p_breed_01"].iloc[1:]])


def sum_to_more_than_one(table: pd.DataFrame) -> pd.DataFrame:
    columns = table.filter(like="p_").columns
    return table.assign(**{name: [0.9, *table[name].iloc[1:]] for name in columns})


def leave_a_cell_empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(p_breed_01=[None, *table["p_breed_01"].iloc[1:]])


def drop_a_class(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="p_breed_02")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (swap_labels, r"predictions.csv and .*images.csv differ in the test images or their labels: delete"),
        (drop_an_image, "differ in the test images or their labels"),
        (repeat_an_image, "differ in the test images or their labels"),
        (
            predict_an_unknown_class,
            "image images/0.jpg must have one of the classes and probabilities from 0 to 1",
        ),
        (exceed_one, "image images/0.jpg must have one of the classes and probabilities from 0 to 1"),
        (sum_to_more_than_one, r"image images/0.jpg must have .* probabilities from 0 to 1 that sum to 1"),
        (leave_a_cell_empty, "image images/0.jpg must have one of the classes and probabilities from 0 to 1"),
        (
            drop_a_class,
            "lacks the column p_breed_02; it needs image, label, predicted, probability, p_breed_00",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_one_sentence_and_no_figure(
    tmp_path: Path, spoil, sentence: str
) -> None:
    run = write_class_run(tmp_path / "run", make_predictions(3, num_images=20))
    spoil(pd.read_csv(run.training.predictions)).to_csv(run.training.predictions, index=False)
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate_classes(run)
    assert "\n" not in str(caught.value)
    assert not run.metrics.exists()
