"""What `train` and `evaluate` do for a folder of classes."""

from pathlib import Path

from pipeline.classification.class_run import ClassRun
from pipeline.classification.experiment import evaluate_and_report_classes, train_and_evaluate_classes
from pipeline.classification.metrics import ClassEvaluation
from pipeline.cli.console import console, say, show_facts
from pipeline.reporting.formatting import format_figure
from pipeline.runs.recipe import Recipe
from pipeline.runtime.distributed import ProcessGroup
from pipeline.runtime.progress import Reporter


def train_classes(recipe: Recipe, data: Path, folder: Path, group: ProcessGroup) -> None:
    """Trains, evaluates, and prints what came out in the main process."""
    run = ClassRun(folder)
    evaluation = train_and_evaluate_classes(recipe, data, run, reporter=Reporter(console), group=group)
    if evaluation is not None:
        _show_evaluation(run, evaluation)


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
