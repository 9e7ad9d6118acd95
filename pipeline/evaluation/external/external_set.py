"""What is known of an external set beside its figures."""

from dataclasses import dataclass, field

import pandas as pd

from pipeline.evaluation.estimates import Estimate
from pipeline.evaluation.operating_point import OperatingPoint


@dataclass(frozen=True)
class OperatingRule:
    """How a run decides whom to recall.

    Attributes:
        threshold: on a breast's probability by a single model; None where the run has none.
        threshold_of_mean: on the mean of all folds' models; None likewise.
        recall_rate: the share of the run's own breasts that reach `threshold`, out of fold; None likewise.
    """

    threshold: float | None
    threshold_of_mean: float | None
    recall_rate: float | None


@dataclass(frozen=True)
class CarriedThreshold:
    """One way to carry the run's threshold over.

    Attributes:
        rule: `probability`, the threshold of the mean as it is, or `recall_rate`, which recalls as large a
            share of the breasts as the run's does of its own.
        value: the threshold, or that share; None where the run has none.
        threshold: on the probabilities of this set; None likewise.
        recalled: share of this set's breasts that are recalled.
        estimate: of the breasts, of which `pf1_transferred` is at this threshold.
        operating_point: what recalling so does.
    """

    rule: str
    value: float | None
    threshold: float | None
    recalled: float | None
    estimate: Estimate
    operating_point: OperatingPoint


@dataclass(frozen=True)
class ExternalSet:
    """An external set and the run that is judged on it.

    Attributes:
        name: of the set.
        run_name: of the run.
        rule: how the run decides.
        carried: the ways to carry it over, the probability first.
        shift: how the set differs from the run's own data, as `describe_shift` gives it.
        num_learned: patients that the run has learned from, none of whom is judged.
        left_out: patients of the set that were left out since the run has learned from them:
            patient_id, reason, image_id, run_patient_id, run_image_id.
        not_compared: why pictures could not be compared with those that the run has learned from; empty
            where they were.
    """

    name: str
    run_name: str
    rule: OperatingRule
    carried: list[CarriedThreshold]
    shift: pd.DataFrame
    num_learned: int
    left_out: pd.DataFrame = field(repr=False)
    not_compared: str = ""
