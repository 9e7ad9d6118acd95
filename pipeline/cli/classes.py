"""What `train` and `evaluate` do for a folder of classes."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipeline.classification.class_dry_run import make_class_dry_run
from pipeline.classification.class_run import ClassRun
from pipeline.classification.experiment import evaluate_and_report_classes, train_and_evaluate_classes
from pipeline.classification.metrics import ClassEvaluation
from pipeline.cli.console import say, show_facts
from pipeline.reporting.formatting import format_figure
from pipeline.runs.recipe import Recipe
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.progress import Reporter
from pipeline.training.dry_run import DryRun


def train_classes(recipe: Recipe, data: Path, folder: Path, reporter: Reporter, group: ProcessGroup) -> None:
    """Trains, evaluates, and prints what came out in the main process."""
    run = ClassRun(folder)
    evaluation = train_and_evaluate_classes(recipe, data, run, reporter=reporter, group=group)
    if evaluation is not None:
        _show_evaluation(run, evaluation)


def plan_classes(
    recipe: Recipe, data: Path, *, reporter: Reporter, on_table: Callable[[pd.DataFrame], None]
) -> DryRun:
    """Plans a training and measures a few steps of it."""
    return make_class_dry_run(recipe, data, reporter=reporter, on_table=on_table)


def evaluate_classes(folder: Path) -> None:
    """Evaluates a finished run and prints what came out."""
    run = ClassRun(folder)
    _show_evaluation(run, evaluate_and_report_classes(run))


def _show_evaluation(run: ClassRun, evaluation: ClassEvaluation) -> None:
    low, high = evaluation.accuracy_interval
    rows = {
        "test images": f"{evaluation.num_images:,}",
        "accuracy": f"{evaluation.accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}",
        f"always {evaluation.guess}": f"{evaluation.guess_accuracy:.3f}",
        "top-5 accuracy": format_figure(evaluation.top_5_accuracy),
        "balanced accuracy": f"{evaluation.balanced_accuracy:.3f}",
        "cross-entropy": f"{evaluation.cross_entropy:.3f}",
    }
    show_facts(rows.items())
    say(f"confusion matrix and report: {run.report}")
