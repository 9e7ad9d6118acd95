"""What recalling by the other folds' thresholds does: the two-by-two tables and what follows from them.

An exam is recalled if one of its breasts is, and has cancer if one of them has. The words are those of the
ACR's audit (BI-RADS, "Auditing screening mammography"), which counts exams: a woman with three screening
rounds counts three times. Where no ids tell exams apart, each woman counts as one. Intervals are drawn by
woman either way. Re-weighted figures are what the same sensitivity and specificity give where as many exams
have cancer as in screening, so they are not of breasts.

Shape suffixes: M patients, R weightings; a table's four cells come first, in the order of `CELLS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data_prep.rsna.exam_table import EXAM_ID, number_exams
from pipeline.evaluation.bootstrap import (
    MOST_UNDEFINED,
    NUM_REPLICATES,
    SEED,
    Interval,
    draw_weights,
    find_interval,
)
from pipeline.evaluation.patient_stats import Floats, Integers
from pipeline.evaluation.uncertainty.intervals import NO_WIDTH, find_exact_interval

SCREENING_PREVALENCE = 0.005
"""Of exams, one per woman and round, in which screening finds cancer: 5 of 1,000."""
CELLS = ["true_positives", "false_positives", "false_negatives", "true_negatives"]
SHARES = {
    "sensitivity": [0, 2],
    "specificity": [1, 3],
    "ppv": [0, 1],
    "npv": [2, 3],
    "recall_rate": [0, 1, 2, 3],
}
"""The cells that these are shares of."""
SCREENING = "screening_"
"""How the names of re-weighted figures begin."""
NO_THRESHOLD = "the other folds of a fold have no threshold to give"


@dataclass(frozen=True)
class TwoByTwo:
    """The table of one unit and what follows from it.

    Attributes:
        unit: `breast`, `exam`, or `woman` where no ids tell exams apart.
        cells: by name of `CELLS`.
        figures: by name; None where a denominator is 0. Of breasts without the re-weighted ones, since nobody
            counts how many breasts in 1,000 have cancer.
        intervals: of 95 %, drawn by patient. A share of 0 or 1 has the exact one of so many patients, another
            figure has none where its replicates do not differ or too many are undefined or infinite.
        no_interval: why a defined figure has none.
    """

    unit: str
    cells: dict[str, int]
    figures: dict[str, float | None]
    intervals: dict[str, Interval]
    no_interval: dict[str, str]


@dataclass(frozen=True)
class OperatingPoint:
    """What the other folds' thresholds recall.

    Attributes:
        tables: of breasts, and of exams or women; empty where a fold has no threshold.
        undefined: why not.
    """

    tables: list[TwoByTwo]
    undefined: str = ""


def describe_operating_point(
    breasts: pd.DataFrame, *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> OperatingPoint:
    """Counts who is recalled and has cancer.

    Args:
        breasts: a table of predictions with `threshold`, and `exam_id` where exams are told apart.
        seed: of the bootstrap.
        num_replicates: draws.
    """
    if breasts["threshold"].isna().any():
        return OperatingPoint([], NO_THRESHOLD)
    patients_N = pd.factorize(breasts["patient_id"], sort=True)[0]
    table = pd.DataFrame(
        {
            "recalled": breasts["probability"].to_numpy() >= breasts["threshold"].to_numpy(),
            "cancer": breasts["cancer"].to_numpy() == 1,
        }
    )
    exams = table.assign(patient=patients_N).groupby(number_exams(breasts)).max()
    counts = {
        "breast": _count_cells(table, patients_N),
        "exam" if EXAM_ID in breasts else "woman": _count_cells(exams, exams["patient"].to_numpy()),
    }
    num_patients = len(np.unique(patients_N))
    draws = list(draw_weights(num_patients, seed=seed, num_replicates=num_replicates)) if num_patients else []
    return OperatingPoint([_tabulate(unit, cells_4M, draws) for unit, cells_4M in counts.items()])


def find_rates(cells: Mapping[str, Floats], *, prevalence: float = SCREENING_PREVALENCE) -> dict[str, Floats]:
    """Returns all that follows from a table's cells, [R] each; NaN where it is undefined or infinite.

    Args:
        cells: by name of `CELLS`, [R] each.
        prevalence: of the re-weighted figures.
    """
    tp, fp, fn, tn = (np.asarray(cells[name], np.float64) for name in CELLS)
    everyone = tp + fp + fn + tn
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        found, wrong = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
        rates = {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "likelihood_ratio_positive": sensitivity / (1 - specificity),
            "likelihood_ratio_negative": (1 - sensitivity) / specificity,
            "recall_rate": (tp + fp) / everyone,
            "cancers_found_per_1000": 1000 * tp / everyone,
            "recalled_per_cancer_found": (tp + fp) / tp,
            "screening_recall_rate": found + wrong,
            "screening_ppv": found / (found + wrong),
            "screening_cancers_found_per_1000": 1000 * found,
            "screening_recalled_per_cancer_found": (found + wrong) / found,
        }
    return {name: np.where(np.isfinite(rate), rate, np.nan) for name, rate in rates.items()}


def _count_cells(table: pd.DataFrame, patients_N: Integers) -> Floats:
    """Counts each patient's predictions in each cell, [4, M]."""
    recalled_N, cancer_N = table["recalled"].to_numpy(), table["cancer"].to_numpy()
    members = (recalled_N & cancer_N, recalled_N & ~cancer_N, ~recalled_N & cancer_N, ~recalled_N & ~cancer_N)
    num_patients = int(patients_N.max()) + 1
    return np.stack([np.bincount(patients_N, weights=each, minlength=num_patients) for each in members])


def _tabulate(unit: str, cells_4M: Floats, draws: list[Floats]) -> TwoByTwo:
    totals = dict(zip(CELLS, cells_4M.sum(axis=1, keepdims=True), strict=True))
    drawn_4R = np.concatenate([cells_4M @ weights_MR for weights_MR in draws], axis=1)
    replicates = find_rates(dict(zip(CELLS, drawn_4R, strict=True)))
    figures = {name: float(rate[0]) for name, rate in find_rates(totals).items()}
    if unit == "breast":
        figures = {name: value for name, value in figures.items() if not name.startswith(SCREENING)}
    defined = {name: value for name, value in figures.items() if not np.isnan(value)}
    intervals, no_interval = {}, {}
    for name, value in defined.items():
        found, reason = find_interval(replicates[name]), _doubt(replicates[name])
        if name in SHARES and value in {0.0, 1.0}:
            found, reason = find_exact_interval(value, int(cells_4M[SHARES[name]].any(axis=0).sum())), ""
        if found is None or reason or not found.has_width:
            no_interval[name] = reason or NO_WIDTH
        else:
            intervals[name] = found
    return TwoByTwo(
        unit,
        {name: int(cell[0]) for name, cell in totals.items()},
        {name: defined.get(name) for name in figures},
        intervals,
        no_interval,
    )


def _doubt(replicates_R: Floats) -> str:
    """Returns why the percentiles of a figure's replicates tell nothing; empty where enough have a value."""
    share = float(np.isnan(replicates_R).mean())
    return f"undefined or infinite in {share:.0%} of the replicates" if share > MOST_UNDEFINED else ""
