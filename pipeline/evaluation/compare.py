"""Whether one run is better than another: paired differences of their figures.

All runs are judged on the same breasts, and every bootstrap draw of patients counts for all of them, so that
what makes a draw hard or easy cancels out.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED, Interval, find_interval, replicate
from pipeline.evaluation.estimates import add_up_patients, transfer_thresholds
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.metrics import FIGURES, LOWER_IS_BETTER, NOT_RANKED, measure_sums

COMPARED = [name for name in FIGURES if name not in NOT_RANKED]
COMPARISON_COLUMNS = [
    *("run", "reference", "figure", "value", "reference_value"),
    *("difference", "low", "high", "num_undefined", "verdict"),
]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of a run beside the same of the reference, on the same breasts.

    Attributes:
        difference: value minus reference value; None if one of them is undefined.
        interval: its 95 % interval; None without a difference.
    """

    run: str
    reference: str
    figure: str
    value: float | None
    reference_value: float | None
    difference: float | None
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes 0, else `unclear`; `undefined` without one."""
        if self.interval is None:
            return "undefined"
        if self.interval.low <= 0 <= self.interval.high:
            return "unclear"
        return "better" if (self.interval.low > 0) != (self.figure in LOWER_IS_BETTER) else "worse"


def compare(
    oofs: Mapping[str, pd.DataFrame], *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> list[Difference]:
    """Compares each run with the first, figure by figure, per breast.

    Args:
        oofs: out-of-fold image predictions by name of the run, as `collect_oof` gives them.
        seed: of the bootstrap.
        num_replicates: draws.

    Raises:
        UserError: if there are fewer than two runs, or they are not of the same breasts and labels.
    """
    if len(oofs) < 2:
        raise UserError("a comparison needs two different runs or more: name them one after the other")
    tables = {run: transfer_thresholds(require_breasts(oof)) for run, oof in oofs.items()}
    reference, *others = tables
    for run in others:
        _require_same_breasts(reference, tables[reference], run, tables[run])
    sums = add_up_patients(tables)
    replicates = replicate(sums, seed=seed, num_replicates=num_replicates)
    figures = {run: measure_sums(sums[run], tables[run]["threshold"].to_numpy()).figures for run in tables}
    differences = []
    for run in others:
        for name in COMPARED:
            value, reference_value = figures[run][name], figures[reference][name]
            paired_R = replicates[run][name] - replicates[reference][name]
            difference = None if value is None or reference_value is None else value - reference_value
            differences.append(
                Difference(
                    run=run,
                    reference=reference,
                    figure=name,
                    value=value,
                    reference_value=reference_value,
                    difference=difference,
                    interval=None if difference is None else find_interval(paired_R),
                )
            )
    return differences


def tabulate_differences(differences: list[Difference]) -> pd.DataFrame:
    """Makes a table of them; what is undefined is an empty cell."""
    rows = []
    for found in differences:
        interval = found.interval or Interval(np.nan, np.nan, 0)
        rows.append({**asdict(found), **asdict(interval), "verdict": found.verdict})
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _require_same_breasts(first: str, expected: pd.DataFrame, second: str, found: pd.DataFrame) -> None:
    ids, other_ids = set(expected["prediction_id"]), set(found["prediction_id"])
    for here, there, lacking in [(first, second, ids - other_ids), (second, first, other_ids - ids)]:
        if lacking:
            raise UserError(
                f"{first} and {second} cannot be compared: {there} has no prediction of {len(lacking)} "
                f"breasts of {here}, {min(lacking)} for one; compare runs of the same patients and images"
            )
    labels, other_labels = (table.set_index("prediction_id")["cancer"] for table in (expected, found))
    differing = labels.index[labels != other_labels.reindex(labels.index)]
    if len(differing):
        raise UserError(
            f"{first} and {second} cannot be compared: they give {len(differing)} breasts different labels, "
            f"{differing[0]} for one; compare runs that learned from the same train.csv"
        )
