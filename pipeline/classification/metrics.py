"""From a classification's predictions to its figures."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss

from data_prep.errors import UserError
from data_prep.storage.atomic import write_json
from pipeline.classification.class_run import ClassRun, probability_column
from pipeline.classification.image_folder import TEST, TRAIN

Classes = NDArray[np.int64]
"""The number of each image's class, [N]."""

ClassProbabilities = NDArray[np.float64]
"""[N, K], rows sum to 1."""

TOP = 5
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ClassFigures:
    """How one class fares in the test.

    Attributes:
        support: test images of the class.
        predicted: test images that are taken for it.
        recall: share of its images that are recognised; None without any.
        precision: share of the images taken for it that are it; None where none is.
    """

    label: str
    support: int
    predicted: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class ClassEvaluation:
    """All figures of a class run.

    Attributes:
        labels: the classes in order.
        confusion: test images by true class (row) and predicted class (column).
        accuracy: share of images whose most probable class is the true one.
        accuracy_interval: Wilson's 95 % interval of it.
        top_5_accuracy: share of images whose true class is among the five most probable; None for up to five.
        balanced_accuracy: mean recall of the classes that the test has.
        cross_entropy: mean of -log(probability of the true class).
        guess: the most common class in training.
        guess_accuracy: what always answering it would score.
        classes: figures of each class.
    """

    labels: list[str]
    confusion: NDArray[np.int64]
    accuracy: float
    accuracy_interval: tuple[float, float]
    top_5_accuracy: float | None
    balanced_accuracy: float
    cross_entropy: float
    guess: str
    guess_accuracy: float
    classes: list[ClassFigures]

    @property
    def num_images(self) -> int:
        """Test images."""
        return int(self.confusion.sum())

    @property
    def num_right(self) -> int:
        """Test images whose class is recognised."""
        return int(self.confusion.trace())


def evaluate_classes(run: ClassRun) -> ClassEvaluation:
    """Computes the figures of a finished run.

    Raises:
        UserError: if the training has not ended or its predictions do not fit the run.
    """
    images = run.read_images()
    labels = list(images["label"].unique())
    predictions = run.read_predictions(labels)
    _require_fit(run, images, predictions, labels)
    guess = str(images["label"][images["split"] == TRAIN].mode().iloc[0])
    return evaluate_predictions(predictions, labels, guess=guess)


def write_class_evaluation(run: ClassRun, evaluation: ClassEvaluation) -> None:
    """Writes `metrics.json`."""
    write_json(run.metrics, class_evaluation_to_json(evaluation))


def evaluate_predictions(predictions: pd.DataFrame, labels: list[str], *, guess: str) -> ClassEvaluation:
    """Computes all figures of a table of predictions."""
    classes = number_labels(predictions["label"], labels)
    predicted = number_labels(predictions["predicted"], labels)
    probabilities_NK = predictions[[*map(probability_column, labels)]].to_numpy(np.float64)
    confusion = confusion_matrix(classes, predicted, labels=range(len(labels)))
    figures = _measure_classes(labels, confusion)
    recalls = [of_class.recall for of_class in figures if of_class.recall is not None]
    num_right = int(confusion.trace())
    interval = binomtest(num_right, len(classes)).proportion_ci(method="wilson")
    return ClassEvaluation(
        labels=labels,
        confusion=confusion,
        accuracy=num_right / len(classes),
        accuracy_interval=(float(interval.low), float(interval.high)),
        top_5_accuracy=top_k_accuracy(classes, probabilities_NK, k=TOP) if len(labels) > TOP else None,
        balanced_accuracy=float(np.mean(recalls)),
        cross_entropy=compute_cross_entropy(classes, probabilities_NK),
        guess=guess,
        guess_accuracy=float((predictions["label"] == guess).mean()),
        classes=figures,
    )


def number_labels(names: pd.Series, labels: list[str]) -> Classes:
    """Returns the number of each name among the labels, which must have it."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def compute_cross_entropy(classes: Classes, probabilities_NK: ClassProbabilities) -> float:
    """Returns the mean of -log(probability of the true class), in nats; 0 counts as 2.2e-16."""
    return float(log_loss(classes, probabilities_NK, labels=range(probabilities_NK.shape[1])))


def top_k_accuracy(classes: Classes, probabilities_NK: ClassProbabilities, *, k: int) -> float:
    """Returns the share of images whose class is among the k most probable; of equals the first count."""
    order_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")
    return float((order_NK[:, :k] == classes[:, None]).any(axis=1).mean())


def find_confused_pairs(evaluation: ClassEvaluation, *, most: int) -> list[tuple[str, str, int, float]]:
    """Returns the most frequent mistakes: class, what it is taken for, images, share of the class's."""
    mistakes = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(cell, mistakes.shape) for cell in order]
    labels, support = evaluation.labels, evaluation.confusion.sum(axis=1)
    return [
        (labels[true], labels[taken_for], int(count), float(count / support[true]))
        for true, taken_for in pairs
        if (count := mistakes[true, taken_for])
    ]


def class_evaluation_to_json(evaluation: ClassEvaluation) -> dict[str, Any]:
    """Makes the content of `metrics.json`; an undefined figure is null."""
    return {
        "num_images": evaluation.num_images,
        "num_classes": len(evaluation.labels),
        "accuracy": evaluation.accuracy,
        "accuracy_interval_95": list(evaluation.accuracy_interval),
        "top_5_accuracy": evaluation.top_5_accuracy,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "cross_entropy": evaluation.cross_entropy,
        "guess": {"label": evaluation.guess, "accuracy": evaluation.guess_accuracy},
        "classes": [asdict(figures) for figures in evaluation.classes],
        "confusion": {
            "labels": evaluation.labels,
            "rows": "true class",
            "columns": "predicted class",
            "counts": evaluation.confusion.tolist(),
        },
    }


def _measure_classes(labels: list[str], confusion: NDArray[np.int64]) -> list[ClassFigures]:
    rows = zip(labels, confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal(), strict=True)
    return [
        ClassFigures(label, int(support), int(predicted), _share(right, support), _share(right, predicted))
        for label, support, predicted, right in rows
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _require_fit(run: ClassRun, images: pd.DataFrame, predictions: pd.DataFrame, labels: list[str]) -> None:
    """Makes sure that predictions were not mixed up or edited: each test image once, with its own label."""
    path = run.training.predictions
    expected = images.loc[images["split"] == TEST, ["image", "label"]].reset_index(drop=True)
    if not predictions[["image", "label"]].equals(expected):
        raise UserError(
            f"{path} and {run.images} differ in the test images or their labels: delete {path.name} and give "
            "the `mammo train` command again, which writes it anew"
        )
    columns = ["probability", *map(probability_column, labels)]
    values = predictions[columns].apply(pd.to_numeric, errors="coerce")
    wrong = ~(values.ge(0) & values.le(1)).all(axis=1) | ~predictions["predicted"].isin(labels)
    wrong |= (values[columns[1:]].sum(axis=1) - 1).abs() > SUM_TOLERANCE
    if wrong.any():
        raise UserError(
            f"{path}: image {predictions['image'][wrong].iloc[0]} must have one of the classes and "
            "probabilities from 0 to 1 that sum to 1; delete the file and run the `mammo train` command "
            "again, which writes it anew"
        )
