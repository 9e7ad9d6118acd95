"""Asks simulations whether the interval of a recipe's expected AUC holds it, and that of one run does not.

python -m tests.campaigns.repeats --runs 800

`models` have true AUCs of their own, drawn independently. `learners` do learn: linear discriminants, each of
a random half of its training patients, so all repeats depend on which patients there were to learn from.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from pipeline.evaluation.uncertainty.auc_variance import AucEstimate, estimate_auc, find_auc_interval
from pipeline.evaluation.uncertainty.repeats import find_expected_auc

NUM_FOLDS = 5
PREVALENCE = 0.02
SHARED = 0.8
"""Of what a breast's score owes to chance, the part that all models have in common."""
NUM_FEATURES = 12


@dataclass(frozen=True)
class Draw:
    """One simulated study: the AUC of each repeat, and its models' true AUCs on average."""

    estimates: list[AucEstimate]
    true_auc: float


def draw_models(num_cancers: int, *, auc: float, spread: float, num_repeats: int, seed: int) -> Draw:
    """Draws scores of women with two breasts by models whose separation has that standard deviation."""
    generator = np.random.default_rng(seed)
    num_women = round(num_cancers / PREVALENCE / 2)
    women, num_breasts = np.repeat(np.arange(num_women), 2), 2 * num_women
    cancer = np.zeros(num_breasts, dtype=int)
    cancer[generator.choice(num_breasts, num_cancers, replace=False)] = 1
    common = generator.normal(size=num_breasts) + generator.normal(size=num_women)[women]
    estimates, true_aucs = [], []
    for _ in range(num_repeats):
        fold = generator.permutation(np.arange(num_women) % NUM_FOLDS)[women]
        separation = np.sqrt(2) * norm.ppf(auc) + generator.normal(0, spread, NUM_FOLDS)
        chance = np.sqrt(SHARED / 2) * common + np.sqrt(1 - SHARED) * generator.normal(size=num_breasts)
        score = separation[fold] * cancer + chance
        estimates.append(estimate_auc(cancer, score, women, num_patients=num_women, folds=fold))
        true_aucs.append(norm.cdf(separation / np.sqrt(2)).mean())
    return Draw(estimates, float(np.mean(true_aucs)))


def draw_learners(
    num_cancers: int, *, auc: float, num_repeats: int, seed: int, prevalence: float = 0.1
) -> Draw:
    """Trains and judges linear discriminants on women drawn anew, with `auc` as the best that can be had."""
    generator = np.random.default_rng(seed)
    num_women = round(num_cancers / prevalence)
    cancer = (np.arange(num_women) < num_cancers).astype(int)
    shift = np.full(NUM_FEATURES, np.sqrt(2 / NUM_FEATURES) * norm.ppf(auc))
    features = generator.normal(size=(num_women, NUM_FEATURES)) + np.outer(cancer, shift)
    estimates, true_aucs = [], []
    for _ in range(num_repeats):
        fold, score = np.empty(num_women, dtype=int), np.empty(num_women)
        for label in (0, 1):
            rows = generator.permutation(np.flatnonzero(cancer == label))
            fold[rows] = np.arange(len(rows)) % NUM_FOLDS
        for number in range(NUM_FOLDS):
            weights = _learn(features[fold != number], cancer[fold != number], generator)
            score[fold == number] = features[fold == number] @ weights
            true_aucs.append(norm.cdf(weights @ shift / np.sqrt(2) / np.linalg.norm(weights)))
        women = np.arange(num_women)
        estimates.append(estimate_auc(cancer, score, women, num_patients=num_women, folds=fold))
    return Draw(estimates, float(np.mean(true_aucs)))


def _learn(features: np.ndarray, cancer: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns the weights of a discriminant that has seen a random half of each class."""
    halves = []
    for label in (0, 1):
        rows = np.flatnonzero(cancer == label)
        halves.append(features[generator.choice(rows, max(2, len(rows) // 2), replace=False)])
    within = sum(np.cov(half.T) * (len(half) - 1) for half in halves) / (sum(map(len, halves)) - 2)
    direction: np.ndarray = np.linalg.solve(
        within + 0.1 * np.eye(NUM_FEATURES), halves[1].mean(axis=0) - halves[0].mean(axis=0)
    )
    return direction


def cover(draws: Iterator[Draw] | list[Draw], truth: float | None = None) -> dict[str, tuple[float, float]]:
    """Returns the share of the studies whose interval holds the expected AUC, and the mean width.

    Args:
        draws: with two repeats or more.
        truth: None takes the mean of what the models truly have.
    """
    studies = list(draws)
    expected = np.mean([study.true_auc for study in studies]) if truth is None else truth
    makers: dict[str, Callable[[list[AucEstimate]], object]] = {
        "one run, models fixed": lambda estimates: find_auc_interval(estimates[0]),
        "all repeats": lambda estimates: find_expected_auc(estimates, num_folds=NUM_FOLDS).interval,
    }
    found = {}
    for name, make in makers.items():
        limits = [(each.low, each.high) for study in studies if (each := make(study.estimates))]  # type: ignore[attr-defined]
        low, high = np.array(limits).T
        found[name] = (
            float(((low <= expected) & (expected <= high)).mean()),
            float((high - low).mean()),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=800)
    num_runs = parser.parse_args().runs
    for num_cancers, auc in [(60, 0.7), (60, 0.85), (500, 0.85)]:
        for spread in (0.1, 0.3, 0.6):
            truth = float(norm.cdf(norm.ppf(auc) / np.sqrt(1 + spread**2 / 2)))
            for num_repeats in (3, 5, 10):
                options = {"auc": auc, "spread": spread, "num_repeats": num_repeats}
                draws = (draw_models(num_cancers, seed=seed, **options) for seed in range(num_runs))  # type: ignore[arg-type]
                print(f"models, {num_cancers} cancers, {options}: {cover(draws, truth)}", flush=True)
    for num_cancers in (30, 60, 200):
        for num_repeats in (3, 5, 10):
            draws = (
                draw_learners(num_cancers, auc=0.85, num_repeats=num_repeats, seed=seed)
                for seed in range(num_runs)
            )
            print(f"learners, {num_cancers} cancers, {num_repeats} repeats: {cover(draws)}", flush=True)


if __name__ == "__main__":
    main()
