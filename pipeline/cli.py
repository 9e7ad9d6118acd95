"""The command `mammo`: reads arguments, shows progress, turns errors into one line and an exit code.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

import shlex
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.engine import count_workers
from data_prep.errors import UserError
from data_prep.exams import Split
from pipeline.interrupt import Interrupted
from pipeline.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.class_metrics import ClassEvaluation
    from pipeline.evaluate import Evaluation
    from pipeline.run import ClassRun, Run
    from pipeline.settings import Recipe

MAX_PROBLEMS_SHOWN = 20
NOT_CLEAN = 1  # exit code: finished, but something needs a look
RESUMABLE = {"demo", "prepare", "train"}  # the commands that go on where they were stopped

console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Screening mammograms in; a cross-validated Vision Transformer and a submission out.",
)

DataFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder in RSNA layout: train.csv, train_images/<patient_id>/<image_id>.dcm, and so on.",
    ),
]
DataOption = Annotated[Path, typer.Option("--data", help="Folder in RSNA layout with test.csv.")]
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="Cache that `mammo prepare` made.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `mammo train` made.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting, e.g. train.epochs=3; may be repeated."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes; 0 works in this one.", show_default="one per core"),
]
AllowFailures = Annotated[bool, typer.Option("--allow-failures", help="Exit 0 although some images failed.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws everything that is random.")]


@app.callback()
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Screening mammograms in; a cross-validated Vision Transformer and a submission out."""
    del debug  # read by main, before anything can fail


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, cache and run.")] = Path("reports/demo"),
    seed: Seed = 0,
) -> None:
    """Show the whole pipeline on synthetic mammograms.

    Writes phantoms as DICOM, prepares them, trains two folds, and leaves report.html and submission.csv.
    No download, no GPU, a few minutes on two cores.
    """
    from pipeline.demo import NUM_PATIENTS, make_recipe, run_demo

    result = run_demo(
        out, seed=seed, num_patients=NUM_PATIENTS, recipe=make_recipe(seed), reporter=Reporter(console)
    )
    _show_evaluation(result.run, result.evaluation)
    _say(f"submission: {result.run.submission}")


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    patients: Annotated[int, typer.Option(min=1, help="Patients in train.csv, four images each.")] = 100,
    seed: Seed = 0,
    rows: Annotated[int, typer.Option(min=64, max=8192, help="Rows of a frame.")] = 640,
    columns: Annotated[int, typer.Option(min=64, max=8192, help="Columns of a frame.")] = 512,
) -> None:
    """Write synthetic mammograms in RSNA layout.

    Real DICOM files in several encodings, with train.csv, test.csv and sample_submission.csv.
    """
    from data_prep.phantom_data import write_phantoms

    with Reporter(console).track("phantoms", patients, "patients") as advance:
        write_phantoms(
            out,
            num_patients=patients,
            seed=seed,
            rows=rows,
            columns=columns,
            workers=count_workers(),
            progress=advance,
        )
    _say(f"{patients} {'patient' if patients == 1 else 'patients'} for training and some for the test: {out}")


@app.command()
def collect(
    files: Annotated[Path, typer.Argument(metavar="FILES", help="Folder that holds your image files.")],
    labels: Annotated[
        Path, typer.Option(help="CSV, one row per image: file, patient_id, laterality, cancer, ...")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make, in RSNA layout.")],
    split: Annotated[Split, typer.Option(help="train, or test for images without labels.")] = "train",
) -> None:
    """Make a folder in RSNA layout from your own files.

    Reads a table of labels and links the files that it names; copies no pixels.
    """
    from data_prep.collect import collect as collect_files

    _say(f"{collect_files(files, labels, out, split)} images: {out}")


@app.command()
def prepare(
    data: DataFolder,
    cache: Annotated[Path, typer.Option(help="Folder for the images; made, or gone on with.")],
    split: Annotated[Split, typer.Option(help="Which CSV to read.")] = "train",
    config: Annotated[Path | None, typer.Option(help="Recipe; only its table prepare is used.")] = None,
    overrides: Overrides = None,
    workers: Workers = None,
    patients: Annotated[int | None, typer.Option(help="Only so many patients, stratified by label.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the patients of --patients.")] = 0,
    *,
    present_only: Annotated[
        bool, typer.Option("--present-only", help="Leave out rows whose file is absent.")
    ] = False,
    allow_failures: AllowFailures = False,
) -> None:
    """Turn mammograms into a cache of square images.

    Goes on where it was stopped. Files that cannot be used get a row in CACHE/failures.csv, and the exit
    code is then 1.
    """
    from data_prep.cache import Cache, CacheSettings
    from data_prep.exams import read_exams, require_images, select_patients
    from data_prep.prepare import prepare as prepare_exams
    from data_prep.quality import write_contact_sheet
    from pipeline.settings import load_recipe

    settings = CacheSettings(split=split, prepare=load_recipe(config, overrides or ()).prepare)
    exams = read_exams(data, split)
    if patients is not None:
        exams = select_patients(exams, patients, seed)
    located = require_images(exams, data, split, present_only=present_only)
    if located.num_absent:
        _say(f"{located.num_absent} rows of {split}.csv left out: their files are absent")
    store = Cache(cache)
    failed = 0
    with Reporter(console).track("prepare", len(located.exams)) as advance:

        def on_image(is_failure: bool) -> None:  # noqa: FBT001
            nonlocal failed
            failed += is_failure
            advance(note=f"{failed} failed" if failed else "")

        summary = prepare_exams(
            located.exams,
            located.paths,
            store,
            settings,
            workers=count_workers() if workers is None else workers,
            on_image=on_image,
        )
    before = summary.num_images - summary.num_prepared - summary.num_failed
    _say(
        f"{cache}: {summary.num_prepared} images prepared, {before} there before, {summary.num_failed} failed"
    )
    _say(f"what deserves a look: {write_contact_sheet(store)}")
    if summary.num_failed:
        _finish_with_failures(summary.failures, store.failures_path, allowed=allow_failures)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mammogram: DICOM, PNG, JPEG or PGM.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture to write.", show_default="<name of FILE>_inspect.png")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe; only its table prepare is used.")] = None,
    overrides: Overrides = None,
) -> None:
    """Show what is understood of one mammogram.

    Prints how it is encoded, shown and cut, and what deserves a look, and writes a picture of the stages. A
    file that cannot be used ends with the reason and exit code 1.
    """
    from data_prep.errors import ImageError
    from data_prep.files import require_writable, write_bytes
    from data_prep.inspection import describe_stages, draw_stages, inspect_file, require_png
    from pipeline.settings import load_recipe

    target = out or Path(f"{file.stem}_inspect.png")
    if not file.is_file():
        raise UserError(f"{file} is no file: name one mammogram")
    if target.exists() and target.samefile(file):
        raise UserError(f"{target} is the mammogram itself: choose another --out")
    require_png(target)
    require_writable(target)
    try:
        stages = inspect_file(file, load_recipe(config, overrides or ()).prepare)
    except ImageError as error:
        error_console.print(f"{file}: {error.reason}: {error}", markup=False, highlight=False)
        raise typer.Exit(NOT_CLEAN) from error
    table = Table(show_header=False, box=None)
    for name, value in describe_stages(stages):
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)
    write_bytes(target, draw_stages(stages))
    _say(f"picture: {target}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Recipe, such as configs/smoke.toml.")],
    cache: Annotated[
        Path | None, typer.Option(help="Cache of the train split that `mammo prepare` made.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Instead of --cache: images in a folder per class, or Oxford-IIIT Pet."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="reports/<name of CONFIG>")
    ] = None,
    fold: Annotated[list[int] | None, typer.Option(help="Only this fold; may be repeated.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train a Vision Transformer, then evaluate it.

    With --cache, cross-validates on mammograms. With --data, learns the classes of a folder of images and
    reports on its test split. Goes on where it was stopped, to the same weights.
    """
    from pipeline.settings import load_recipe

    if (data is None) == (cache is None):
        raise UserError("give either --cache CACHE or --data FOLDER, so that it is clear what to train on")
    if data is not None and fold:
        raise UserError("--fold goes with --cache: a folder of classes has one test split and no folds")
    recipe = load_recipe(config, overrides or ())
    folder = run or Path("reports") / config.stem
    if data is not None:
        _train_classes(recipe, data, folder)
    else:
        assert cache is not None
        _train_folds(recipe, cache, folder, fold)


def _train_classes(recipe: "Recipe", data: Path, folder: Path) -> None:
    from pipeline.classify import train_classes
    from pipeline.run import ClassRun

    train_classes(recipe, data, ClassRun(folder), reporter=Reporter(console))
    evaluate(folder)


def _train_folds(recipe: "Recipe", cache: Path, folder: Path, folds: list[int] | None) -> None:
    from data_prep.cache import Cache
    from pipeline.cross_validate import cross_validate
    from pipeline.run import Run

    run = Run(folder)
    cross_validate(recipe, Cache(cache), run, reporter=Reporter(console), folds=folds)
    missing = run.unfinished_folds()
    if missing:
        _say(f"{folder}: folds {', '.join(map(str, missing))} still to be trained")
        return
    evaluate(folder)


@app.command()
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
        _show_evaluation(folds, evaluation)


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[
        Path | None, typer.Option(help="Folder in RSNA layout with test.csv and the images.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Cache of the test split, instead of --data.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write.", show_default="RUN/submission.csv")] = None,
    workers: Workers = None,
    *,
    allow_failures: AllowFailures = False,
) -> None:
    """Predict the test images and write a submission.

    Takes the mean of all folds' models, and of a breast's images; one row per prediction_id. A breast whose
    images all fail gets the share of cancers in training, and the exit code is then 1.
    """
    from data_prep.cache import Cache
    from data_prep.files import require_writable, write_csv
    from pipeline.predict import predict_cache, predict_folder
    from pipeline.run import Run
    from pipeline.submission import write_submission

    if (data is None) == (cache is None):
        raise UserError(
            "give either --data DATA or --cache CACHE, so that it is clear which images to predict"
        )
    folder, reporter = Run(run), Reporter(console)
    folder.require_finished()
    target = out or folder.submission
    require_writable(target)
    if data is not None:
        predictions = predict_folder(
            folder, data, workers=count_workers() if workers is None else workers, reporter=reporter
        )
    else:
        assert cache is not None
        predictions = predict_cache(folder, Cache(cache), reporter=reporter)
    breasts = predictions.breasts()
    write_submission(breasts, target, required_ids=predictions.required_ids)
    _say(f"{target}: {len(breasts)} rows")
    failures_path = target.with_name(f"{target.stem}_failures.csv")
    failures_path.unlink(missing_ok=True)
    if len(predictions.failures):
        write_csv(failures_path, predictions.failures)
        _finish_with_failures(Counter(predictions.failures["reason"]), failures_path, allowed=allow_failures)


@app.command()
def explain(
    run: RunFolder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A mammogram: DICOM, PNG, JPEG or PGM.")],
    out: Annotated[
        Path | None, typer.Option(help="Picture to write.", show_default="<name of IMAGE>_explain.png")
    ] = None,
) -> None:
    """Show where a run's models look in one mammogram.

    Prints each fold's probability and writes a picture of the mammogram with what the models attend to laid
    over it. A file that cannot be used ends with the reason and exit code 1.
    """
    from data_prep.errors import ImageError
    from data_prep.files import require_writable, write_bytes
    from data_prep.inspection import require_png
    from pipeline.explain import draw_explanation
    from pipeline.explain import explain as explain_image
    from pipeline.run import Run

    target = out or Path(f"{image.stem}_explain.png")
    if not image.is_file():
        raise UserError(f"{image} is no file: name one mammogram")
    if target.exists() and target.samefile(image):
        raise UserError(f"{target} is the mammogram itself: choose another --out")
    require_png(target)
    require_writable(target)
    try:
        explanation = explain_image(Run(run), image)
    except ImageError as error:
        error_console.print(f"{image}: {error.reason}: {error}", markup=False, highlight=False)
        raise typer.Exit(NOT_CLEAN) from error
    table = Table("fold", "probability")
    for fold, probability in explanation.probabilities.items():
        table.add_row(str(fold), f"{probability:.4f}")
    table.add_row("mean", f"{explanation.probability:.4f}", style="bold")
    console.print(table)
    write_bytes(target, draw_explanation(explanation))
    _say(f"picture: {target}")


@app.command()
def check(
    submission: Annotated[Path, typer.Argument(metavar="SUBMISSION", help="The CSV to check.")],
    data: DataOption,
) -> None:
    """Check a submission against test.csv.

    Right columns, every prediction_id once, values from 0 to 1.
    """
    from pipeline.submission import check_submission

    problems = check_submission(submission, data)
    for problem in problems:
        error_console.print(f"{submission}: {problem}", markup=False, highlight=False)
    if problems:
        raise typer.Exit(NOT_CLEAN)
    _say(f"{submission} is valid")


@app.command()
def verify(
    cache: CacheFolder,
    data: Annotated[
        Path | None, typer.Option(help="The folder that it was made of, to compare the files too.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Check that a cache is whole and still what was prepared.

    Reads every image and compares it with the manifest's checksum; with --data the source files as well.
    Changes nothing; the exit code is 1 if anything is wrong.
    """
    from data_prep.cache import Cache
    from data_prep.files import require_unlocked
    from data_prep.verify import verify as verify_cache

    store = Cache(cache)
    require_unlocked(cache)
    with Reporter(console).track("verify", _count_prepared(store.read_manifest())) as advance:
        found = verify_cache(
            store, data, workers=count_workers() if workers is None else workers, on_image=advance
        )
    shown = found.problems[:MAX_PROBLEMS_SHOWN]
    if len(found.problems) > len(shown):
        shown.append(f"and {len(found.problems) - len(shown)} problems more")
    for problem in shown:
        error_console.print(problem, markup=False, highlight=False)
    if shown:
        raise typer.Exit(NOT_CLEAN)
    _say(f"{cache}: {found.summary}")


@app.command()
def pack(cache: CacheFolder, workers: Workers = None) -> None:
    """Pack a cache into one file that is read far faster.

    Training and `predict --cache` use it by themselves. After `prepare` has changed the cache, they read the
    single images again until it is packed anew.
    """
    from data_prep.cache import Cache
    from data_prep.files import require_unlocked
    from data_prep.pack import write_pack

    store = Cache(cache)
    require_unlocked(cache)
    with Reporter(console).track("pack", _count_prepared(store.read_manifest())) as advance:
        path = write_pack(store, workers=count_workers() if workers is None else workers, on_image=advance)
    _say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


def _count_prepared(manifest: "pd.DataFrame") -> int:
    from data_prep.pack import select_prepared

    return len(select_prepared(manifest))


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _finish_with_failures(failures: dict[str, int], path: Path, *, allowed: bool) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.items())
    error_console.print(f"failed: {reasons}; see {path}", markup=False, highlight=False)
    if not allowed:
        raise typer.Exit(NOT_CLEAN)


def _show_evaluation(run: "Run", evaluation: "Evaluation") -> None:
    table = Table("fold", "images", "breasts", "cancers", "pF1", "best F1", "AUC", "AP")
    for name, figures in [*evaluation.folds.items(), ("pooled", evaluation.pooled)]:
        shown = [figures.pf1, figures.pf1_best, figures.auc, figures.average_precision]
        counts = [figures.num_images, figures.num_breasts, figures.num_cancers]
        table.add_row(str(name), *map(str, counts), *map(_show_figure, shown))
    console.print(table)
    for name, reason in evaluation.pooled.undefined.items():
        _say(f"{name} is undefined: {reason}")
    _say(f"report: {run.report}")


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
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)
    _say(f"confusion matrix and report: {run.report}")


def _show_figure(figure: float | None) -> str:
    return "undefined" if figure is None else f"{figure:.3f}"


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise Interrupted(number)


def main() -> None:
    """Runs `mammo` and ends the process with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except UserError as error:
        _leave(error, f"mammo: {error}", error.exit_code)
    except OSError as error:  # of a path that nobody could foresee: no permission, a name too long
        what = f"cannot use {error.filename}: " if error.filename else ""
        _leave(error, f"mammo: {what}{error.strerror or error}", UserError.exit_code)
    except Interrupted as error:
        command = shlex.join(["mammo", *sys.argv[1:]])
        is_resumable = next((word for word in sys.argv[1:] if not word.startswith("-")), "") in RESUMABLE
        way_on = "what was done is kept, go on with" if is_resumable else "start again with"
        _leave(error, f"mammo: stopped by {error}; {way_on}: {command}", error.exit_code)


def _leave(error: Exception, sentence: str, exit_code: int) -> NoReturn:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    error_console.print(sentence, markup=False, highlight=False)
    sys.exit(exit_code)
