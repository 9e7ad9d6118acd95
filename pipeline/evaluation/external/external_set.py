"""What is known of an external set beside its figures."""

from dataclasses import dataclass, field

import pandas as pd

from pipeline.evaluation.estimates import Estimate
from pipeline.evaluation.operating_point import OperatingPoint


@dataclass(frozen=True)
class CarriedThreshold:
    """One way to carry the run's threshold over.

    Attributes:
        rule: `probability`, the threshold as it is, or `recall_rate`, which recalls as large a share of the
            breasts as the threshold does of the run's own.
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
        threshold: the run's, as a probability; None where it has none.
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
    threshold: float | None
    carried: list[CarriedThreshold]
    shift: pd.DataFrame
    num_learned: int
    left_out: pd.DataFrame = field(repr=False)
    not_compared: str = ""
