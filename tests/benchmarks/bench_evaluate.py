"""Times the evaluation of a run of RSNA's size: all figures, intervals, slices, calibration, and the report.

Makes out-of-fold predictions of 11,913 patients, 23,826 breasts (492 with cancer) and 54,706 images with a
pooled breast AUC of about 0.8, sites, machines, views, ages, densities and implants. The report's pictures of
cases are noise, seen by ViT-S/16 of 512 px with random weights.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_evaluate.py

`--page` times the report alone.
"""

import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.imageio.frame import Box
from data_prep.preprocessing.placement import Placement
from data_prep.settings import dump_settings
from data_prep.storage.atomic import make_folder, write_csv, write_json, write_text
from pipeline.evaluation.calibration import calibrate
from pipeline.evaluation.compare import compare
from pipeline.evaluation.estimates import estimate_all, transfer_thresholds
from pipeline.evaluation.evaluate_oof import evaluate_oof, require_breasts
from pipeline.evaluation.slices import describe_images
from pipeline.evaluation.threshold_stability import sweep
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import save_weights
from pipeline.reporting.cases import case_images
from pipeline.reporting.cases.case_selection import CaseSelection, select_cases
from pipeline.reporting.cases.gallery import show_cases
from pipeline.reporting.report import write_report
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

QUIET = Reporter(Console(file=io.StringIO()))
NUM_PATIENTS, NUM_CANCERS, NUM_IMAGES, NUM_FOLDS = 11_913, 492, 54_706, 5


def draw_oof(seed: int, skill: float = 1.2) -> pd.DataFrame:
    """Returns predictions of as many patients, breasts and images as RSNA's train.csv has."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    num_breasts = 2 * NUM_PATIENTS
    views = np.full(num_breasts, 2)
    views[truth.choice(num_breasts, NUM_IMAGES - 2 * num_breasts, replace=False)] = 3
    breast = np.repeat(np.arange(num_breasts), views)
    patient = breast // 2
    cancer = np.zeros(num_breasts, dtype=int)
    cancer[truth.choice(num_breasts, NUM_CANCERS, replace=False)] = 1
    score = skill * cancer + noise.normal(size=num_breasts)
    logits = score[breast] - 4.5 + noise.normal(0, 0.5, NUM_IMAGES)
    site = truth.integers(1, 3, NUM_PATIENTS)
    return pd.DataFrame(
        {
            "fold": patient % NUM_FOLDS,
            "image_id": np.arange(NUM_IMAGES).astype(str),
            "patient_id": patient.astype(str),
            "laterality": np.where(breast % 2, "R", "L"),
            "cancer": cancer[breast],
            "probability": 1 / (1 + np.exp(-logits)),
            "view": truth.choice(["MLO", "CC", "AT"], NUM_IMAGES, p=[0.51, 0.48, 0.01]),
            "site_id": site[patient].astype(str),
            "machine_id": (site * 10 + truth.integers(0, 5, NUM_PATIENTS))[patient].astype(str),
            "age": truth.normal(58, 10, NUM_PATIENTS).round()[patient],
            "density": pd.Series(truth.choice(list("ABCD"), NUM_PATIENTS)[patient]).where(site[patient] == 1),
            "implant": (truth.random(NUM_PATIENTS) < 0.03).astype(int).astype(str)[patient],
        }
    )


def report(name: str, function: Callable[[], Any]) -> Any:
    """Runs a function once and prints the seconds that it took."""
    start = time.perf_counter()
    result = function()
    print(f"{name:58s} {time.perf_counter() - start:6.2f} s")
    return result


def with_folds(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns a table as it is and each of its folds."""
    return {"pooled": table, **{str(fold): part for fold, part in table.groupby("fold")}}


def write_run(folder: Path, oof: pd.DataFrame, choice: CaseSelection) -> Run:
    """Leaves what a training does that a report reads: recipe, weights, and a cache of the chosen images."""
    recipe, run, cache = Recipe(), Run(folder / "run"), Cache(folder / "cache")
    side = recipe.prepare.side
    cache.open_for(CacheSettings(split="train", prepare=recipe.prepare))
    whole = Placement(Box(0, 0, side, side), is_flipped=False, scale_x=1.0, scale_y=1.0, top=0).as_record()
    models = {fold: VisionTransformer(recipe.model).eval() for fold in range(NUM_FOLDS)}
    for fold, model in models.items():
        make_folder(run.fold(fold).folder)
        save_weights(run.fold(fold), model, logit_shift=0.0, num_classes=1)
    write_text(run.settings, dump_settings(recipe))
    write_json(run.environment, {"cache": str(cache.folder)})
    counted = {"num_images": ("image_id", "size"), "num_cancers": ("cancer", "sum")}
    write_csv(run.folds, oof.groupby(["patient_id", "fold"], as_index=False).agg(**counted))
    records = {}
    for case in (case for group in choice.groups for case in group.cases):
        for view in case.views:
            ids = {"patient_id": case.patient_id, "image_id": view.image_id}
            noise = np.random.default_rng(int(view.image_id)).integers(0, 256, (side, side), dtype=np.uint8)
            sha256 = write_image(cache.image_path(**ids), noise)
            records[view.image_id] = ids | whole | {"image_sha256": sha256}
    cache.write_tables(records)
    write_csv(cache.exams_path, oof)
    return run


def report_page(oof: pd.DataFrame) -> None:
    """Times the report, without and with the pictures of its cases, and says how large it is."""
    evaluation = evaluate_oof(oof)
    choice = select_cases(evaluation)
    case_images.LARGEST_DIFFERENCE = 1.0  # random weights say something else than the predictions
    with TemporaryDirectory() as folder:
        run = write_run(Path(folder), oof, choice)
        num_images = len([view for group in choice.groups for case in group.cases for view in case.views])
        shown = report(
            f"pictures of {num_images} images of cases, ViT-S/16",
            lambda: show_cases(run, choice, reporter=QUIET),
        )
        assert not shown.missing, shown.missing
        assert not shown.reasons, shown.reasons
        report("report with those pictures", lambda: write_report(run, evaluation, reporter=QUIET))
        print(f"report.html: {run.report.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    oof = draw_oof(1)
    if "--page" in sys.argv:
        report_page(oof)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    breasts = report("breasts and transferred thresholds", lambda: transfer_thresholds(require_breasts(oof)))
    images = transfer_thresholds(oof)
    report("figures, pooled and 5 folds, 23,826 breasts", lambda: estimate_all(with_folds(breasts)))
    report("figures, pooled and 5 folds, 54,706 images", lambda: estimate_all(with_folds(images)))
    report("describing the slices", lambda: describe_images(oof))
    report("calibration, three methods", lambda: calibrate(breasts))
    report("threshold stability", lambda: sweep(breasts, 0.1))
    report("everything, with slices of both levels", lambda: evaluate_oof(oof))
    report_page(oof)
    report("comparing two runs", lambda: compare({"first": oof, "second": draw_oof(2)}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory: {before / 1024:.0f} MB before, {peak / 1024:.0f} MB at the peak")


if __name__ == "__main__":
    main()
