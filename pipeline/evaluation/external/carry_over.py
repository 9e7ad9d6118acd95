"""What a run has learned, carried over to predictions of other patients: thresholds and calibration.

A table of breasts is as `estimates` takes it.
"""

import numpy as np
import pandas as pd

from pipeline.evaluation.calibration import METHODS, RAW, Calibration, judge_methods, to_arrays
from pipeline.evaluation.estimates import estimate_all, find_share_threshold, recalls_any
from pipeline.evaluation.external.external_set import CarriedThreshold, OperatingRule
from pipeline.evaluation.operating_point import describe_operating_point


def carry_thresholds(breasts: pd.DataFrame, rule: OperatingRule) -> list[CarriedThreshold]:
    """Judges the run's threshold as a probability and as a recall rate, on the same bootstrap draws."""
    probabilities_N = breasts["probability"].to_numpy(np.float64)
    by_rate = None if rule.recall_rate is None else rule.threshold_of_mean
    if rule.recall_rate is not None and recalls_any(rule.recall_rate, len(breasts)):
        by_rate = find_share_threshold(probabilities_N, rule.recall_rate)
    values = {"probability": rule.threshold_of_mean, "recall_rate": rule.recall_rate}
    thresholds = {"probability": rule.threshold_of_mean, "recall_rate": by_rate}
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


def carry_calibration(learned: pd.DataFrame, breasts: pd.DataFrame) -> Calibration:
    """Applies what the run's own breasts teach to those of an external set, and judges it there.

    Args:
        learned: the run's out-of-fold predictions of breasts.
        breasts: of the external set, with `threshold`, which is calibrated alike.
    """
    if learned["cancer"].nunique() < 2:
        obstacle = "the run has no breasts with and without cancer to learn from"
        return judge_methods({RAW: breasts}, undefined=obstacle)
    tables, parameters = {RAW: breasts}, {}
    labels_N, probabilities_N = to_arrays(learned)
    for name, fit in METHODS.items():
        calibrator = fit(labels_N, probabilities_N)
        corrected = {
            column: calibrator(breasts[column].to_numpy(np.float64))
            for column in ("probability", "threshold")
        }
        tables[name], parameters[name] = breasts.assign(**corrected), calibrator.describe()
    return judge_methods(tables, parameters=parameters)
