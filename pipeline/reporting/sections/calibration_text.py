"""What probabilities are worth, in tables and sentences, and what each calibration is for."""

from collections.abc import Mapping
from typing import Any

from data_prep.errors import UserError
from pipeline.evaluation.calibration import FOR_ONE_MODEL, RAW, Calibration
from pipeline.reporting.formatting import format_figure, format_interval
from pipeline.reporting.tables import Table
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run

RECALIBRATION_NAMES = {
    "slope": "slope",
    "intercept": "intercept",
    "intercept_of_slope_1": "intercept where the slope is 1",
    "observed_over_expected": "cancers observed over expected",
    "brier_of_prevalence": "Brier score of the prevalence for all",
    "brier_scaled": "scaled Brier score",
}
ERROR_NAMES = {
    "found": "calibration error",
    "constant": "calibration error of a constant",
    "perfect": "calibration error of right probabilities",
}
METHOD_FIGURES = ["brier", "pf1", "pf1_transferred"]
CALIBRATION_NOTE = (
    "Slope and intercept are those of the line through the logits that fits the labels best: 1 and 0 where "
    "probabilities are right, a slope below 1 where they lie too far apart. The scaled Brier score is by "
    "which share the score is lower than that of answering the prevalence for all. A calibration error says "
    "something only beside the others: that of a constant, {constant}, and the one to be expected if "
    "each label were drawn from its own probability. Each method was fitted on {teachers}."
)
"""What the figures of calibration are, to be filled with `Wording`'s words."""


def tabulate_calibration(calibration: Calibration, figure_names: Mapping[str, str]) -> Table:
    """Returns what the raw and each method's probabilities are worth, a row per figure."""
    names = list(calibration.methods)
    rows = []
    for figure, title in RECALIBRATION_NAMES.items():
        cells = [title]
        for found in (calibration.recalibrations[name] for name in names):
            interval = format_interval(found.intervals.get(figure))
            cells += [format_figure(found.figures[figure]), interval]
        rows.append(cells)
    for figure in METHOD_FIGURES:
        cells = [figure_names[figure].removesuffix(" of the raw probabilities")]
        for estimate in calibration.methods.values():
            cells += [
                format_figure(estimate.figures[figure]),
                format_interval(estimate.intervals.get(figure)),
            ]
        rows.append(cells)
    for part, title in ERROR_NAMES.items():
        values = (getattr(calibration.errors[name], part) for name in names)
        rows.append([title, *(cell for value in values for cell in (f"{value:.4f}", ""))])
    columns = ["figure", *(cell for name in names for cell in (name, "95 %"))]
    return Table("Probabilities as they are and calibrated", columns, rows)


def tabulate_parameters(calibration: Calibration) -> Table:
    """Returns what corrects the probabilities of new patients, by method and by model."""
    rows = [[name, "all", _describe(found)] for name, found in calibration.parameters.items()]
    rows += [[name, "all", f"left out: {reason}"] for name, reason in calibration.left_out.items()]
    rows += [["platt", f"fold {fold}", _describe(found)] for fold, found in calibration.by_model.items()]
    return Table("Calibration for new patients", ["method", "fitted on", "parameters"], rows)


def describe_use(calibration: Calibration) -> str:
    """Says what the parameters are for; empty where there are none."""
    if not calibration.parameters:
        return ""
    return (
        f"These are for {FOR_ONE_MODEL}. Nothing here calibrates that mean, since no model of it but one has "
        "left a patient out: it takes new patients whose labels are known. The nearest without is the mean "
        "of the models' logits, each corrected by its own fold's line, drawn apart as reports/README.md says."
    )


def describe_offset(calibration: Calibration) -> str:
    """Says that the raw probabilities promise too many cancers or too few; empty where that may be chance."""
    found = calibration.recalibrations[RAW]
    interval, ratio = found.intervals.get("observed_over_expected"), found.figures["observed_over_expected"]
    if interval is None or ratio is None or interval.low <= 1 <= interval.high:
        return ""
    return f"There are {ratio:.2f} times ({format_interval(interval)}) as many cancers as they expect."


def describe_loss(run: Run) -> str:
    """Says what of the loss is undone in the probabilities, and what is not; empty where there is nothing."""
    try:
        train = load_recipe(run.settings).train
    except UserError:  # the page shows them as they are
        return ""
    bent = {
        f"the focal loss (train.focal_gamma {train.focal_gamma:g})": train.focal_gamma > 0,
        f"soft labels (train.positive_label {train.positive_label:g})": train.positive_label < 1,
        f"mixup (train.mixup {train.mixup:g})": train.mixup > 0,
    }
    names = [name for name, is_used in bent.items() if is_used]
    sentences = []
    if train.positive_weight != 1:
        sentences.append(
            f"The weight of cancers in the loss (train.positive_weight {train.positive_weight:g}) is undone: "
            "its logarithm is taken off every logit."
        )
    if names:
        sentences.append(
            f"Not undone: {' and '.join(names)}; no shift of the logits could, and they bend the slope."
        )
    return " ".join(sentences)


def _describe(parameters: dict[str, Any]) -> str:
    numbers = {name: value for name, value in parameters.items() if isinstance(value, float)}
    if parameters and not numbers:
        return f"{len(next(iter(parameters.values())))} points, in metrics.json"
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
