"""The commands that judge finished runs: `evaluate` and `compare`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from data_prep.errors import UserError
from data_prep.storage.places import Place, to_place
from pipeline.cli.console import AllowFailures, RunArgument, Workers, console, finish_with_failures, say
from pipeline.cli.ray_options import (
    Address,
    EngineName,
    as_seen_elsewhere,
    choose_workers,
    open_cluster,
    refuse_workers_on_ray,
)
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

COMPARISON_WIDTH = 80  # characters, in a log too
FEW_FOLDS = 2  # of so many each has its own figure in the table
SHOWN_FIGURES = ["auc", "auc_pooled", "average_precision", "pf1", "pf1_transferred", "pf1_best"]


def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="LABELLED",
            help="Judge RUN on other patients: a folder in RSNA layout with train.csv, its URL, or a cache.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call these.", show_default="the folder's name"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="CACHE", help="Cache of the run.", show_default="the one that the run was trained on"
        ),
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
    and model_card.md into RUN. The cache is needed for the pictures of cases and for what is known of files;
    without it the report says what it lacks.

    With --data, the run is judged on the patients there, of whom it must not have learned: all of that, the
    predictions and a comparison of both sets go into RUN/external/NAME. Goes on where it was stopped, and
    runs on a Ray cluster as `mammo predict` does.
    """
    from data_prep.cache.folder import Cache
    from pipeline.experiment import evaluate_and_report
    from pipeline.runs.run_folder import Run

    if data is not None:
        _refuse_beside_data(cache, workers, engine)
        _evaluate_external(
            Run(run.absolute() if engine == "ray" else run),
            _find_source(data, engine),
            name,
            workers=choose_workers(workers, None),
            skip_seen=skip_seen,
            cluster=open_cluster(engine, address),
            allow_failures=allow_failures,
        )
        return
    _refuse_alone({"--name": name, "--skip-seen": skip_seen, "--engine ray": engine == "ray"})
    if Run(run).kind == "classification":
        from pipeline.cli.classes import evaluate_classes

        if cache is not None:
            raise UserError(
                f"--cache goes with a run on mammograms: {run} was trained on a folder of classes"
            )
        evaluate_classes(run)
        return
    store = None if cache is None else Cache(cache)
    show_evaluation(Run(run), evaluate_and_report(Run(run), reporter=Reporter(console), cache=store))


def _refuse_alone(options: dict[str, object]) -> None:
    """Refuses options that do not go without images.

    Raises:
        UserError: naming the first of them.
    """
    for option, value in options.items():
        if value:
            raise UserError(f"{option} goes with --data, which names the images to judge on")


def _refuse_beside_data(cache: Path | None, workers: int | None, engine: str) -> None:
    """Refuses options that do not go with images of other patients.

    Raises:
        UserError: naming one of them.
    """
    if cache is not None:
        raise UserError(
            "--cache names the cache of the run and goes without --data: to judge on the images of a cache, "
            "name that by --data"
        )
    refuse_workers_on_ray(workers, engine)


def _find_source(data: str, engine: str) -> "Place | Cache":
    """Returns the images to judge on: a cache where the folder is one."""
    from data_prep.cache.folder import Cache

    place = to_place(data)
    place = as_seen_elsewhere(place) if engine == "ray" else place
    if isinstance(place, Path) and Cache(place).settings_path.exists():
        return Cache(place)
    return place


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
    finish_with_failures(Counter(found.failures["reason"]), found.folder.failures, allowed=allow_failures)


def compare(
    runs: RunArguments,
    on: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare on an external set that all runs were judged on."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table to write the differences to.")
    ] = None,
) -> None:
    """Say whether runs are better than the first one.

    Takes the differences of the figures per breast, with 95 % intervals that count the same patients for all
    runs, which must be of the same patients and labels. The AUC decides, with Holm's correction for the
    number of runs that are compared with the first. All other figures are judged with Holm's correction among
    themselves, since of many one differs by chance now and then.
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
    """Prints the breasts' figures of all folds and what the folds span, and where the rest stands."""
    from pipeline.reporting.formatting import format_figure, format_interval
    from pipeline.reporting.sections.repeats_text import describe_repeats
    from pipeline.reporting.sections.shortcut_text import describe_shortcuts
    from pipeline.reporting.wording import wording_of

    pooled, folds = evaluation.breasts.pooled, list(evaluation.breasts.folds.values())
    (lead, of_lead), words = evaluation.lead, wording_of(evaluation)
    table = Table("per breast", words.all_column, "95 %", words.folds_column, box=None, padding=(0, 2, 0, 0))
    for count in ("breasts", "cancers"):
        number, *numbers = (getattr(estimate, f"num_{count}") for estimate in (pooled, *folds))
        table.add_row(count, f"{number:,}", "", _span([f"{each:,}" for each in numbers], numbers))
    if lead not in SHOWN_FIGURES:  # of images, because counting them tells the label
        interval = format_interval(of_lead.intervals.get(lead))
        table.add_row(words.names[lead], format_figure(of_lead.figures[lead]), interval, "")
    for name in (name for name in SHOWN_FIGURES if name in words.names):
        values = [estimate.figures[name] for estimate in folds]
        interval = format_interval(pooled.intervals.get(name))
        by_fold = _span(list(map(format_figure, values)), values)
        table.add_row(words.names[name], format_figure(pooled.figures[name]), interval, by_fold)
    console.print(table)
    if evaluation.repeats is not None:
        say(describe_repeats(evaluation.repeats))
    _say_undefined(pooled.undefined)
    for sentence in describe_shortcuts(evaluation.audit):
        say(f"warning: {sentence}")
    if evaluation.missing_slices:
        say(f"no slices by {', '.join(evaluation.missing_slices)}: the predictions have no such column")
    say(f"all figures, also per image and slice: {run.metrics}")
    say(f"report: {run.report}")


def _span(shown: list[str], values: Sequence[float | None]) -> str:
    """Returns the folds' values if they are few, else the lowest and the highest."""
    if len(shown) <= FEW_FOLDS:
        return ", ".join(shown)
    known = sorted((value, text) for value, text in zip(values, shown, strict=True) if value is not None)
    ends = dict.fromkeys([known[0][1], known[-1][1]] if known else [])
    more = f", {len(shown) - len(known)} undefined" if known and len(known) < len(shown) else ""
    return " to ".join(ends) + more


def _say_undefined(undefined: dict[str, str]) -> None:
    from pipeline.evaluation.metrics import SEVERAL_THRESHOLDS
    from pipeline.reporting.formatting import FIGURE_NAMES

    for reason in dict.fromkeys(undefined.values()):
        names = [FIGURE_NAMES[name] for name, why in undefined.items() if why == reason]
        if reason != SEVERAL_THRESHOLDS:
            say(f"undefined, since {reason}: {', '.join(names)}")


def _show_differences(differences: list["Difference"]) -> None:
    from pipeline.reporting.formatting import format_figure, format_p

    for run in dict.fromkeys(found.run for found in differences):
        of_run = [found for found in differences if found.run == run]
        say(f"{run} compared with {of_run[0].reference}, per breast; {_name(of_run[0])} decides:")
        table = Table(
            *("figure", "first", "this", Column("difference (95 %)", no_wrap=True), "p", "this is"),
            box=None,
            padding=(0, 2, 0, 0),
            width=COMPARISON_WIDTH,
        )
        for found in of_run:
            values = map(format_figure, [found.reference_value, found.value])
            p = "" if found.p_holm is None else format_p(found.p_holm)
            table.add_row(_name(found), *values, _show_difference(found), p, found.verdict)
        console.print(table)
        for reason in dict.fromkeys(found.reason for found in of_run if found.reason):
            of_reason = [_name(found) for found in of_run if found.reason == reason]
            names = "all" if len(of_reason) == len(of_run) else ", ".join(of_reason)
            say(f"unclear, since {reason}: {names}")
    say(f"p: of no difference, {_describe_correction(differences)}")


def _describe_correction(differences: list["Difference"]) -> str:
    number = len({found.run for found in differences})
    if number == 1:
        return "of all but the first figure with Holm's correction"
    return (
        f"with Holm's correction: of the first figure for {number} runs, of all others for those of all runs"
    )


def _name(found: "Difference") -> str:
    from pipeline.reporting.formatting import FIGURE_NAMES

    return FIGURE_NAMES[found.figure]


def _show_difference(found: "Difference") -> str:
    if found.difference is None or found.interval is None:
        return ""
    return f"{found.difference:+.3f} ({found.interval.low:+.3f} to {found.interval.high:+.3f})"
