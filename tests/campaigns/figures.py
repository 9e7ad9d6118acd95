"""Asks simulations whose truth is known whether the figures mean what they say.

python -m tests.campaigns.figures --runs 800

Women have two breasts whose scores have a correlation of 0.5; folds are models with scales of their own.
With MAMMO_REAL_DATA, random numbers are put in place of a model's answers on the real crops.
"""

import argparse
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.audit.shortcuts import audit_shortcuts
from pipeline.evaluation.audit.traits import BOTH_VIEWS, NUM_IMAGES
from pipeline.evaluation.bootstrap import find_interval, replicate
from pipeline.evaluation.compare import compare
from pipeline.evaluation.estimates import add_up_patients, estimate_all, estimate_auc_of, weigh_images
from pipeline.evaluation.uncertainty.auc_variance import find_auc_interval
from pipeline.runs.run_folder import OOF_COLUMNS

NUM_FOLDS = 5
PREVALENCE = 0.02
INTERCEPT_SPREAD, LOG_SLOPE_SPREAD = 1.0, 0.3
"""Of the folds' models, on the logit."""


@dataclass(frozen=True)
class Coverage:
    """How often an interval held the truth.

    Attributes:
        share: of the runs with an interval.
        too_high: share of the runs whose lower limit lay above the truth.
        width: mean.
        num_without: runs without an interval.
    """

    share: float
    too_high: float
    width: float
    num_without: int


def draw_breasts(
    num_cancers: int, *, auc: float, seed: int, prevalence: float = PREVALENCE, alike: bool = False
) -> pd.DataFrame:
    """Returns predictions of breasts by models with that AUC; `alike` gives all folds one scale."""
    generator = np.random.default_rng(seed)
    num_women = round(num_cancers / prevalence / 2)
    women = np.repeat(np.arange(num_women), 2)
    cancer = np.zeros(2 * num_women, dtype=int)
    cancer[generator.choice(2 * num_women, num_cancers, replace=False)] = 1
    own, shared = generator.normal(size=2 * num_women), generator.normal(size=num_women)[women]
    score = np.sqrt(0.5) * (own + shared) + np.sqrt(2) * norm.ppf(auc) * cancer
    fold = women % NUM_FOLDS
    if not alike:
        slope = np.exp(generator.normal(0, LOG_SLOPE_SPREAD, NUM_FOLDS))[fold]
        score = slope * score + generator.normal(0, INTERCEPT_SPREAD, NUM_FOLDS)[fold]
    return pd.DataFrame(
        {
            "fold": fold,
            "patient_id": women.astype(str),
            "laterality": np.tile(["L", "R"], num_women),
            "cancer": cancer,
            "num_images": 2,
            "probability": expit(score - 4),
            "threshold": np.nan,
        }
    )


def cover(
    num_cancers: int,
    *,
    auc: float,
    num_runs: int,
    prevalence: float = PREVALENCE,
    num_replicates: int = 0,
    alike: bool = False,
) -> dict[str, Coverage]:
    """Measures the intervals of the AUC within folds and of the pooled one, and the bootstrap's of the first.

    Args:
        num_cancers: breasts with cancer in each run.
        auc: the truth within folds.
        num_runs: how often.
        prevalence: share of breasts with cancer.
        num_replicates: of the bootstrap; 0 leaves it out.
        alike: whether all folds' models have one scale.
    """
    found: dict[str, list[tuple[float, float] | None]] = {"within": [], "pooled": [], "bootstrap": []}
    for seed in range(num_runs):
        breasts = draw_breasts(num_cancers, auc=auc, seed=seed, prevalence=prevalence, alike=alike)
        patients = breasts["patient_id"].to_numpy(int)
        for name, table in {"within": breasts, "pooled": breasts.assign(fold=0)}.items():
            interval = find_auc_interval(estimate_auc_of(table, patients, patients.max() + 1))
            found[name].append(interval and (interval.low, interval.high))
        if num_replicates:
            sums = add_up_patients({"all": breasts})
            values = replicate(sums, num_replicates=num_replicates)["all"]["auc"]
            drawn = find_interval(values)
            found["bootstrap"].append(drawn and (drawn.low, drawn.high))
    return {name: _summarise(intervals, auc) for name, intervals in found.items() if intervals}


def cover_recall_rate(num_cancers: int, *, auc: float, num_runs: int, rate: int = 2) -> Coverage:
    """Measures the interval of the sensitivity at a recall rate in per cent, of women without end."""
    many = draw_breasts(5_000, auc=auc, seed=0, alike=True)
    highest = many.groupby("patient_id")["probability"].max()
    is_found = many["probability"] >= highest.quantile(1 - rate / 100)
    truth = float(is_found[many["cancer"] == 1].mean())
    intervals = []
    for seed in range(num_runs):
        breasts = draw_breasts(num_cancers, auc=auc, seed=seed + 1)
        estimate = estimate_all({"all": breasts}, num_replicates=2)["all"]  # it needs none
        interval = estimate.intervals.get(f"sensitivity_at_recall_rate_{rate}")
        intervals.append(interval and (interval.low, interval.high))
    return _summarise(intervals, truth)


def cover_sensitivity(
    num_cancers: int, *, auc: float, num_runs: int, num_replicates: int, prevalence: float = PREVALENCE
) -> Coverage:
    """Measures the interval of the sensitivity at a specificity of 90 %."""
    truth = float(norm.sf(norm.isf(0.1) - np.sqrt(2) * norm.ppf(auc)))
    intervals = []
    for seed in range(num_runs):
        breasts = draw_breasts(num_cancers, auc=auc, seed=seed, prevalence=prevalence)
        estimate = estimate_all({"all": breasts}, num_replicates=num_replicates)["all"]
        interval = estimate.intervals.get("sensitivity_at_specificity_90")
        intervals.append(interval and (interval.low, interval.high))
    return _summarise(intervals, truth)


def compare_equals(
    num_runs: int, *, num_cancers: int = 60, num_replicates: int = 2_000
) -> tuple[Counter[str], int]:
    """Compares runs that are equally good and not the same.

    Returns:
        The verdicts on the primary figure, and in how many comparisons any figure is `better` or `worse`.
    """
    verdicts: Counter[str] = Counter()
    num_any = 0
    for seed in range(num_runs):
        generator = np.random.default_rng(seed)
        truth = draw_breasts(num_cancers, auc=0.85, seed=seed, prevalence=0.06, alike=True)
        oof = truth.assign(image_id=np.arange(len(truth)).astype(str))[OOF_COLUMNS]
        runs = {
            name: oof.assign(probability=expit(_to_logit(oof) + generator.normal(0, 0.7, len(oof))))
            for name in ("first", "second")
        }
        found = compare(runs, num_replicates=num_replicates, seed=seed)
        verdicts[found[0].verdict] += 1
        num_any += any(each.verdict in {"better", "worse"} for each in found)
    return verdicts, num_any


def score_crops_at_random(folder: Path, num_draws: int) -> dict[str, np.ndarray]:
    """Puts random numbers in place of a model's answers on the real crops.

    Returns:
        By way to join a breast's images, the AUC of each draw; `weighted` is that of images, each counting
        as one over its breast's number. `audit` is what counting has out of fold.
    """
    text = dict.fromkeys(["patient_id", "image_id", "site_id", "machine_id", "implant"], "str")
    rows = pd.read_csv(folder / "train.csv", dtype=text)
    patients = pd.factorize(rows["patient_id"])[0]
    rows["fold"] = np.random.default_rng(0).permutation(patients.max() + 1)[patients] % NUM_FOLDS
    weights = weigh_images(rows)
    found: dict[str, list[float]] = {}
    for seed in range(num_draws):
        scores = np.random.default_rng(seed).normal(-3, 1, len(rows))
        images = rows.assign(probability=expit(scores), threshold=np.nan)
        breast = images.groupby(["patient_id", "laterality"])
        keep = breast["cancer"].first().reset_index().assign(fold=breast["fold"].first().to_numpy())
        joined = {
            "mean of logits": to_breasts(images),
            "highest": to_breasts(images, "max"),
            "mean of probabilities": keep.assign(probability=breast["probability"].mean().to_numpy()),
            "sum of probabilities": keep.assign(probability=breast["probability"].sum().to_numpy()),
        }
        aucs = {
            name: estimate_auc_of(table, pd.factorize(table["patient_id"])[0], len(rows))
            for name, table in joined.items()
        }
        aucs["images"] = estimate_auc_of(images, patients, patients.max() + 1)
        aucs["weighted"] = estimate_auc_of(images, patients, patients.max() + 1, weights=weights)
        for name, estimate in aucs.items():
            found.setdefault(name, []).append(estimate.auc or np.nan)
    images = rows.assign(probability=0.5)
    traits = audit_shortcuts(images, to_breasts(images)).traits
    found["audit"] = [
        each.auc or np.nan
        for each in traits
        if each.level == "breast" and each.trait in {NUM_IMAGES, BOTH_VIEWS}
    ]
    return {name: np.array(values) for name, values in found.items()}


def _to_logit(oof: pd.DataFrame) -> np.ndarray:
    return np.log(oof["probability"] / (1 - oof["probability"])).to_numpy()


def _summarise(intervals: list[tuple[float, float] | None], truth: float) -> Coverage:
    known = np.array([interval for interval in intervals if interval])
    low, high = known[:, 0], known[:, 1]
    return Coverage(
        float(((low <= truth) & (truth <= high)).mean()),
        float((low > truth).mean()),
        float((high - low).mean()),
        len(intervals) - len(known),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=800)
    num_runs = parser.parse_args().runs
    for num_cancers, prevalence in [(8, 8 / 28), (10, PREVALENCE), (60, PREVALENCE), (500, PREVALENCE)]:
        for auc in (0.7, 0.922):
            most = num_runs if num_cancers < 500 else num_runs // 4
            drawn = 500 if num_cancers <= 60 else 0
            found = cover(num_cancers, auc=auc, num_runs=most, prevalence=prevalence, num_replicates=drawn)
            for name, each in found.items():
                print(f"{num_cancers} cancers, AUC {auc}, {name}: {each}", flush=True)
    for num_cancers in (10, 60):
        shared = {"auc": 0.85, "num_runs": num_runs // 4, "num_replicates": 500}
        print(f"{num_cancers} cancers, sensitivity: {cover_sensitivity(num_cancers, **shared)}", flush=True)
    for num_cancers in (10, 20, 60):
        for auc in (0.7, 0.85, 0.922):
            found = cover_recall_rate(num_cancers, auc=auc, num_runs=num_runs)
            print(f"{num_cancers} cancers, AUC {auc}, sensitivity at 2 % recalled: {found}", flush=True)
    verdicts, num_any = compare_equals(num_runs // 2)
    print(f"equal runs, primary figure: {dict(verdicts)}; any figure: {num_any}", flush=True)
    if folder := os.environ.get("MAMMO_REAL_DATA"):
        for name, values in score_crops_at_random(Path(folder) / "rsna_png256", 200).items():
            print(f"random numbers on real crops, {name}: {values.mean():.3f} +- {values.std():.3f}")


if __name__ == "__main__":
    main()
