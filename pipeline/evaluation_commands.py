"""The commands that judge finished runs: `evaluate` and `compare`. `pipeline.cli` puts them under `mammo`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.terminal import RunFolder, console, say, show_facts

if TYPE_CHECKING:
    from pipeline.class_metrics import ClassEvaluation
    from pipeline.compare import Difference
    from pipeline.evaluation import Evaluation
    from pipeline.run import ClassRun, Run

RunFolders = Annotated[
    list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is the reference.")
]


def evaluate(run: RunFolder) -> None:
    """Compute the figures of a run and write its report."""
    from pipeline.class_metrics import evaluate_classes
    from pipeline.class_report import write_class_report
    from pipeline.evaluate import evaluate_run
    from pipeline.report import write_report
    from pipeline.run import ClassRun, Run

    classes, folds = ClassRun(run), Run(run)
    if classes.exists:
        of_classes = evaluate_classes(classes)
        write_class_report(classes, of_classes)
        _show_class_evaluation(classes, of_classes)
    else:
        evaluation = evaluate_run(folds)
        write_report(folds, evaluation)
        show_evaluation(folds, evaluation)


def compare(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option(help="CSV to write the differences to.")] = None,
) -> None:
    """Say whether runs are better than the first one.

    Takes the differences of the figures per breast, with 95 % intervals from a bootstrap that draws the same
    patients for all runs, which must be of the same patients and labels.
    """
    from data_prep.csv_rows import require_replaceable
    from data_prep.files import require_writable, write_csv
    from pipeline.compare import COMPARISON_COLUMNS, tabulate_differences
    from pipeline.compare import compare as compare_oofs
    from pipeline.oof import collect_oof
    from pipeline.run import Run

    oofs = {str(run): collect_oof(Run(run)) for run in runs}
    if out is not None:
        require_replaceable(out, COMPARISON_COLUMNS)
        require_writable(out)
    differences = compare_oofs(oofs)
    _show_differences(differences)
    if out is not None:
        write_csv(out, tabulate_differences(differences))
        say(f"differences: {out}")


def show_evaluation(run: "Run", evaluation: "Evaluation") -> None:
    """Prints the breasts' figures of each fold and of all, and where the rest stands."""
    from pipeline.metrics import SEVERAL_THRESHOLDS

    pooled = evaluation.breasts.pooled
    names = ["fold", "breasts", "cancers", "pF1", "best F1", "transferred F1", "AUC", "AP"]
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for name, subset in [*evaluation.breasts.folds.items(), ("pooled", pooled)]:
        metrics = subset.metrics
        figures = [metrics.pf1, metrics.pf1_best, metrics.pf1_transferred, metrics.auc]
        shown = map(_show_figure, [*figures, metrics.average_precision])
        table.add_row(str(name), str(subset.num_breasts), str(subset.num_cancers), *shown)
    console.print(table)
    for name, title in {"pf1_transferred": "F1 at the other folds' threshold", "auc": "AUC"}.items():
        if interval := pooled.intervals.get(name):
            figure = _show_figure(pooled.metrics.figures[name])
            say(f"{title} {figure}, 95 % interval {interval.low:.3f} to {interval.high:.3f}")
    for reason in dict.fromkeys(pooled.metrics.undefined.values()):
        names = [name for name, why in pooled.metrics.undefined.items() if why == reason]
        if reason != SEVERAL_THRESHOLDS:
            say(f"undefined, since {reason}: {', '.join(names)}")
    if evaluation.missing_slices:
        say(f"no slices by {', '.join(evaluation.missing_slices)}: the predictions have no such column")
    say(f"all figures, also per image and slice: {run.metrics}")
    say(f"report: {run.report}")


def _show_differences(differences: list["Difference"]) -> None:
    for run in dict.fromkeys(found.run for found in differences):
        of_run = [found for found in differences if found.run == run]
        say(f"{run} compared with {of_run[0].reference}, per breast:")
        table = Table(
            "figure", "first", "this", "difference (95 %)", "this is", box=None, padding=(0, 1, 0, 0)
        )
        for found in of_run:
            values = map(_show_figure, [found.reference_value, found.value])
            table.add_row(found.figure, *values, _show_difference(found), found.verdict)
        console.print(table)


def _show_difference(found: "Difference") -> str:
    if found.difference is None or found.interval is None:
        return ""
    return f"{found.difference:+.3f} ({found.interval.low:+.3f} to {found.interval.high:+.3f})"


def _show_class_evaluation(run: "ClassRun", evaluation: "ClassEvaluation") -> None:
    low, high = evaluation.accuracy_interval
    rows = {
        "test images": f"{evaluation.num_images:,}",
        "accuracy": f"{evaluation.accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}",
        f"always {evaluation.guess}": f"{evaluation.guess_accuracy:.3f}",
        "top-5 accuracy": _show_figure(evaluation.top_5_accuracy),
        "balanced accuracy": f"{evaluation.balanced_accuracy:.3f}",
        "cross-entropy": f"{evaluation.cross_entropy:.3f}",
    }
    show_facts(rows.items())
    say(f"confusion matrix and report: {run.report}")


def _show_figure(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.3f}"
