"""The commands that judge finished runs: `evaluate` and `compare`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from data_prep.errors import UserError
from data_prep.storage.places import Place, to_place
from pipeline.cli.console import AllowFailures, RunArgument, Workers, console, finish_with_failures, say
from pipeline.cli.ray_options import Address, EngineName, as_seen_elsewhere, choose_workers, open_cluster
from pipeline.runtime.progress import Reporter

if TYPE_CHECKING:
    from data_prep.cache.folder import Cache
    from data_prep.parallel.ray_cluster import Cluster
    from pipeline.evaluation.compare import Difference
    from pipeline.evaluation.evaluate_oof import Evaluation
    from pipeline.runs.evaluation_folder import EvaluationFolder
    from pipeline.runs.run_folder import Run

RunArguments = Annotated[
    list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is the reference.")
]

COMPARISON_WIDTH = 108  # characters, also where there are 80: a log shows each figure on one line then
SHOWN_FIGURES = ["auc", "auc_pooled", "average_precision", "pf1", "pf1_transferred", "pf1_best"]


def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder in RSNA layout with train.csv and the images, or its URL: judge RUN there."
        ),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache of the train split, instead of --data.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call that set.", show_default="the folder's name")
    ] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    *,
    skip_seen: Annotated[
        bool, typer.Option("--skip-seen", help="Leave out patients and pictures that RUN has learned from.")
    ] = False,
    allow_failures: AllowFailures = False,
) -> None:
    """Compute the figures of a run and write its report.

    Writes metrics.json, tables of folds, slices, calibration and threshold stability, report.html, report.md
    and model_card.md into RUN.

    With --data or --cache, the run is judged on the patients there, of whom it must not have learned: all of
    that, the predictions and a comparison of both sets go into RUN/external/NAME. Goes on where it was
    stopped, and runs on a Ray cluster as `mammo predict` does.
    """
    from pipeline.experiment import evaluate_and_report
    from pipeline.runs.run_folder import Run

    if data is None and cache is None:
        _refuse_alone({"--name": name, "--skip-seen": skip_seen, "--engine ray": engine == "ray"})
    if data is not None or cache is not None:
        source = _choose_source(data, cache, workers, engine)
        folder = Run(run.absolute() if engine == "ray" else run)
        _evaluate_external(
            folder,
            source,
            name,
            workers=choose_workers(workers, None),
            skip_seen=skip_seen,
            cluster=open_cluster(engine, address),
            allow_failures=allow_failures,
        )
    elif Run(run).kind == "classification":
        from pipeline.cli.classes import evaluate_classes

        evaluate_classes(run)
    else:
        show_evaluation(Run(run), evaluate_and_report(Run(run), reporter=Reporter(console)))


def _refuse_alone(options: dict[str, object]) -> None:
    """Refuses options that do not go without images.

    Raises:
        UserError: naming the first of them.
    """
    for option, value in options.items():
        if value:
            raise UserError(f"{option} goes with --data or --cache, which name the images to judge on")


def _choose_source(data: str | None, cache: Path | None, workers: int | None, engine: str) -> "Place | Cache":
    """Returns the images to judge on.

    Raises:
        UserError: if options do not go together.
    """
    from data_prep.cache.folder import Cache

    if data is not None and cache is not None:
        raise UserError(
            "give either --data DATA or --cache CACHE, so that it is clear which images to judge on"
        )
    if engine == "ray" and workers is not None:
        raise UserError("--workers goes with --engine local: on a cluster each batch brings its own")
    if cache is not None:
        return Cache(cache.absolute() if engine == "ray" else cache)
    place = to_place(data or "")
    return as_seen_elsewhere(place) if engine == "ray" else place


def _evaluate_external(
    run: "Run",
    source: "Place | Cache",
    name: str | None,
    *,
    workers: int,
    skip_seen: bool,
    cluster: "AbstractContextManager[Cluster | None]",
    allow_failures: bool,
) -> None:
    from pipeline.external import evaluate_external, name_set

    found = evaluate_external(
        run,
        source,
        name_set(source, name),
        workers=workers,
        reporter=Reporter(console),
        skip_seen=skip_seen,
        cluster=cluster,
    )
    show_evaluation(found.folder, found.evaluation)
    if len(found.failures):
        reasons = Counter(found.failures["reason"])
        finish_with_failures(reasons, found.folder.failures, allowed=allow_failures)


def compare(
    runs: RunArguments,
    on: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare on an external set that all runs were judged on."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write the differences to.")] = None,
) -> None:
    """Say whether runs are better than the first one.

    Takes the differences of the figures per breast, with 95 % intervals that count the same patients for all
    runs, which must be of the same patients and labels. The AUC decides; all other figures are judged with
    Holm's correction, since of many one differs by chance now and then.
    """
    from data_prep.storage.atomic import require_replaceable, require_writable, write_csv
    from pipeline.evaluation.compare import COMPARISON_COLUMNS, tabulate_differences
    from pipeline.evaluation.compare import compare as compare_oofs
    from pipeline.evaluation.oof import collect_oof
    from pipeline.external import compare_external
    from pipeline.runs.run_folder import Run

    if out is not None:
        require_replaceable(out, COMPARISON_COLUMNS)
        require_writable(out)
    if on is None:
        differences = compare_oofs({str(run): collect_oof(Run(run)) for run in runs})
    else:
        differences = compare_external([Run(run) for run in runs], on)
    _show_differences(differences)
    if out is not None:
        write_csv(out, tabulate_differences(differences))
        say(f"differences: {out}")


def show_evaluation(run: "EvaluationFolder", evaluation: "Evaluation") -> None:
    """Prints the breasts' figures of each fold and of all, and where the rest stands."""
    from pipeline.reporting.formatting import format_figure, format_interval
    from pipeline.reporting.shortcut_text import describe_shortcuts
    from pipeline.reporting.wording import wording_of

    pooled, names = evaluation.breasts.pooled, wording_of(evaluation).names
    estimates = {
        **{str(fold): estimate for fold, estimate in evaluation.breasts.folds.items()},
        "all" if evaluation.external is None else "ensemble": pooled,
    }
    table = Table(Column("per breast, fold", no_wrap=True), *estimates, box=None, padding=(0, 2, 0, 0))
    for count in ("breasts", "cancers"):
        table.add_row(count, *(f"{getattr(estimate, f'num_{count}'):,}" for estimate in estimates.values()))
    for name in (name for name in SHOWN_FIGURES if name in names):
        figures = (format_figure(estimate.metrics.figures[name]) for estimate in estimates.values())
        table.add_row(names[name], *figures)
    console.print(table)
    lead, of_lead = evaluation.lead
    for name, estimate in {"pf1_transferred": pooled, lead: of_lead}.items():
        if interval := format_interval(estimate.intervals.get(name)):
            figure = format_figure(estimate.figures[name])
            say(f"{names[name]} {figure}, 95 % interval {interval}")
    _say_undefined(pooled.undefined)
    for sentence in describe_shortcuts(evaluation.audit):
        say(f"warning: {sentence}")
    if evaluation.missing_slices:
        say(f"no slices by {', '.join(evaluation.missing_slices)}: the predictions have no such column")
    say(f"all figures, also per image and slice: {run.metrics}")
    say(f"report: {run.report}")


def _say_undefined(undefined: dict[str, str]) -> None:
    from pipeline.evaluation.metrics import SEVERAL_THRESHOLDS
    from pipeline.reporting.formatting import FIGURE_NAMES

    for reason in dict.fromkeys(undefined.values()):
        names = [FIGURE_NAMES[name] for name, why in undefined.items() if why == reason]
        if reason != SEVERAL_THRESHOLDS:
            say(f"undefined, since {reason}: {', '.join(names)}")


def _show_differences(differences: list["Difference"]) -> None:
    from pipeline.reporting.formatting import format_figure

    for run in dict.fromkeys(found.run for found in differences):
        of_run = [found for found in differences if found.run == run]
        say(f"{run} compared with {of_run[0].reference}, per breast; {_name(of_run[0])} decides:")
        table = Table(
            *("figure", "first", "this", "difference (95 %)", "p", "this is"),
            box=None,
            padding=(0, 2, 0, 0),
            width=COMPARISON_WIDTH,
        )
        for found in of_run:
            values = map(format_figure, [found.reference_value, found.value])
            p = "" if found.p_holm is None else f"{found.p_holm:.3f}"
            table.add_row(_name(found), *values, _show_difference(found), p, found.verdict)
        console.print(table)
        for reason in dict.fromkeys(found.reason for found in of_run if found.reason):
            of_reason = [_name(found) for found in of_run if found.reason == reason]
            names = "all" if len(of_reason) == len(of_run) else ", ".join(of_reason)
            say(f"unclear, since {reason}: {names}")
    say("p: of no difference; of all but the first figure with Holm's correction")


def _name(found: "Difference") -> str:
    from pipeline.reporting.formatting import FIGURE_NAMES

    return FIGURE_NAMES[found.figure]


def _show_difference(found: "Difference") -> str:
    if found.difference is None or found.interval is None:
        return ""
    return f"{found.difference:+.3f} ({found.interval.low:+.3f} to {found.interval.high:+.3f})"
