"""A whole classification: trained on a folder of classes, judged by its test split, reported."""

from pathlib import Path

from pipeline.classification.class_run import ClassRun
from pipeline.classification.metrics import ClassEvaluation, evaluate_classes
from pipeline.classification.report import write_class_report
from pipeline.classification.train_classes import train_classes
from pipeline.runs.recipe import Recipe
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.progress import Reporter


def train_and_evaluate_classes(
    recipe: Recipe, data: Path, run: ClassRun, *, reporter: Reporter, group: ProcessGroup = SINGLE_PROCESS
) -> ClassEvaluation | None:
    """Trains as `train_classes` does, then evaluates and reports; None but in the main process."""
    train_classes(recipe, data, run, reporter=reporter, group=group)
    return evaluate_and_report_classes(run) if group.is_main else None


def evaluate_and_report_classes(run: ClassRun) -> ClassEvaluation:
    """Computes the figures of a finished run and writes its report.

    Raises:
        UserError: if the training has not ended, or a file of it is damaged.
    """
    evaluation = evaluate_classes(run)
    write_class_report(run, evaluation)
    return evaluation
