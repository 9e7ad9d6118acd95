"""The probability of cancer by pixels and age: a logistic regression, cross-fitted over a run's folds.

What is learned of a fold's women is learned of the out-of-fold predictions of all other folds, so that it is
as honest as these (Wolpert 1992, "Stacked generalization", Neural Networks 5:241). Age is the same for all
images of an exam: a breast's mean logit has the very formula that its images have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.external.case_tables import BESIDE, FOLD_PROBABILITY, list_fold_columns
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.patient_stats import Floats

AGE = "age"
BY_PIXELS, BY_AGE = BESIDE
MIDDLE, DECADE = 60.0, 10.0
PRIOR_DEVIATION = 1.0
"""Of each coefficient's normal prior, on the log-odds; the intercept has none."""


@dataclass(frozen=True)
class AgeRegression:
    """log-odds = intercept + slope * the pixels' log-odds + per_decade * (age - 60) / 10.

    An unknown age counts as 60 and adds `unknown`. The slope is never negative: where the pixels' ranking is
    no better than chance, age decides alone.
    """

    intercept: float
    slope: float
    per_decade: float
    unknown: float

    def __call__(self, probabilities_N: Floats, ages_N: Floats) -> Floats:
        """Returns the probability of cancer by both; NaN where that of the pixels is, unless age is alone.

        Args:
            probabilities_N: by pixels.
            ages_N: in years; NaN is unknown.
        """
        by_pixels_N = self.slope * to_logits(probabilities_N) if self.slope else 0.0
        by_age_N = _encode(ages_N) @ [self.per_decade, self.unknown]
        return np.asarray(expit(self.intercept + by_pixels_N + by_age_N))


class FoldRegressions(NamedTuple):
    """What belongs to one fold's model: age beside its pixels, and age alone."""

    both: AgeRegression
    age: AgeRegression


def fit_age_regression(
    labels_N: Floats, probabilities_N: Floats, ages_N: Floats, *, with_pixels: bool = True
) -> AgeRegression:
    """Fits the regression on breasts; without pixels, age alone.

    With one class there is nothing to learn: both then leave the pixels' probability as it is, and age alone
    answers 0.5.
    """
    if len(np.unique(labels_N)) < 2:
        return AgeRegression(0.0, 1.0 if with_pixels else 0.0, 0.0, 0.0)
    columns = [_encode(ages_N)]
    if with_pixels:
        columns = [to_logits(probabilities_N)[:, None], *columns]
    fitted = LogisticRegression(C=PRIOR_DEVIATION**2, tol=1e-8, max_iter=1000)
    fitted.fit(np.hstack(columns), labels_N)
    slope, per_decade, unknown = [0.0, *fitted.coef_[0]][-3:]
    if slope < 0:  # the best of those without a negative slope has none: the loss is convex
        return fit_age_regression(labels_N, probabilities_N, ages_N, with_pixels=False)
    return AgeRegression(float(fitted.intercept_[0]), float(slope), float(per_decade), float(unknown))


def fit_folds(oof: pd.DataFrame) -> dict[int, FoldRegressions]:
    """Fits the regressions of each fold on the out-of-fold breasts of all others.

    Args:
        oof: as `collect_oof` gives it, with or without what age adds.
    """
    breasts = _with_ages(to_breasts(_by_pixels(oof)), oof)
    columns = ("cancer", "probability", AGE)
    fitted = {}
    for fold in sorted(breasts["fold"].unique()):
        others = breasts[breasts["fold"] != fold]
        labels_N, probabilities_N, ages_N = (others[name].to_numpy(np.float64) for name in columns)
        both = fit_age_regression(labels_N, probabilities_N, ages_N)
        alone = fit_age_regression(labels_N, probabilities_N, ages_N, with_pixels=False)
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
    probabilities_N: Floats = np.asarray(by_pixels, np.float64)
    ages_N = read_ages(images)
    both_N = np.where(np.isnan(probabilities_N), np.nan, fitted.both(probabilities_N, ages_N))
    said = {BY_PIXELS: probabilities_N, BY_AGE: fitted.age(probabilities_N, ages_N), "probability": both_N}
    return images.assign(**said)


def read_ages(images: pd.DataFrame) -> Floats:
    """Returns the age of each image's woman in years; NaN where it is not known."""
    if AGE not in images:
        return np.full(len(images), np.nan)
    return np.asarray(pd.to_numeric(images[AGE], errors="coerce"), np.float64)


def _by_pixels(oof: pd.DataFrame) -> pd.DataFrame:
    return oof.assign(probability=oof[BY_PIXELS]) if BY_PIXELS in oof else oof


def _with_ages(breasts: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    breast = name_breast(images)
    ages = images.assign(**{AGE: read_ages(images)}).groupby(breast, as_index=False)[AGE].mean()
    return breasts.merge(ages, on=breast, validate="one_to_one")


def _encode(ages_N: Floats) -> Floats:
    """Returns decades from the middle, 0 where unknown, and whether it is unknown: [N, 2]."""
    is_unknown_N = np.isnan(ages_N)
    decades_N = np.where(is_unknown_N, 0.0, (ages_N - MIDDLE) / DECADE)
    return np.stack([decades_N, is_unknown_N.astype(np.float64)], axis=1)
