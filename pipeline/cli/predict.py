"""The commands that use a finished run, from `predict` to `check`.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from data_prep.errors import UserError, count, printable
from data_prep.storage.places import to_image_path, to_place
from pipeline.cli.console import (
    NOT_CLEAN,
    AllowFailures,
    DataOption,
    RunArgument,
    Workers,
    choose_picture,
    console,
    error_console,
    finish_with_failures,
    reporting_unusable,
    say,
)
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
    from collections.abc import Iterable

    import pandas as pd

    from pipeline.reporting.breast_views import Companion


def predict(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folder, or several: the mean of their log-odds counts."),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Folder in RSNA layout with test.csv and the images, or its URL."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="CACHE", help="Cache of the test split, instead of --data.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Submission to write.", show_default="RUN/submission.csv"),
    ] = None,
    views: Annotated[
        Literal["mean", "max"],
        typer.Option(
            metavar="mean|max",
            help="A breast's probability: its images' mean (on the logit), or with --probabilities the max.",
        ),
    ] = "mean",
    recall_by: Annotated[
        Literal["threshold", "rate"],
        typer.Option(
            metavar="threshold|rate", help="What recalls: the run's threshold, or its share of all breasts."
        ),
    ] = "threshold",
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    *,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write probabilities instead of 0 and 1.")
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Show each image upside down too; takes twice the time.")
    ] = False,
    allow_failures: AllowFailures = False,
) -> None:
    """Predict the test images and write a submission.

    Of several runs, which have the same patients, labels and folds, the threshold is that of their joint
    out-of-fold predictions.

    One row per prediction_id: 1 for a breast whose probability reaches the threshold that the run's
    evaluation found for the mean of all folds' models, else 0. That is what pF1 rewards; --probabilities
    writes the probability itself. It is the mean of the models and of the breast's images. With --recall-by
    rate, as large a share of the breasts gets 1 as the best threshold recalled in the evaluation.

    An image that is missing or cannot be read is listed in submission_failures.csv and the exit code is 1;
    its breast is judged by its other images, or without any gets the share of cancers in training (by the
    woman's age, where the run takes that).

    Goes on where it was stopped, to the same file; until the end, what is known is in submission.csv.partial.

    With --engine ray, the machines of a Ray cluster predict the batches, to the same file: each with a GPU if
    there are any, else with as many threads as this machine would use (OMP_NUM_THREADS). RUN and the images
    must lie, under the same names, on storage that all of them share.
    """
    from data_prep.cache.folder import Cache
    from pipeline.inference.submission import predict_submission
    from pipeline.runs.run_folder import Run

    _require_one_way(data, cache, views, workers, engine, recall_by, probabilities=probabilities)
    if len(runs) > 1 and out is None:
        raise UserError(f"a submission of {len(runs)} runs has no folder of its own: give --out CSV")
    place = None if data is None else to_place(data)
    if engine == "ray":
        runs = [run.absolute() for run in runs]
        cache, place = cache and cache.absolute(), place and as_seen_elsewhere(place)
    folders, source = [Run(run) for run in runs], place or Cache(cache or Path())
    found = predict_submission(
        folders,
        source,
        out or folders[0].submission,
        workers=choose_workers(workers, None),
        reporter=Reporter(console),
        views=views,
        probabilities=probabilities,
        recall_by=recall_by,
        flip=flip,
        cluster=open_cluster(engine, address),
    )
    say(f"{found.path}: {_describe_submission(found.table, found.rule)}")
    for problem in found.problems:
        error_console.print(f"warning: {found.path}: {problem}", markup=False, highlight=False)
    finish_with_failures(Counter(found.failures["reason"]), found.failures_path, allowed=allow_failures)


def _require_one_way(
    data: str | None,
    cache: Path | None,
    views: str,
    workers: int | None,
    engine: str,
    recall_by: str,
    *,
    probabilities: bool,
) -> None:
    """Refuses options that do not go together.

    Raises:
        UserError: naming those that contradict each other.
    """
    if (data is None) == (cache is None):
        raise UserError(
            "give either --data DATA or --cache CACHE, so that it is clear which images to predict"
        )
    if views == "max" and not probabilities:
        raise UserError(
            "--views max goes with --probabilities: the run's threshold was chosen for the mean of the images"
        )
    if recall_by != "threshold" and probabilities:
        raise UserError("--recall-by cannot be combined with --probabilities, which recalls nobody")
    refuse_workers_on_ray(workers, engine)


def _describe_submission(submission: "pd.DataFrame", rule: str) -> str:
    if not rule:
        return f"{count(len(submission), 'row')} of probabilities"
    return f"{count(len(submission), 'row')}, {submission['cancer'].sum():,} of them 1 ({rule})"


def explain(
    run: RunArgument,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A mammogram: DICOM, PNG, JPEG or PGM; or its URL.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Picture to write.", show_default="<name of IMAGE>_explain.png"),
    ] = None,
    age: Annotated[
        float | None,
        typer.Option(metavar="YEARS", min=0, max=150, help="The woman's age, for a run that takes it."),
    ] = None,
    view: Annotated[
        str, typer.Option(metavar="VIEW", help="IMAGE's view, for a run that judges breasts: CC, MLO, ...")
    ] = "",
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="VIEW=IMAGE", help="Another image of the breast; may be repeated."),
    ] = None,
    other: Annotated[
        list[str] | None, typer.Option(metavar="VIEW=IMAGE", help="One of the other breast; may be repeated.")
    ] = None,
) -> None:
    """Show where a run's models look in one mammogram.

    Prints each fold's probability and writes a picture of the mammogram with what the models attend to laid
    over it. A run that judges breasts by all their images is told the others; it prints how much each of them
    counts. A file that cannot be used ends with the reason and exit code 1.
    """
    from data_prep.storage.atomic import write_bytes
    from pipeline.reporting.explain import draw_explanation
    from pipeline.reporting.explain import explain as explain_image
    from pipeline.runs.run_folder import Run

    path = to_image_path(image)
    target = choose_picture(path, out, "explain")
    if age is not None and "age" not in Run(run).read_inputs():
        raise UserError(f"{run} judges by the pixels alone: leave --age out")
    companions = [to_companion(text, is_of_other_breast=False) for text in beside or []]
    companions += [to_companion(text, is_of_other_breast=True) for text in other or []]
    say_other_views([view, *(companion.view for companion in companions)])
    with reporting_unusable(path):
        explanation = explain_image(Run(run), path, age=age, view=view, companions=companions)
    table = Table("fold", "probability")
    for fold, probability in explanation.probabilities.items():
        table.add_row(str(fold), f"{probability:.4f}")
    table.add_row("mean", f"{explanation.probability:.4f}", style="bold")
    console.print(table)
    if explanation.shares:
        counted = Table("image", "share of the breast's attention")
        for name, share in explanation.shares:
            counted.add_row(printable(name), f"{share:.1%}")
        console.print(counted)
    write_bytes(target, draw_explanation(explanation))
    say(f"picture: {target}")


def to_companion(text: str, *, is_of_other_breast: bool) -> "Companion":
    """Reads VIEW=IMAGE.

    Raises:
        UserError: if it is not written so.
    """
    from pipeline.reporting.breast_views import Companion

    view, equals, image = text.partition("=")
    if not equals or not view or not image:
        raise UserError(f"{text}: write another image as VIEW=IMAGE, such as MLO=left_mlo.dcm")
    return Companion(to_image_path(image), view, is_of_other_breast)


def say_other_views(views: "Iterable[str]") -> None:
    """Says which views count as neither CC nor MLO, as a misspelt one would."""
    from pipeline.data.breasts import OTHER_VIEW, VIEW_CLASSES, classify_view

    known = ", ".join(VIEW_CLASSES)
    for view in dict.fromkeys(views):
        if view and classify_view(view) == OTHER_VIEW:
            say(f"{printable(view)}: counts as neither CC nor MLO; those like CC or MLO are {known}")


def export(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write to.", show_default="RUN/onnx")
    ] = None,
) -> None:
    """Write a run's models as ONNX, one file per fold.

    A file takes `images`, float32 [batch, 1, side, side] with the pixels of a prepared image as they are
    (0 to 255, or 65535 with 16 bits), and gives `probability`, float32 [batch]. The mean of the folds is what
    `mammo predict` gives. Of a run that takes age a file takes `age` too, float32 [batch], in years, NaN
    where unknown, and counts each image as a breast. Each file is compared with torch before it is written.
    """
    from pipeline.inference.onnx_export import export_onnx
    from pipeline.runs.run_folder import Run

    folder = Run(run)
    for exported in export_onnx(folder, out or folder.onnx):
        say(f"{exported.path}: differs from torch by {exported.difference:.1g} at most")


def check(
    submission: Annotated[Path, typer.Argument(metavar="SUBMISSION", help="The CSV to check.")],
    data: DataOption,
) -> None:
    """Check a submission against test.csv.

    Right columns, every prediction_id once, values from 0 to 1 and not all the same. Says all that is wrong.
    """
    from pipeline.inference.submission_file import check_submission

    problems = check_submission(submission, to_place(data))
    for problem in problems:
        error_console.print(f"{submission}: {problem}", markup=False, highlight=False)
    if problems:
        raise typer.Exit(NOT_CLEAN)
    say(f"{submission} is valid")
