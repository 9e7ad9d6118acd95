"""What a prediction needs to know of a run's evaluation, from `metrics.json`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.files import parse_json, read_own
from pipeline.evaluation.age.age_regression import AGE
from pipeline.evaluation.artifacts import MEAN_OF_LOGITS
from pipeline.evaluation.estimates import find_share_threshold, recalls_any
from pipeline.evaluation.external.external_set import OperatingRule
from pipeline.runs.run_folder import Run

RecallBy = Literal["threshold", "rate"]
"""Whether a submission recalls breasts that reach the run's threshold, or the run's share of all breasts."""


@dataclass(frozen=True)
class RecallRule:
    """Which breasts a submission recalls.

    Attributes:
        threshold: of the mean of all folds' models.
        rate: the share of breasts to be recalled, 0 to 1; None leaves the decision to the threshold.
    """

    threshold: float
    rate: float | None = None

    def decide(self, probabilities: "pd.Series[float]") -> tuple[float, str]:
        """Returns from which probability on breasts are recalled, and how that was found, in words."""
        if self.rate is None:
            return self.threshold, f"threshold {self.threshold:.4g}"
        share, count = f"{100 * self.rate:.3g} %", len(probabilities)
        if not recalls_any(self.rate, count):
            return self.threshold, f"threshold {self.threshold:.4g}: {share} of {count:,} is less than one"
        threshold = find_share_threshold(np.asarray(probabilities, np.float64), self.rate)
        return threshold, f"the highest {share}, from {threshold:.4g} on"


def read_recall_rule(run: Run, by: RecallBy = "threshold") -> RecallRule:
    """Reads what a submission of the run goes by.

    Raises:
        UserError: as `read_rule` does.
    """
    rule = read_rule(run, "ask for --probabilities")
    assert rule.threshold_of_mean is not None, "a run without a threshold was refused"
    return RecallRule(rule.threshold_of_mean, rule.recall_rate if by == "rate" else None)


def read_rule(run: Run, way_out: str = "") -> OperatingRule:
    """Reads what the run's evaluation found best for a breast's mean probability.

    Args:
        run: the run.
        way_out: what else the user can do.

    Raises:
        UserError: if the run has not been evaluated, by an older mammo, or has no threshold.
    """
    otherwise = f", or {way_out}" if way_out else ""
    evaluate = f"run `mammo evaluate {run.folder}`"
    if not run.metrics.exists():
        raise UserError(
            f"{run.folder} has no {run.metrics.name} and thus no threshold: {evaluate} first{otherwise}"
        )
    try:
        metrics = parse_json(read_own(run.metrics))
        if metrics["threshold"] is None:
            raise UserError(
                f"the evaluation of {run.folder} found no threshold, since none of its breasts has cancer: "
                f"{way_out or 'train on patients of whom some have cancer'}"
            )
        if metrics.get("breast_is") != MEAN_OF_LOGITS or "threshold_of_mean" not in metrics:
            raise UserError(
                f"{run.metrics} is of an older mammo, whose threshold was not for the mean of the models: "
                f"{evaluate} once more{otherwise}"
            )
        if bool(metrics.get("age", {}).get("is_used")) != (AGE in run.read_inputs()):
            raise UserError(
                f"{run.metrics} is of before the run's model.inputs changed, and so is its threshold: "
                f"{evaluate} once more{otherwise}"
            )
        shares = {name: float(metrics[name]) for name in ("threshold", "threshold_of_mean", "recall_rate")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run.metrics} is damaged: {evaluate} first{otherwise}") from error
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{run.metrics} is damaged, its {name} is {share}: {evaluate} first{otherwise}")
    return OperatingRule(**shares)


def is_spoilt_by_counting(run: Run) -> bool:
    """Whether the run's evaluation found that the number of a breast's images tells its label."""
    try:
        return bool(parse_json(read_own(run.metrics))["shortcut_audit"]["counting_tells_the_label"])
    except (OSError, ValueError, KeyError, TypeError):  # not evaluated, or by an older mammo
        return False
