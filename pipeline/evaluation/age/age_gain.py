"""What the woman's age adds to the pixels, and the pixels to her age: three rankings of the same images."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from pipeline.evaluation.age.age_regression import (
    BY_AGE,
    BY_PIXELS,
    FoldRegressions,
    add_age_to_ensemble,
    add_age_to_oof,
    fit_folds,
    knows_no_age,
    read_ages,
)
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.estimates import (
    AUC_WEIGHTED,
    FEW_CANCERS,
    estimate_auc_of,
    number_patients,
    weigh_images,
)
from pipeline.evaluation.uncertainty.auc_variance import AucEstimate, find_auc_interval, find_difference

PIXELS, AGE_ALONE, BOTH = "pixels", "age", "pixels and age"
NOT_RECORDED = "no age is recorded"


@dataclass(frozen=True)
class AgeRow:
    """The ranking by one of the three.

    Attributes:
        auc: the leading figure; None where a class is missing.
        interval: its 95 % interval.
        loss: by how much the AUC of both exceeds it; None of both.
        loss_interval: the paired 95 % interval of that.
        p: two-sided, of there being no such difference.
    """

    auc: float | None
    interval: Interval | None
    loss: float | None = None
    loss_interval: Interval | None = None
    p: float | None = None


@dataclass(frozen=True)
class AgeGain:
    """Pixels, age, and both.

    Attributes:
        figure: the AUC that leads: `auc` of breasts, or `auc_weighted` of images.
        rows: by `PIXELS`, `AGE_ALONE`, `BOTH`; empty where nothing is known.
        is_used: whether the run's probabilities are those of both.
        share_unknown: of the images, how many have no age.
        unknown_by_label: the same of images without and with cancer.
        has_few_cancers: whether too few women have cancer to tell anything apart.
        regressions: of each fold; empty of an external set.
        undefined: why nothing is known; empty otherwise.
    """

    figure: str = "auc"
    rows: dict[str, AgeRow] = field(default_factory=dict)
    is_used: bool = False
    share_unknown: float = 1.0
    unknown_by_label: tuple[float, float] = (1.0, 1.0)
    has_few_cancers: bool = True
    regressions: Mapping[int, FoldRegressions] = field(default_factory=dict)
    undefined: str = ""


def measure_age(oof: pd.DataFrame, *, counting_tells: bool) -> AgeGain:
    """Measures out of fold what age adds, whether or not the run takes it.

    Args:
        oof: as `collect_oof` gives it.
        counting_tells: whether images lead, each counting as one over its breast's number.
    """
    if knows_no_age(oof):
        return AgeGain(is_used=BY_PIXELS in oof, undefined=NOT_RECORDED)
    is_used = BY_PIXELS in oof
    found = _compare(oof if is_used else add_age_to_oof(oof), counting_tells=counting_tells)
    return replace(found, is_used=is_used, regressions=fit_folds(oof))


def measure_age_elsewhere(images: pd.DataFrame, oof: pd.DataFrame, *, counting_tells: bool) -> AgeGain:
    """Does the same on an external set, with what the run's own `oof` teaches.

    Args:
        images: with `probability_fold_<k>`.
        oof: the run's own, as `collect_oof` gives it.
        counting_tells: as above.
    """
    unknown = [name for name, table in {"here": images, "of the run": oof}.items() if knows_no_age(table)]
    if unknown:
        return AgeGain(is_used=BY_PIXELS in oof, undefined=f"{NOT_RECORDED} {unknown[0]}")
    is_used = BY_PIXELS in images
    by_all = images if is_used else add_age_to_ensemble(images, fit_folds(oof))
    return replace(_compare(by_all, counting_tells=counting_tells), is_used=is_used)


def _compare(images: pd.DataFrame, *, counting_tells: bool) -> AgeGain:
    """Compares the three rankings of images that have all three probabilities."""
    columns = {PIXELS: BY_PIXELS, AGE_ALONE: BY_AGE, BOTH: "probability"}
    tables = {name: images.assign(probability=images[column]) for name, column in columns.items()}
    figure = AUC_WEIGHTED if counting_tells else "auc"
    aucs = _estimate(tables, figure)
    return AgeGain(
        figure=figure,
        rows={name: _make_row(auc, aucs[BOTH], is_both=name == BOTH) for name, auc in aucs.items()},
        share_unknown=float(np.isnan(read_ages(images)).mean()),
        unknown_by_label=_count_unknown(images, 0, 1),
        has_few_cancers=images.loc[images["cancer"] == 1, "patient_id"].nunique() < FEW_CANCERS,
    )


def _count_unknown(images: pd.DataFrame, *labels: int) -> tuple[float, float]:
    is_unknown = pd.Series(np.isnan(read_ages(images)), index=images.index)
    healthy, sick = (float(is_unknown[images["cancer"] == label].mean()) for label in labels)
    return healthy, sick


def _estimate(tables: Mapping[str, pd.DataFrame], figure: str) -> dict[str, AucEstimate]:
    if figure == AUC_WEIGHTED:
        numbers, num_patients = number_patients(tables)
        return {
            name: estimate_auc_of(table, numbers[name], num_patients, weights=weigh_images(table))
            for name, table in tables.items()
        }
    breasts = {name: to_breasts(table) for name, table in tables.items()}
    numbers, num_patients = number_patients(breasts)
    return {name: estimate_auc_of(table, numbers[name], num_patients) for name, table in breasts.items()}


def _make_row(estimate: AucEstimate, both: AucEstimate, *, is_both: bool) -> AgeRow:
    row = AgeRow(estimate.auc, find_auc_interval(estimate))
    if is_both or estimate.auc is None or both.auc is None:
        return row
    interval, p = find_difference(both, estimate)
    return AgeRow(row.auc, row.interval, both.auc - estimate.auc, interval, p)
