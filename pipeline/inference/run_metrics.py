"""What a prediction needs to know of a run's evaluation, from `metrics.json`."""

from data_prep.errors import UserError
from data_prep.storage.files import parse_json, read_own
from pipeline.evaluation.artifacts import MEAN_OF_LOGITS
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.carry_over import OperatingRule
from pipeline.evaluation.oof import collect_oof
from pipeline.runs.run_folder import Run


def read_threshold(run: Run) -> float:
    """Reads the threshold that the run's evaluation found best for a breast's mean probability.

    Raises:
        UserError: if the run has not been evaluated, or has no threshold.
    """
    again = f"give `mammo evaluate {run.folder}` first, or ask for --probabilities"
    if not run.metrics.exists():
        raise UserError(f"{run.folder} has no {run.metrics.name} and thus no threshold: {again}")
    try:
        metrics = parse_json(read_own(run.metrics))
        threshold = metrics["threshold"]
        if threshold is None:
            raise UserError(
                f"the evaluation of {run.folder} found no threshold, since none of its breasts has cancer: "
                "ask for --probabilities"
            )
        number, joined = float(threshold), metrics.get("breast_is")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.metrics} is damaged: {again}") from error
    if not 0 <= number <= 1:
        raise UserError(f"{run.metrics} is damaged, its threshold is {number}: {again}")
    if joined != MEAN_OF_LOGITS:
        raise UserError(
            f"{run.metrics} is of an older mammo, whose threshold was for another mean of images: {again}"
        )
    return number


def read_rule(run: Run) -> OperatingRule:
    """Reads the run's threshold, and finds the share of its own breasts that reach it, out of fold.

    Raises:
        UserError: as `read_threshold` does.
    """
    threshold = read_threshold(run)
    breasts = require_breasts(collect_oof(run))
    return OperatingRule(threshold, float((breasts["probability"] >= threshold).mean()))


def is_spoilt_by_counting(run: Run) -> bool:
    """Whether the run's evaluation found that the number of a breast's images tells its label."""
    try:
        return bool(parse_json(read_own(run.metrics))["shortcut_audit"]["counting_tells_the_label"])
    except (OSError, ValueError, KeyError, TypeError):  # not evaluated, or by an older mammo
        return False
