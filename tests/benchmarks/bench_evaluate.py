"""Times the evaluation of a run of RSNA's size on one core: all figures, intervals, slices, calibration.

Makes out-of-fold predictions of 11,913 patients, 23,826 breasts (492 with cancer) and 54,706 images with a
pooled breast AUC of about 0.8, sites, machines, views, ages, densities and implants.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_evaluate.py
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.calibration import calibrate
from pipeline.compare import compare
from pipeline.evaluation import evaluate_oof, require_breasts
from pipeline.slices import describe_images
from pipeline.stability import vary
from pipeline.subsets import assess, transfer_thresholds

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


def main() -> None:
    oof = draw_oof(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    breasts = report("breasts and transferred thresholds", lambda: transfer_thresholds(require_breasts(oof)))
    images = transfer_thresholds(oof)
    report("figures, pooled and 5 folds, 23,826 breasts", lambda: assess(with_folds(breasts)))
    report("figures, pooled and 5 folds, 54,706 images", lambda: assess(with_folds(images)))
    report("describing the slices", lambda: describe_images(oof))
    report("calibration, three methods", lambda: calibrate(breasts))
    report("threshold stability", lambda: vary(breasts, 0.1))
    report("everything, with slices of both levels", lambda: evaluate_oof(oof))
    report("comparing two runs", lambda: compare({"first": oof, "second": draw_oof(2)}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory: {before / 1024:.0f} MB before, {peak / 1024:.0f} MB at the peak")


if __name__ == "__main__":
    main()
