"""What a prediction needs to know of a run's evaluation, from `metrics.json`."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.files import parse_json, read_own
from pipeline.evaluation.artifacts import MEAN_OF_LOGITS
from pipeline.evaluation.patient_stats import Floats
from pipeline.runs.run_folder import Run

FEWEST_RECALLED = 10
"""Fewer breasts than these are not counted off: in so small a set the number with cancer is off by a third by
chance alone (1 / sqrt(10))."""

RecallBy = Literal["rate", "threshold"]
"""Whether a submission recalls the run's share of all breasts, or those that reach the run's threshold."""


@dataclass(frozen=True)
class RecallRule:
    """Which breasts a submission recalls.

    Attributes:
        threshold: the best one of the run's out-of-fold probabilities, each of a single model.
        rate: the share of breasts that it recalls there, 0 to 1; None leaves the decision to the threshold.
    """

    threshold: float
    rate: float | None

    def decide(self, probabilities: "pd.Series[float]") -> tuple[float, str]:
        """Returns from which probability on breasts are recalled, and how that was found, in words."""
        if self.rate is None:
            return self.threshold, f"threshold {self.threshold:.4g}"
        share, count = f"{100 * self.rate:.3g} %", len(probabilities)
        if self.rate * count < FEWEST_RECALLED:
            return (
                self.threshold,
                f"threshold {self.threshold:.4g}: {share} of {count:,} are too few to count off",
            )
        threshold = find_share_threshold(np.asarray(probabilities, np.float64), self.rate)
        return threshold, f"the highest {share}, from {threshold:.4g} on"


def find_share_threshold(probabilities_N: Floats, rate: float) -> float:
    """Returns the probability that a share of them reaches: of the last one to be recalled.

    So many are recalled as the share comes closest to, halves rounded up. Others that have the very same
    probability as the last one reach it too, so that equal breasts get equal answers.

    Raises:
        ValueError: if the share rounds to none of them.
    """
    count = math.floor(rate * len(probabilities_N) + 0.5)
    if not count:
        raise ValueError(f"{rate} of {len(probabilities_N)} probabilities is none of them")
    return float(np.sort(probabilities_N)[-count])


def read_recall_rule(run: Run, by: RecallBy = "rate") -> RecallRule:
    """Reads what the run's evaluation found best for a breast's mean probability.

    Raises:
        UserError: if the run has not been evaluated, or has no threshold, or no rate where that is asked for.
    """
    again = f"give `mammo evaluate {run.folder}` first, or ask for --probabilities"
    if not run.metrics.exists():
        raise UserError(f"{run.folder} has no {run.metrics.name} and thus no threshold: {again}")
    try:
        metrics = parse_json(read_own(run.metrics))
        if metrics["threshold"] is None:
            raise UserError(
                f"the evaluation of {run.folder} found no threshold, since none of its breasts has cancer: "
                "ask for --probabilities"
            )
        threshold, joined = _read_share(run, metrics, "threshold"), metrics.get("breast_is")
        rate = _read_share(run, metrics, "recall_rate") if by == "rate" and "recall_rate" in metrics else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.metrics} is damaged: {again}") from error
    if joined != MEAN_OF_LOGITS:
        raise UserError(
            f"{run.metrics} is of an older mammo, whose threshold was for another mean of images: {again}"
        )
    if by == "rate" and rate is None:
        raise UserError(
            f"{run.metrics} is of an older mammo and has no recall rate: give `mammo evaluate {run.folder}` "
            "once more, or ask for --recall-by threshold"
        )
    return RecallRule(threshold, rate)


def is_spoilt_by_counting(run: Run) -> bool:
    """Whether the run's evaluation found that the number of a breast's images tells its label."""
    try:
        return bool(parse_json(read_own(run.metrics))["shortcut_audit"]["counting_tells_the_label"])
    except (OSError, ValueError, KeyError, TypeError):  # not evaluated, or by an older mammo
        return False


def _read_share(run: Run, metrics: dict[str, Any], name: str) -> float:
    number = float(metrics[name])
    if not 0 <= number <= 1:
        raise UserError(
            f"{run.metrics} is damaged, its {name.replace('_', ' ')} is {number}: give `mammo evaluate "
            f"{run.folder}` first, or ask for --probabilities"
        )
    return number
