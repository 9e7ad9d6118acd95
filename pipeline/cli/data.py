"""The commands that make and look at data: phantoms, RSNA layout, caches, single files.

Imports stand in the commands, so that `mammo --help` does not wait for torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import count
from data_prep.parallel.resource_limits import count_cores
from data_prep.rsna.exam_table import Split
from data_prep.storage.places import to_image_path, to_place
from pipeline.cli.console import (
    NOT_CLEAN,
    AllowFailures,
    CacheArgument,
    DataArgument,
    PrepareOverrides,
    Seed,
    Workers,
    choose_picture,
    console,
    describe_file,
    error_console,
    finish_with_failures,
    reporting_unusable,
    say,
    show_facts,
)
from pipeline.cli.log_file import keep_log
from pipeline.cli.ray_options import (
    Address,
    EngineName,
    as_seen_elsewhere,
    choose_executor,
    choose_workers,
    open_cluster,
)
from pipeline.runtime.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

    from data_prep.cache.build import Summary
    from data_prep.cache.folder import Cache

MAX_PROBLEMS_SHOWN = 20
MOST_PIXELS_ALONE = 4 * 640 * 512
"""Of an image, times the patients: as few are drawn by one process before others have started."""


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    patients: Annotated[
        int, typer.Option(min=1, metavar="N", help="Patients in train.csv, four images each.")
    ] = 100,
    seed: Seed = 0,
    rows: Annotated[int, typer.Option(min=64, max=8192, metavar="N", help="Rows of a frame.")] = 640,
    columns: Annotated[int, typer.Option(min=64, max=8192, metavar="N", help="Columns of a frame.")] = 512,
) -> None:
    """Write synthetic mammograms in RSNA layout.

    Real DICOM files in several encodings, with train.csv, test.csv and sample_submission.csv.
    """
    from data_prep.phantom.dataset import write_phantoms

    with Reporter(console).track("phantoms", patients, "patients") as advance:
        write_phantoms(
            out,
            num_patients=patients,
            seed=seed,
            rows=rows,
            columns=columns,
            workers=count_cores() if patients * rows * columns > MOST_PIXELS_ALONE else 0,
            progress=advance,
        )
    say(f"{count(patients, 'patient')} for training, and some more for the test: {out}")


def collect(
    files: Annotated[Path, typer.Argument(metavar="FILES", help="Folder that holds your image files.")],
    labels: Annotated[
        Path, typer.Option(metavar="CSV", help="One row per image: file, patient_id, laterality, cancer, ...")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to make, in RSNA layout.")],
    split: Annotated[
        Split, typer.Option(metavar="train|test", help="test is for images without labels.")
    ] = "train",
) -> None:
    """Make a folder in RSNA layout from your own files.

    Reads a table of labels and links the files that it names; copies no pixels.
    """
    from data_prep.rsna.collect import collect as collect_files
    from data_prep.rsna.collect import has_labels

    say(f"{count(collect_files(files, labels, out, split), 'image')}: {out}")
    if split == "test" and has_labels(labels):
        say(
            f"the column cancer of {labels} was left out, since a test split has no labels: --split train "
            "keeps them, also for `mammo evaluate RUN --data`"
        )


def prepare(
    data: DataArgument,
    cache: Annotated[
        Path, typer.Option(metavar="CACHE", help="Folder for the images: a new one, or one to complete.")
    ],
    split: Annotated[Split, typer.Option(metavar="train|test", help="Which CSV to read.")] = "train",
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Recipe; only its [prepare] settings are used.")
    ] = None,
    overrides: PrepareOverrides = None,
    workers: Workers = None,
    patients: Annotated[
        int | None, typer.Option(metavar="N", help="Only so many patients, stratified by label.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Draws the patients of --patients.")] = 0,
    engine: EngineName = "local",
    address: Address = None,
    *,
    present_only: Annotated[
        bool, typer.Option("--present-only", help="Leave out rows whose file is absent.")
    ] = False,
    allow_failures: AllowFailures = False,
) -> None:
    """Turn mammograms into a cache of square images.

    Goes on where it was stopped. Files that cannot be used get a row in CACHE/failures.csv, and the exit
    code is then 1.

    With --engine ray, the machines of a Ray cluster prepare to the same bytes. DATA and CACHE must lie, under
    the same names, on storage that all of them share; --workers then is the number of tasks at a time.
    """
    from data_prep.cache.build import prepare_dataset
    from data_prep.cache.folder import Cache, CacheSettings
    from pipeline.runs.recipe import load_prepare_settings

    folder, store, reporter = to_place(data), Cache(cache), keep_log(cache)
    if engine == "ray":
        folder, store = as_seen_elsewhere(folder), Cache(cache.absolute())
    settings = CacheSettings(split=split, prepare=load_prepare_settings(config, overrides or ()))
    with open_cluster(engine, address) as cluster:
        summary = prepare_dataset(
            folder,
            store,
            settings,
            workers=choose_workers(workers, cluster),
            executor=choose_executor(cluster, shared=[store.settings_path, folder / f"{split}.csv"]),
            num_patients=patients,
            seed=seed,
            present_only=present_only,
            track=reporter.track,
        )
    _show_summary(store, summary, split)
    finish_with_failures(summary.failures, store.failures_path, allowed=allow_failures)


def _show_summary(cache: "Cache", summary: "Summary", split: Split) -> None:
    if summary.num_absent:
        say(f"left out, since the file is missing: {count(summary.num_absent, 'row')} of {split}.csv")
    before = summary.num_images - summary.num_prepared - summary.num_failed
    say(
        f"{cache.folder}: {count(summary.num_prepared, 'image')} prepared, {before:,} already there, "
        f"{summary.num_failed:,} failed"
    )
    if summary.remote_bytes:
        say(_describe_traffic(summary.received_bytes, summary.remote_bytes))
    for warning in summary.shared_pictures:
        say(f"warning: {warning}")
    say(f"what deserves a look: {cache.qc_path}")


def _describe_traffic(received: int, total: int) -> str:
    saved = total - received
    read = f"read from storage: {received / 1e6:,.1f} MB of the files' {total / 1e6:,.1f} MB"
    return f"{read}, {saved / 1e6:,.1f} MB ({saved / total:.0%}) saved"


def inspect(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A mammogram: DICOM, PNG, JPEG or PGM; or its URL.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Picture to write.", show_default="<name of FILE>_inspect.png"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Recipe; only its [prepare] settings are used.")
    ] = None,
    overrides: PrepareOverrides = None,
) -> None:
    """Show how one mammogram is read.

    Prints how it is encoded, shown and cut, and what deserves a look, and writes a picture of the stages. A
    file that cannot be used ends with the reason and exit code 1.
    """
    from data_prep.preprocessing.inspection import describe_stages, draw_stages
    from data_prep.preprocessing.preprocess import preprocess
    from data_prep.storage.atomic import write_bytes
    from pipeline.runs.recipe import load_prepare_settings

    image = to_image_path(file)
    target = choose_picture(image, out, "inspect")
    with reporting_unusable(image):
        stages = preprocess(image, load_prepare_settings(config, overrides or ()))
    show_facts([("file", describe_file(image)), *describe_stages(stages)])
    write_bytes(target, draw_stages(stages))
    say(f"picture: {target}")


def verify(
    cache: CacheArgument,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The folder or URL that it was made of, to compare the files too."),
    ] = None,
    workers: Workers = None,
) -> None:
    """Check that a cache is whole and still what was prepared.

    Reads every image and compares it with the manifest's checksum; with --data the source files as well.
    Names the images that could not be prepared, and why. Changes nothing; the exit code is 1 if anything is
    wrong with the cache.
    """
    from data_prep.cache.folder import Cache
    from data_prep.cache.verify import verify as verify_cache
    from data_prep.storage.locks import require_unlocked

    store = Cache(cache)
    require_unlocked(cache)
    with Reporter(console).track("verify", _count_prepared(store.read_manifest())) as advance:
        found = verify_cache(
            store,
            None if data is None else to_place(data),
            workers=count_cores() if workers is None else workers,
            on_image=advance,
        )
    _show_failures(store)
    for warning in found.shared_pictures:
        say(f"warning: {warning}")
    for problem in _shorten(found.problems, "problems"):
        error_console.print(problem, markup=False, highlight=False)
    if found.problems:
        raise typer.Exit(NOT_CLEAN)
    say(f"{cache}: {found.summary}")


def _show_failures(cache: "Cache") -> None:
    from data_prep.cache.failures import describe_failures, list_failures

    if sentence := describe_failures(cache):
        say(f"warning: {sentence}:")
        for failure in _shorten(list_failures(cache), f"in {cache.failures_path}"):
            say(f"  {failure}")


def _shorten(lines: list[str], rest: str) -> list[str]:
    """Returns the first lines, and how many more of the `rest` there are."""
    shown = lines[:MAX_PROBLEMS_SHOWN]
    return shown if shown == lines else [*shown, f"and {len(lines) - len(shown)} more {rest}"]


def pack(cache: CacheArgument, workers: Workers = None) -> None:
    """Pack a cache into one file that is read far faster.

    Training and `predict --cache` use it by themselves. After `prepare` has changed the cache, they read the
    single images again until it is packed anew.
    """
    from data_prep.cache.folder import Cache
    from data_prep.cache.pack import write_pack
    from data_prep.storage.locks import require_unlocked

    store = Cache(cache)
    require_unlocked(cache)
    with Reporter(console).track("pack", _count_prepared(store.read_manifest())) as advance:
        path = write_pack(store, workers=count_cores() if workers is None else workers, on_image=advance)
    say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


def _count_prepared(manifest: "pd.DataFrame") -> int:
    from data_prep.cache.tables import select_prepared

    return len(select_prepared(manifest))
