"""What a run has learned, carried over to predictions of other patients: thresholds and calibration.

A table of breasts is as `estimates` takes it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluation.calibration import METHODS, RAW, Calibration, tabulate_bins
from pipeline.evaluation.estimates import estimate_all
from pipeline.evaluation.external.external_set import CarriedThreshold
from pipeline.evaluation.formulas import count_recalls
from pipeline.evaluation.operating_point import describe_operating_point


@dataclass(frozen=True)
class OperatingRule:
    """How a run decides whom to recall.

    Attributes:
        threshold: on a breast's probability; None where the run has none.
        recall_rate: the share of the run's own breasts that reach it, out of fold; None likewise.
    """

    threshold: float | None
    recall_rate: float | None


def carry_thresholds(breasts: pd.DataFrame, rule: OperatingRule) -> list[CarriedThreshold]:
    """Judges the run's threshold as a probability and as a recall rate, on the same bootstrap draws."""
    by_rate = None if rule.recall_rate is None else find_threshold_of_rate(breasts, rule.recall_rate)
    values = {"probability": rule.threshold, "recall_rate": rule.recall_rate}
    thresholds = {"probability": rule.threshold, "recall_rate": by_rate}
    tables = {name: with_threshold(breasts, threshold) for name, threshold in thresholds.items()}
    estimates = estimate_all(tables)
    return [
        CarriedThreshold(
            rule=name,
            value=values[name],
            threshold=threshold,
            recalled=None if threshold is None else float((breasts["probability"] >= threshold).mean()),
            estimate=estimates[name],
            operating_point=describe_operating_point(tables[name]),
        )
        for name, threshold in thresholds.items()
    ]


def with_threshold(table: pd.DataFrame, threshold: float | None) -> pd.DataFrame:
    """Returns predictions that are all held against one threshold; NaN where there is none."""
    return table.assign(threshold=np.nan if threshold is None else threshold)


def find_threshold_of_rate(breasts: pd.DataFrame, rate: float) -> float:
    """Returns the lowest probability that no more than that share of the breasts reaches.

    Where equal ones would be too many, it is the next higher; where nobody may be recalled, above all.
    """
    falling = np.sort(breasts["probability"].to_numpy(np.float64))[::-1]
    allowed = int(count_recalls(len(falling), rate))
    distinct = np.unique(falling)[::-1]
    num_reaching = np.searchsorted(-falling, -distinct, side="right")
    fitting = distinct[num_reaching <= allowed]
    return float(fitting[-1]) if len(fitting) else float(np.nextafter(falling[0], 2.0))


def carry_calibration(learned: pd.DataFrame, breasts: pd.DataFrame) -> Calibration:
    """Applies what the run's own breasts teach to those of an external set, and judges it there.

    Args:
        learned: the run's out-of-fold predictions of breasts.
        breasts: of the external set, with `threshold`, which is calibrated alike.
    """
    tables, parameters = {RAW: breasts}, {}
    undefined = ""
    if learned["cancer"].nunique() < 2:
        undefined = "the run has no breasts with and without cancer to learn from"
    else:
        ordered = learned.sort_values(["probability", "cancer"])  # floats add up in one order
        labels_N, probabilities_N = (ordered[name].to_numpy(np.float64) for name in ("cancer", "probability"))
        for name, fit in METHODS.items():
            calibrator = fit(labels_N, probabilities_N)
            corrected = {
                column: calibrator(breasts[column].to_numpy(np.float64))
                for column in ("probability", "threshold")
            }
            tables[name], parameters[name] = breasts.assign(**corrected), calibrator.describe()
    bins = pd.concat([tabulate_bins(table).assign(method=name) for name, table in tables.items()])
    bins = bins[["method", *bins.columns.drop("method")]].reset_index(drop=True)
    return Calibration(estimate_all(tables), bins, parameters, undefined)
