"""Asks a simulation whose truth is known how the mean of a run's models should recall, and be calibrated.

python -m tests.campaigns.operating_rules --runs 200

Each of five models judges a fold of its own, from which threshold, recall rate and calibration are learned;
then all five judge women of another set, and the mean of their probabilities recalls. Women have two breasts
whose scores have a correlation of 0.5.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.evaluation.calibration import fit_platt
from pipeline.evaluation.estimates import find_share_threshold, find_threshold_of_mean
from pipeline.evaluation.metrics import find_operating_points
from pipeline.evaluation.patient_stats import Floats
from tests.campaigns.figures import INTERCEPT_SPREAD, LOG_SLOPE_SPREAD, NUM_FOLDS, PREVALENCE

NUM_WOMEN = 11_900
"""In training, as in RSNA's."""
RULES = ["pooled", "of_mean", "rate", "calibrated", "spread", "nested", "best"]
"""`pooled`: the best threshold of all single models' predictions. `of_mean`: the mean of the thresholds that
recall of each fold what this one recalls of all. `rate`: as large a share of the very set. `calibrated`: the
best threshold after Platt scaling of each model by its own fold, on the mean of the calibrated logits.
`spread`: the same, with that mean drawn apart as far as the models differ. `nested`: the best threshold of
the mean on as many other women with labels, which no run has. `best`: of the very set."""


@dataclass(frozen=True)
class Models:
    """Five models that differ in scale.

    Attributes:
        slope, intercept: of each, [5].
        agreement: correlation of their scores of breasts of one class.
        distance: between the classes' scores, in standard deviations of one class.
    """

    slope: Floats
    intercept: Floats
    agreement: float
    distance: float

    @classmethod
    def draw(cls, generator: np.random.Generator, *, auc: float, agreement: float, alike: bool) -> "Models":
        slope = np.exp(generator.normal(0, 0 if alike else LOG_SLOPE_SPREAD, NUM_FOLDS))
        intercept = generator.normal(0, 0 if alike else INTERCEPT_SPREAD, NUM_FOLDS) - 4
        return cls(slope, intercept, agreement, float(np.sqrt(2) * norm.ppf(auc)))

    def judge(
        self, generator: np.random.Generator, num_women: int, prevalence: float
    ) -> tuple[Floats, Floats]:
        """Draws women; returns the labels of their breasts [N] and all models' logits [N, 5]."""
        shape = (num_women, 1, NUM_FOLDS)
        woman = self._draw_noise(generator, shape)
        breast = self._draw_noise(generator, (num_women, 2, NUM_FOLDS))
        noise = np.sqrt(0.5) * (woman + breast).reshape(-1, NUM_FOLDS)
        labels = np.zeros(2 * num_women)
        num_cancers = generator.binomial(2 * num_women, prevalence)
        labels[generator.choice(2 * num_women, num_cancers, replace=False)] = 1
        return labels, self.slope * (noise + self.distance * labels[:, None]) + self.intercept

    def _draw_noise(self, generator: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
        shared = generator.normal(size=(*shape[:2], 1))
        return np.sqrt(self.agreement) * shared + np.sqrt(1 - self.agreement) * generator.normal(size=shape)


@dataclass(frozen=True)
class Learned:
    """What out-of-fold predictions teach: threshold, recall rate, and calibrations of the models."""

    threshold: float
    rate: float
    threshold_of_mean: float
    pooled: tuple[float, float]
    lines: list[tuple[float, float]]
    threshold_calibrated: float
    prevalence: float


def learn(models: Models, generator: np.random.Generator) -> Learned:
    """Draws women for training, of whom each model judges its own fold."""
    labels, logits = models.judge(generator, NUM_WOMEN, PREVALENCE)
    fold = np.arange(len(labels)) // 2 % NUM_FOLDS
    own = logits[np.arange(len(labels)), fold]
    threshold = find_best_threshold(labels, expit(own))
    pooled = fit_platt(labels, expit(own))
    lines = [fit_platt(labels[fold == k], expit(own[fold == k])) for k in range(NUM_FOLDS)]
    slope, intercept = np.array([(line.slope, line.intercept) for line in lines]).T
    calibrated = expit(slope[fold] * own + intercept[fold])
    rate = float((expit(own) >= threshold).mean())
    return Learned(
        threshold,
        rate,
        find_threshold_of_mean(pd.DataFrame({"fold": fold, "probability": expit(own)}), rate),
        (pooled.slope, pooled.intercept),
        list(zip(slope, intercept, strict=True)),
        find_best_threshold(labels, calibrated),
        float(labels.mean()),
    )


def calibrate_mean(logits: Floats, learned: Learned) -> dict[str, Floats]:
    """Returns logits of the ensemble, [N], by what out-of-fold predictions taught.

    `pooled` is Platt scaling of all folds on the mean of the probabilities, `calibrated` the mean of each
    model's own, and `spread` the same drawn apart around the prevalence by the share of the variance that
    averaging has taken, which needs no label.
    """
    slope, intercept = np.array(learned.lines).T
    single = slope * logits + intercept
    mean, centre = single.mean(axis=1), logit(learned.prevalence)
    kept = mean.var() / single.var(axis=0).mean()
    return {
        "pooled": learned.pooled[0] * logit(expit(logits).mean(axis=1)) + learned.pooled[1],
        "calibrated": mean,
        "spread": centre + (mean - centre) / kept,
    }


def find_best_threshold(labels: Floats, probabilities: Floats) -> float:
    """Returns the threshold of the largest F1."""
    points = find_operating_points(labels, probabilities)
    return float(points.thresholds[points.f1.argmax()])


def find_f1(labels: Floats, recalled: Floats) -> float:
    """F1 of answers of 0 and 1."""
    return float(2 * (labels * recalled).sum() / (labels.sum() + recalled.sum()))


def compare_rules(
    num_runs: int, *, auc: float, agreement: float, prevalence: float, num_women: int, alike: bool = False
) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, Floats]]:
    """Recalls test sets by each rule; `alike` gives all models one scale.

    Returns:
        By rule pF1 and the share of breasts recalled, of each run; by calibration slope, observed over
        expected, and intercept with the slope held at 1.
    """
    f1: dict[str, list[float]] = {name: [] for name in RULES}
    rates: dict[str, list[float]] = {name: [] for name in RULES}
    quality: dict[str, list[tuple[float, float]]] = {}
    for seed in range(num_runs):
        generator = np.random.default_rng(seed)
        models = Models.draw(generator, auc=auc, agreement=agreement, alike=alike)
        learned = learn(models, generator)
        labels, logits = models.judge(generator, num_women, prevalence)
        mean = expit(logits).mean(axis=1)
        calibrated = calibrate_mean(logits, learned)
        other_labels, other_logits = models.judge(generator, NUM_WOMEN, PREVALENCE)
        nested = find_best_threshold(other_labels, expit(other_logits).mean(axis=1))
        limit = logit(learned.threshold_calibrated)
        recalled = {
            "pooled": mean >= learned.threshold,
            "of_mean": mean >= learned.threshold_of_mean,
            "rate": mean >= find_share_threshold(mean, learned.rate),
            "calibrated": calibrated["calibrated"] >= limit,
            "spread": calibrated["spread"] >= limit,
            "nested": mean >= nested,
            "best": mean >= (find_best_threshold(labels, mean) if labels.any() else 1.0),
        }
        for name, answers in recalled.items():
            f1[name].append(find_f1(labels, answers))
            rates[name].append(float(answers.mean()))
        for name, logits_N in calibrated.items():
            slope = fit_platt(labels, expit(logits_N)).slope if labels.any() else np.nan
            quality.setdefault(name, []).append((slope, float(labels.sum() / expit(logits_N).sum())))
    return (
        {name: np.array(values) for name, values in f1.items()},
        {name: np.array(values) for name, values in rates.items()},
        {name: np.array(values) for name, values in quality.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    num_runs = parser.parse_args().runs
    kinds = [(auc, agreement, False) for auc in (0.8, 0.922) for agreement in (0.5, 0.8)]
    for auc, agreement, alike in [*kinds, (0.8, 0.8, True), (0.922, 0.8, True)]:
        for prevalence in (0.02, 0.01, 0.005, 0.04):
            shared = {"auc": auc, "agreement": agreement, "prevalence": prevalence, "num_women": 4_000}
            f1, rates, quality = compare_rules(num_runs, **shared, alike=alike)
            print(f"{shared}, {'one scale' if alike else 'scales of their own'}")
            for name in RULES:
                gain = f1[name] - f1["pooled"]
                print(
                    f"  {name:10} pF1 {f1[name].mean():.4f}, to pooled {gain.mean():+.4f} "
                    f"+- {gain.std() / np.sqrt(num_runs):.4f}, recalled {rates[name].mean():.4f}"
                )
            for name, values in quality.items():
                slope, observed = np.nanmedian(values, axis=0)
                print(f"  {name:10} slope {slope:.2f}, observed/expected {observed:.2f}", flush=True)


if __name__ == "__main__":
    main()
