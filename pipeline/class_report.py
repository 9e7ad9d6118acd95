"""The page that people read of a class run: `report.html`. Computes no figure; `class_metrics` did."""

import math
from pathlib import Path

from data_prep.files import write_text
from pipeline import class_pictures
from pipeline.class_metrics import ClassEvaluation, find_confused_pairs, write_class_evaluation
from pipeline.inside import look_inside
from pipeline.page import Picture, render_page
from pipeline.records import read_numbers
from pipeline.run import ClassRun
from pipeline.sentences import format_percent

HISTORY_FIGURES = ["epoch", "train_loss", "test_loss", "test_accuracy"]
MOST_PAIRS = 15
MANY_CLASSES = 12
"""Above this number of classes the matrix takes the page's whole width."""


def write_class_report(run: ClassRun, evaluation: ClassEvaluation) -> Path:
    """Writes the figures and `report.html`, once all is made, and returns the page's path.

    Raises:
        UserError: if a file that the page shows is damaged; nothing is written then.
    """
    page = render_page(
        "class_report.html.j2",
        run,
        filters={"percent": format_percent},
        evaluation=evaluation,
        even_cross_entropy=math.log(len(evaluation.labels)),
        splits=run.read_images()["split"].value_counts().to_dict(),
        headline=describe_accuracy(evaluation),
        confusion=class_pictures.draw_confusion(evaluation.confusion, evaluation.labels),
        is_wide=len(evaluation.labels) > MANY_CLASSES,
        pairs=find_confused_pairs(evaluation, most=MOST_PAIRS),
        learning_curves=draw_learning_curves(run.training.history, evaluation),
        inside=look_inside(run.settings, {"the model": run.training}),
    )
    write_class_evaluation(run, evaluation)
    write_text(run.report, page)
    return run.report


def describe_accuracy(evaluation: ClassEvaluation) -> str:
    """Says in plain words what the accuracy is and what it is to be compared with."""
    low, high = evaluation.accuracy_interval
    guess = evaluation.guess_accuracy
    sentence = (
        f"The model names the class of {evaluation.num_right:,} of {evaluation.num_images:,} test images "
        f"rightly. Always answering {evaluation.guess}, the most common class in training, would be right in "
        f"{format_percent(guess)} of them"
    )
    if low > guess:
        return f"{sentence}."
    if high < guess:
        return f"{sentence}: the model is worse than that."
    return f"{sentence}, from which the model cannot be told."


def draw_learning_curves(path: Path, evaluation: ClassEvaluation) -> list[Picture]:
    """Draws losses and test accuracy; none without a history."""
    if not path.exists():
        return []
    history = read_numbers(path, HISTORY_FIGURES)
    return [
        Picture("Loss", class_pictures.draw_class_losses(history), "Solid: training. Dashed: test."),
        Picture(
            "Test accuracy",
            class_pictures.draw_test_accuracy(history, guess=evaluation.guess_accuracy),
            "Dashed: always answering the class that is most common in training.",
        ),
    ]
