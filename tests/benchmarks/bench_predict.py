"""Times raw JPEG 2000 files to probabilities with a ViT-Ti, beside decoding alone and the model alone.

On a machine without a GPU both share the cores, so the whole can take no less than the sum of the parts, each
on all cores; with one it can come near to the longer of the two. Files are hard links to a few phantoms of
full size. Memory is that of all processes together, each page counted once (PSS). CPU seconds, of all
processes too, are less disturbed by other work on the machine than those of the clock.

    python tests/benchmarks/bench_predict.py [--images 256] [--folds 1] [--rounds 3]

With kept patches, compares instead a model that sees only these with one that sees all, from the phantoms
and, where `MAMMO_REAL_DATA` names the folder of real files, from RSNA's.

    MAMMO_REAL_DATA=... python tests/benchmarks/bench_predict.py --kept-patches 383
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.imageio import codecs
from data_prep.parallel.resource_limits import count_cores
from data_prep.phantom.dataset import make_patient
from data_prep.phantom.dicom_writer import make_dicom
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.preprocessing.stream import stream_images
from data_prep.settings import dump_settings
from data_prep.storage.atomic import Journal, write_bytes, write_text

if TYPE_CHECKING:
    from pipeline.runs.recipe import Recipe

ROWS, COLUMNS = 4096, 3328
NUM_PHANTOMS = 8
POLL_S = 1.0  # a look costs some hundredths of a second


class MemoryWatch(threading.Thread):
    """Notes the most memory that this process and its workers take together, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ends = threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self.ends.wait(POLL_S):
            self.peak_mb = max(self.peak_mb, sum(map(proportional_mb, family())))


def proportional_mb(process: int) -> float:
    """Returns the proportional set size of a process, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def family() -> Iterator[int]:
    """Yields the ids of this process and of its children."""
    yield os.getpid()
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            continue


def make_phantoms() -> list[bytes]:
    """Returns JPEG 2000 files of full size."""
    payloads = []
    for patient in range(NUM_PHANTOMS // 4):
        for image in make_patient(patient, seed=0, rows=ROWS, columns=COLUMNS, cancer_share=0.5):
            encoding = replace(image.encoding, transfer_syntax=codecs.JPEG_2000_LOSSLESS, has_jp2_box=False)
            payloads.append(
                make_dicom(
                    image.phantom.image,
                    encoding,
                    patient_id="1",
                    image_id="1",
                    laterality=image.row["laterality"],
                )
            )
    return payloads


def read_real_files() -> list[bytes]:
    """Returns RSNA's own files; none where the folder is not named."""
    folder = os.environ.get("MAMMO_REAL_DATA")
    return [path.read_bytes() for path in sorted(Path(folder, "rsna_dicom").rglob("*.dcm"))] if folder else []


def write_data(folder: Path, payloads: list[bytes], num_images: int) -> None:
    """Writes a test set of links to these files, four images a patient."""
    folder.mkdir()
    originals = []
    for number, payload in enumerate(payloads):
        originals.append(folder / f"{number}.dcm")
        write_bytes(originals[-1], payload)
    lines = ["patient_id,image_id,laterality"]
    for number in range(num_images):
        patient, side = 1 + number // 4, "LR"[number // 2 % 2]
        path = folder / f"test_images/{patient}/{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(originals[number % len(originals)])
        lines.append(f"{patient},{number},{side}")
    write_text(folder / "test.csv", "\n".join(lines) + "\n")


def write_run(folder: Path, num_folds: int, recipe: "Recipe") -> None:
    """Writes a run of untrained models."""
    from pipeline.models.vit import VisionTransformer
    from pipeline.models.weights_file import save_weights
    from pipeline.runs.run_folder import Run
    from pipeline.training.run_setup import resolve

    run, recipe = Run(folder), resolve(recipe)
    folder.mkdir()
    write_text(run.settings, dump_settings(recipe))
    lines = ["patient_id,fold,num_images,num_cancers"]
    for fold in range(num_folds):
        run.fold(fold).folder.mkdir()
        save_weights(run.fold(fold), VisionTransformer(recipe.model), logit_shift=0.0, num_classes=1)
        oof = f"fold,image_id,patient_id,laterality,cancer,probability\n{fold},{fold},{fold},L,0,0.1\n"
        write_text(run.fold(fold).oof, oof)
        lines.append(f"{fold},{fold},1,0")
    write_text(run.folds, "\n".join(lines) + "\n")


def measure(function: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds of the clock, and CPU seconds of this process and of its children that have ended."""
    start, used = time.perf_counter(), os.times()
    function()
    clock, now = time.perf_counter() - start, os.times()
    return clock, sum(now[:4]) - sum(used[:4])


def make_recipe(kept_patches: int = 0) -> "Recipe":
    """Returns the recipe of a ViT-Ti."""
    from pipeline.models.vit import VARIANTS
    from pipeline.runs.recipe import ModelSettings, Recipe

    return Recipe(model=ModelSettings(**VARIANTS["Ti/16"], kept_patches=kept_patches))


def main() -> None:
    parser = argparse.ArgumentParser(description="Times mammo predict from raw files.")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=count_cores())
    parser.add_argument("--kept-patches", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch) / "data", Path(scratch) / "run"
        write_data(data, make_phantoms(), arguments.images)
        write_run(run, arguments.folds, make_recipe())
        if arguments.kept_patches is None:
            compare(data, run, arguments)
            return
        kept = Path(scratch) / "kept"
        write_run(kept, arguments.folds, make_recipe(arguments.kept_patches))
        compare_kept(data, [run, kept], "phantoms", arguments)
        if payloads := read_real_files():
            real = Path(scratch) / "real"
            write_data(real, payloads, arguments.images)
            compare_kept(real, [run, kept], "RSNA's files", arguments)


def compare_kept(data: Path, runs: list[Path], what: str, arguments: argparse.Namespace) -> None:
    """Measures decoding alone, all patches and kept ones in turn, and prints a line for each round."""
    ratios, paths = [], sorted((data / "test_images").rglob("*.dcm"))
    for _ in range(arguments.rounds):
        times = [measure(partial(decode, paths, arguments.workers))]
        times += [measure(partial(predict, data, run, arguments.workers)) for run in runs]
        ratios.append([times[1][kind] / times[2][kind] for kind in (0, 1)])
        shown = [f"{arguments.images / clock:.2f} images/s ({cpu:.1f} CPU s)" for clock, cpu in times]
        print(
            f"{what}: decoding {shown[0]}, all patches {shown[1]}, {arguments.kept_patches} kept {shown[2]}: "
            f"{ratios[-1][0]:.2f} ({ratios[-1][1]:.2f} CPU) times",
            flush=True,
        )
    clock, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{what}: median {clock:.2f} ({cpu:.2f} CPU) times the images/s")


def decode(paths: list[Path], workers: int) -> None:
    """Prepares the images, and leaves it at that."""
    for _ in stream_images(paths, PrepareSettings(), workers=workers):
        pass


def predict(data: Path, run_folder: Path, workers: int) -> None:
    """Does what `mammo predict` does, up to the submission."""
    from pipeline.inference.predict_test_set import predict_folder
    from pipeline.runs.run_folder import Run
    from pipeline.runtime.progress import Reporter

    journal, reporter = Journal(run_folder / "partial"), quiet_reporter(Reporter)
    predict_folder(Run(run_folder), data, workers=workers, reporter=reporter, journal=journal)
    journal.remove()


def compare(data: Path, run_folder: Path, arguments: argparse.Namespace) -> None:
    """Measures the parts and the whole in turn and prints a line for each round."""
    import torch

    from pipeline.inference.predict_test_set import BATCH_SIZE, load_ensemble
    from pipeline.models.normalization import to_tensor
    from pipeline.runs.run_folder import Run

    run, workers = Run(run_folder), arguments.workers
    paths = sorted((data / "test_images").rglob("*.dcm"))
    images = [image for _, image in stream_images(paths[:BATCH_SIZE], PrepareSettings(), workers=workers)]
    ensemble, images_BCHW = load_ensemble(run), torch.stack([to_tensor(image) for image in images])

    def model() -> None:
        for _ in range(0, arguments.images, BATCH_SIZE):
            ensemble.predict(images_BCHW)

    model()
    parts_of = max if torch.cuda.is_available() else sum
    ratios = []
    for _ in range(arguments.rounds):
        decoding, computing = measure(lambda: decode(paths, workers)), measure(model)
        watch = MemoryWatch()
        watch.start()
        both = measure(lambda: predict(data, run_folder, workers))
        watch.ends.set()
        watch.join()
        ratios.append([both[kind] / parts_of((decoding[kind], computing[kind])) for kind in (0, 1)])
        shown = [f"{clock:.1f} s ({cpu:.1f} CPU)" for clock, cpu in (decoding, computing, both)]
        print(
            f"{arguments.images} images, {arguments.folds} folds: decoding {shown[0]}, model {shown[1]}, "
            f"whole {shown[2]}: {ratios[-1][0]:.3f} ({ratios[-1][1]:.3f} CPU) times the {parts_of.__name__}; "
            f"peak {watch.peak_mb:.0f} MB",
            flush=True,
        )
    clock, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median {clock:.3f} ({cpu:.3f} CPU)")


def quiet_reporter(reporter_class: type) -> object:
    """Returns a reporter that nobody hears."""
    import io

    from rich.console import Console

    return reporter_class(Console(file=io.StringIO()))


if __name__ == "__main__":
    main()
