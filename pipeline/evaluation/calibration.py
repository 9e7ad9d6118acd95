"""Probabilities that mean what they say: Platt scaling, isotonic regression, temperature.

Whatever is judged here was cross-fitted: a fold's probabilities are corrected by what the others' taught.
Platt scaling and temperature work on the logit and take Platt's smoothed targets, which keep them finite
where the classes are separated (Platt 1999, "Probabilistic outputs for support vector machines", 2.2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

from pipeline.evaluation.estimates import Estimate, estimate_all
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.metrics import measure
from pipeline.evaluation.patient_stats import Floats
from pipeline.evaluation.uncertainty.calibration_error import CalibrationError, find_bins
from pipeline.evaluation.uncertainty.recalibration import Recalibration, fit_line, recalibrate

LONGEST_LOG_TEMPERATURE = 7.0  # temperatures from 0.001 to 1,000
RAW = "raw"
FOR_ONE_MODEL = (
    "the probability that one model gives a breast; not the mean of all folds' models, which mammo predict "
    "writes and which spreads less"
)
"""What calibration that out-of-fold predictions taught is for."""


class Calibrator(Protocol):
    """Turns probabilities into others."""

    def __call__(self, probabilities_N: Floats) -> Floats:
        """Returns the corrected probabilities."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns what somebody else needs to do the same."""
        ...


@dataclass(frozen=True)
class PlattScaling:
    """sigmoid(slope * logit(p) + intercept): Platt scaling."""

    slope: float
    intercept: float

    def __call__(self, probabilities_N: Floats) -> Floats:
        """Returns the corrected probabilities."""
        return np.asarray(expit(self.slope * to_logits(probabilities_N) + self.intercept))

    def describe(self) -> dict[str, Any]:
        """Returns the formula's numbers."""
        return {"slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Temperature:
    """sigmoid(logit(p) / temperature)."""

    temperature: float

    def __call__(self, probabilities_N: Floats) -> Floats:
        """Returns the corrected probabilities."""
        return np.asarray(expit(to_logits(probabilities_N) / self.temperature))

    def describe(self) -> dict[str, Any]:
        """Returns the temperature."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class IsotonicCalibrator:
    """Straight lines between points, level beyond the outermost."""

    points: Floats
    values: Floats

    def __call__(self, probabilities_N: Floats) -> Floats:
        """Returns the corrected probabilities."""
        return np.interp(probabilities_N, self.points, self.values)

    def describe(self) -> dict[str, Any]:
        """Returns the points."""
        return {"probabilities": self.points.tolist(), "calibrated": self.values.tolist()}


def fit_platt(labels_N: Floats, probabilities_N: Floats) -> PlattScaling:
    """Fits a line through the logits."""
    return PlattScaling(*fit_line(_smooth(labels_N), to_logits(probabilities_N)))


def fit_temperature(labels_N: Floats, probabilities_N: Floats) -> Temperature:
    """Fits the number that all logits are divided by; it is positive, so the ranking stays."""
    logits_N, targets_N = to_logits(probabilities_N), _smooth(labels_N)

    def cross_entropy(log_temperature: float) -> float:
        cooled_N = logits_N * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0, cooled_N) - targets_N * cooled_N))

    limit = LONGEST_LOG_TEMPERATURE
    best = minimize_scalar(cross_entropy, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-9})
    return Temperature(float(np.exp(best.x)))


def fit_isotonic(labels_N: Floats, probabilities_N: Floats) -> IsotonicCalibrator:
    """Fits the best curve that never falls."""
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probabilities_N, labels_N)
    return IsotonicCalibrator(np.asarray(model.X_thresholds_, float), np.asarray(model.y_thresholds_, float))


METHODS: dict[str, Callable[[Floats, Floats], Calibrator]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "temperature": fit_temperature,
}


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities can be taken at their word, and what correcting them changes.

    Attributes:
        methods: figures of the raw and of each method's cross-fitted probabilities.
        recalibrations: what these probabilities are worth.
        errors: the expected calibration error of each, beside its values for no and for perfect knowledge.
        bins: the reliability diagram, a row per method and bin: see `tabulate_bins`.
        parameters: of each method fitted on all folds together, for a single model and new patients.
        left_out: why a method is not offered for new patients.
        by_model: Platt scaling of each fold's model, fitted on its own fold; of those with both classes.
        undefined: why there is no corrected probability; empty if there is.
    """

    methods: dict[str, Estimate]
    recalibrations: dict[str, Recalibration]
    errors: dict[str, CalibrationError]
    bins: pd.DataFrame
    parameters: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    by_model: dict[int, dict[str, Any]]
    undefined: str = ""


def calibrate(breasts: pd.DataFrame) -> Calibration:
    """Fits, applies and judges every method.

    Args:
        breasts: a table of predictions with `fold`.
    """
    tables, parameters = {RAW: breasts}, {}
    undefined = _find_obstacle(breasts)
    if not undefined:
        for name, fit in METHODS.items():
            tables[name] = cross_fit(breasts, fit)
            parameters[name] = fit(*to_arrays(breasts)).describe()
    found = judge_methods(tables, undefined=undefined)
    left_out = _find_left_out(found.methods)
    return replace(
        found,
        parameters={name: each for name, each in parameters.items() if name not in left_out},
        left_out=left_out,
        by_model=fit_by_model(breasts),
    )


def judge_methods(
    tables: Mapping[str, pd.DataFrame],
    *,
    parameters: Mapping[str, dict[str, Any]] | None = None,
    undefined: str = "",
) -> Calibration:
    """Judges the raw and each method's probabilities.

    Args:
        tables: predictions by method, of the same breasts.
        parameters: of each method.
        undefined: why there is no method.
    """
    patients_N = pd.factorize(tables[RAW]["patient_id"], sort=True)[0]
    bins = pd.concat([tabulate_bins(table).assign(method=name) for name, table in tables.items()])
    return Calibration(
        methods=estimate_all(tables),
        recalibrations={
            name: recalibrate(table["cancer"], table["probability"], patients_N)
            for name, table in tables.items()
        },
        errors={
            name: CalibrationError.compare(table["cancer"], table["probability"], table["fold"])
            for name, table in tables.items()
        },
        bins=bins[["method", *bins.columns.drop("method")]].reset_index(drop=True),
        parameters=dict(parameters or {}),
        left_out={},
        by_model={},
        undefined=undefined,
    )


def cross_fit(breasts: pd.DataFrame, fit: Callable[[Floats, Floats], Calibrator]) -> pd.DataFrame:
    """Corrects each breast's probability by what the other folds' breasts taught.

    So does its `threshold`: the best one of the others, corrected in the same way. No fold's label takes part
    in its own figures.
    """
    parts = []
    for fold, part in breasts.groupby("fold"):
        labels_N, probabilities_N = to_arrays(breasts[breasts["fold"] != fold])
        calibrator = fit(labels_N, probabilities_N)
        best = measure(labels_N, calibrator(probabilities_N)).threshold_best
        corrected_N = calibrator(part["probability"].to_numpy())
        parts.append(part.assign(probability=corrected_N, threshold=np.nan if best is None else best))
    return pd.concat(parts).loc[breasts.index]


def fit_by_model(breasts: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Fits Platt scaling to each fold's own predictions, which its model has not learned from."""
    folds = breasts.groupby("fold")
    both = {int(str(fold)): part for fold, part in folds if part["cancer"].nunique() == 2}
    return {fold: fit_platt(*to_arrays(part)).describe() for fold, part in both.items()}


def tabulate_bins(breasts: pd.DataFrame) -> pd.DataFrame:
    """Compares probability and truth in ten bins of equal size.

    Returns:
        bin, num_breasts, num_cancers, mean_probability, share_of_cancers, and Wilson's 95 % interval of that
        share, low and high, as if all breasts were independent.
    """
    binned = breasts.groupby(find_bins(breasts["probability"].to_numpy()))
    rows = []
    for number, part in binned:
        num_cancers = int(part["cancer"].sum())
        interval = binomtest(num_cancers, len(part)).proportion_ci(method="wilson")
        shares = (part["probability"].sort_values().mean(), num_cancers / len(part), *interval)
        rows.append((int(str(number)) + 1, len(part), num_cancers, *map(float, shares)))
    names = ["bin", "num_breasts", "num_cancers", "mean_probability", "share_of_cancers", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _find_left_out(estimates: Mapping[str, Estimate]) -> dict[str, str]:
    """Returns why isotonic regression is not offered: with few cancers its steps follow chance."""
    if "isotonic" not in estimates:
        return {}
    raw, corrected = (estimates[name].metrics.brier for name in (RAW, "isotonic"))
    if raw is None or corrected is None or corrected <= raw:
        return {}
    return {"isotonic": f"its cross-fitted Brier score is {corrected:.5f}, worse than {raw:.5f} without it"}


def _find_obstacle(breasts: pd.DataFrame) -> str:
    for fold in sorted(breasts["fold"].unique()):
        labels = breasts.loc[breasts["fold"] != fold, "cancer"]
        if labels.nunique() < 2:
            return f"without fold {fold} there are no longer breasts with and without cancer to learn from"
    return ""


def to_arrays(breasts: pd.DataFrame) -> tuple[Floats, Floats]:
    """Returns labels and probabilities in an order that does not depend on the table's."""
    ordered = breasts.sort_values(["probability", "cancer"])
    return ordered["cancer"].to_numpy(np.float64), ordered["probability"].to_numpy(np.float64)


def _smooth(labels_N: Floats) -> Floats:
    num_cancers = labels_N.sum()
    of_cancers = (num_cancers + 1) / (num_cancers + 2)
    of_others = 1 / (len(labels_N) - num_cancers + 2)
    return np.where(labels_N == 1, of_cancers, of_others)
