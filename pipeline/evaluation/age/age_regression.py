"""The probability of cancer by pixels and age: a logistic regression, cross-fitted over a run's folds.

What is learned of a fold's women is learned of the out-of-fold predictions of all other folds, so that it is
as honest as these (Wolpert 1992, "Stacked generalization", Neural Networks 5:241). Pixels enter by the normal
score of a breast's log-odds among those of its fold (van der Waerden 1952): folds are different models, and
one that has learned to be sure crowds most breasts together, where any other number beside it would decide.
The breasts are then ranked by both, and each gets the log-odds that its new rank has among those of the
pixels: probabilities stay on the scale of their model. Its images move with it, and come closer to one
another as the pixels count less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.external.case_tables import BESIDE, FOLD_PROBABILITY, list_fold_columns
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.patient_stats import Floats

AGE = "age"
BY_PIXELS, BY_AGE = BESIDE
MIDDLE, DECADE = 60.0, 10.0
DEVIATIONS = np.array([3.0, 0.3, 0.3])
"""Of the normal priors of `slope`, `per_decade` and `unknown`; the intercept has none.

In screening the odds rise by a third to a half in ten years. Without these priors, an age that tells nothing
costs most where cancers are few.
"""
MOST_KNOTS = 1000
"""Breasts that a fold's scores are kept of."""
SMALLEST_STEP = 1e-4
"""Between the log-odds of two of them: what differs by less differs by the arithmetic."""


@dataclass(frozen=True)
class NormalScores:
    """Log-odds to normal scores, in lines between those of a fold's breasts, and on with a slope of 1 beyond.

    Attributes:
        log_odds: rising; empty leaves all as it is.
        scores: of each, rising.
    """

    log_odds: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    @classmethod
    def of(cls, log_odds_N: Floats) -> "NormalScores":
        """Learns the scores of breasts; equal ones share the middle of their ranks."""
        known, counts = np.unique(log_odds_N, return_counts=True)
        scores = norm.ppf((np.cumsum(counts) - counts / 2) / len(log_odds_N))
        if len(known) > MOST_KNOTS:  # evenly over the scores
            chosen = np.unique(np.searchsorted(scores, np.linspace(scores[0], scores[-1], MOST_KNOTS)))
            known, scores = known[chosen], scores[chosen]
        kept: list[int] = []
        for place, value in enumerate(known.tolist()):
            if not kept or value >= known[kept[-1]] + SMALLEST_STEP:
                kept.append(place)
        return cls(tuple(known[kept].tolist()), tuple(scores[kept].tolist()))

    @property
    def steepness(self) -> float:
        """By how much a difference of log-odds may have grown on the way to scores and back."""
        if len(self.log_odds) < 2:
            return 1.0
        slopes = np.append(np.diff(self.scores) / np.diff(self.log_odds), 1.0)
        return float(slopes.max() / slopes.min())

    def __call__(self, log_odds_N: Floats) -> Floats:
        """Returns the score of each."""
        return _interpolate(log_odds_N, self.log_odds, self.scores)

    def invert(self, scores_N: Floats) -> Floats:
        """Returns the log-odds that have these scores."""
        return _interpolate(scores_N, self.scores, self.log_odds)


@dataclass(frozen=True)
class AgeRegression:
    """log-odds of cancer = intercept + slope * score of the pixels + per_decade * (age - 60) / 10.

    An unknown age counts as 60 and adds `unknown`. The slope is never negative: where the pixels' ranking is
    no better than chance, age decides alone.

    Attributes:
        scores: of the pixels of the fold's breasts.
        scores_of_both: of their sums without the intercept; empty where the log-odds stay those of cancer.
        share: how much of these sums' variance is the pixels'.
    """

    intercept: float
    slope: float
    per_decade: float
    unknown: float
    scores: NormalScores = field(default=NormalScores(), repr=False)
    scores_of_both: NormalScores = field(default=NormalScores(), repr=False)
    share: float = 1.0

    def of_fold(self, log_odds_N: Floats, ages_N: Floats) -> "AgeRegression":
        """Returns the same for the model whose fold has these breasts."""
        own = replace(self, scores=NormalScores.of(log_odds_N))
        both_N, by_pixels_N = own.add_up(log_odds_N, ages_N), self.slope * own.scores(log_odds_N)
        share = min(1.0, float(by_pixels_N.var() / (both_N.var() or 1.0)))
        return replace(own, scores_of_both=NormalScores.of(both_N), share=share)

    def add_up(self, log_odds_N: Floats, ages_N: Floats) -> Floats:
        """Returns the sum of both parts, without the intercept."""
        by_pixels_N = self.slope * self.scores(log_odds_N) if self.slope else 0.0
        return np.asarray(by_pixels_N + encode_ages(ages_N) @ [self.per_decade, self.unknown])

    def __call__(self, log_odds_N: Floats, ages_N: Floats) -> Floats:
        """Returns the log-odds by both, on the scale of the pixels' model; by age alone, of cancer itself.

        Args:
            log_odds_N: of breasts, by pixels; NaN is unknown, and stays so unless age decides alone.
            ages_N: in years; NaN is unknown.
        """
        both_N = self.add_up(log_odds_N, ages_N)
        if not self.scores_of_both.log_odds:
            return np.asarray(self.intercept + both_N)
        return self.scores.invert(self.scores_of_both(both_N))


class FoldRegressions(NamedTuple):
    """What belongs to one fold's model: age beside its pixels, and age alone."""

    both: AgeRegression
    age: AgeRegression


def fit_age_regression(labels_N: Floats, scores_N: Floats | None, ages_N: Floats) -> AgeRegression:
    """Fits the regression on breasts by the scores of their pixels; without scores, age alone.

    With one class there is nothing to learn: the pixels' log-odds stay as they are, and age alone says what
    share of the breasts has cancer.
    """
    if len(np.unique(labels_N)) < 2:
        if scores_N is not None:
            return AgeRegression(0.0, 1.0, 0.0, 0.0)
        return AgeRegression(float(to_logits(labels_N.mean())), 0.0, 0.0, 0.0)
    is_alone = scores_N is None
    scores_N = np.zeros_like(ages_N) if scores_N is None else scores_N
    columns = np.column_stack([scores_N, encode_ages(ages_N)]) * DEVIATIONS
    fitted = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(
        columns, labels_N
    )  # priors of deviation 1
    slope, per_decade, unknown = (DEVIATIONS * fitted.coef_[0]).tolist()
    if slope < 0 and not is_alone:  # the best without a negative slope has none: the loss is convex
        return fit_age_regression(labels_N, None, ages_N)
    return AgeRegression(float(fitted.intercept_[0]), slope, per_decade, unknown)


def fit_folds(oof: pd.DataFrame) -> dict[int, FoldRegressions]:
    """Fits the regressions of each fold on the out-of-fold breasts of all others.

    Args:
        oof: as `collect_oof` gives it, with or without what age adds.
    """
    breasts = _find_breasts(oof, _by_pixels(oof)["probability"])
    folds, log_odds_N, ages_N = (breasts[name].to_numpy(np.float64) for name in ("fold", "log_odds", AGE))
    labels_N, scores_N = breasts["cancer"].to_numpy(np.float64), np.empty_like(log_odds_N)
    for fold in np.unique(folds):
        own = folds == fold
        scores_N[own] = NormalScores.of(log_odds_N[own])(log_odds_N[own])
    fitted = {}
    for fold in np.unique(folds):
        own, others = folds == fold, folds != fold
        both = fit_age_regression(labels_N[others], scores_N[others], ages_N[others])
        if np.unique(labels_N[others]).size == 2:
            both = both.of_fold(log_odds_N[own], ages_N[own])
        alone = fit_age_regression(labels_N[others], None, ages_N[others])
        fitted[int(fold)] = FoldRegressions(both, alone)
    return fitted


def add_age_to_oof(oof: pd.DataFrame) -> pd.DataFrame:
    """Returns out-of-fold predictions by pixels and age, with those by either alone beside them."""
    oof, fitted = _by_pixels(oof), fit_folds(oof)
    parts = [_add(part, part["probability"], fitted[int(str(fold))]) for fold, part in oof.groupby("fold")]
    return pd.concat(parts).loc[oof.index]


def add_age_to_ensemble(images: pd.DataFrame, fitted: Mapping[int, FoldRegressions]) -> pd.DataFrame:
    """Does the same for predictions of all folds' models together; a probability is the models' mean.

    Args:
        images: with `probability_fold_<k>` of each fold's pixels, which become those of both.
        fitted: of the run's folds.
    """
    said = {
        name: _add(images, images[name], fitted[int(name.removeprefix(FOLD_PROBABILITY))])
        for name in list_fold_columns(images)
    }
    means = {
        name: np.mean([of_fold[name].to_numpy() for of_fold in said.values()], axis=0)
        for name in ("probability", BY_AGE)
    }
    of_folds = {name: of_fold["probability"] for name, of_fold in said.items()}
    return images.assign(**{BY_PIXELS: images["probability"]}, **means, **of_folds)


def _add(images: pd.DataFrame, by_pixels: "pd.Series[float]", fitted: FoldRegressions) -> pd.DataFrame:
    """Adds what pixels and age say of each breast, around which its images lie."""
    breast, log_odds_N = name_breast(images), to_logits(by_pixels)
    log_odds_N = np.where(by_pixels.isna(), np.nan, log_odds_N)
    told = images.assign(log_odds=log_odds_N, **{AGE: read_ages(images)})
    of_breast_N, ages_N = told.groupby(breast)[["log_odds", AGE]].transform("mean").to_numpy(np.float64).T
    both_N = np.where(by_pixels.isna(), np.nan, fitted.both(of_breast_N, ages_N))
    both_N = expit(both_N + fitted.both.share * (log_odds_N - of_breast_N))
    said = {BY_PIXELS: by_pixels, BY_AGE: expit(fitted.age(of_breast_N, ages_N)), "probability": both_N}
    return images.assign(**said)


def read_ages(images: pd.DataFrame) -> Floats:
    """Returns the age of each image's woman in years; NaN where it is not known."""
    if AGE not in images:
        return np.full(len(images), np.nan)
    return np.asarray(pd.to_numeric(images[AGE], errors="coerce"), np.float64)


def knows_no_age(images: pd.DataFrame) -> bool:
    """Whether the age of no woman is known."""
    return bool(np.isnan(read_ages(images)).all())


def _by_pixels(oof: pd.DataFrame) -> pd.DataFrame:
    return oof.assign(probability=oof[BY_PIXELS]) if BY_PIXELS in oof else oof


def _find_breasts(images: pd.DataFrame, by_pixels: "pd.Series[float]") -> pd.DataFrame:
    """Returns fold, cancer, mean log-odds of the pixels and age of each breast."""
    told = images.assign(log_odds=to_logits(by_pixels), **{AGE: read_ages(images)})
    told = told.sort_values([*name_breast(images), "log_odds"])  # a mean of floats depends on their order
    kept: dict[str, Any] = {name: (name, "first") for name in ("fold", "cancer")}
    kept |= {name: (name, "mean") for name in ("log_odds", AGE)}
    return told.groupby(name_breast(images), as_index=False).agg(**kept)


def _interpolate(values_N: Floats, known: tuple[float, ...], theirs: tuple[float, ...]) -> Floats:
    if not known:
        return values_N
    inside_N = np.clip(values_N, known[0], known[-1])
    return np.asarray(np.interp(inside_N, known, theirs) + (values_N - inside_N))


def encode_ages(ages_N: Floats) -> Floats:
    """Returns decades from the middle, 0 where unknown, and whether it is unknown: [N, 2]."""
    is_unknown_N = np.isnan(ages_N)
    decades_N = np.where(is_unknown_N, 0.0, (ages_N - MIDDLE) / DECADE)
    return np.stack([decades_N, is_unknown_N.astype(np.float64)], axis=1)
