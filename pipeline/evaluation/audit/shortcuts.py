"""How well each trait alone tells cancer from none, out of fold.

Each prediction is scored by the share of cancers among the other folds' predictions with the same value,
drawn towards the share of all. Numbers are cut at the other folds' deciles, so that a trait may tell the
label in any direction, and from the middle as from the ends. What tells nothing scores 0.5 or a little less.
Predictions of one model, as of an external set, are dealt into folds by patient for this alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.rsna.exam_table import sort_by_id
from pipeline.evaluation.audit.traits import (
    AGE,
    BOTH_VIEWS,
    NUM_IMAGES,
    describe_breast_traits,
    describe_image_traits,
    explain_missing_traits,
)
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.patient_stats import Floats, Integers
from pipeline.evaluation.uncertainty.auc_variance import (
    estimate_auc,
    find_auc_interval,
    find_p_of_guessing,
)
from pipeline.evaluation.uncertainty.intervals import LARGEST_P, correct_by_holm

LARGEST_AUC = 0.60
"""What more than this can tell without a pixel is a shortcut."""
NUM_BINS = 10
NUM_DEALT = 5
"""Folds that predictions of one model are dealt into."""
PRIOR_STRENGTH = 10.0
"""Predictions with the share of all that each value starts with."""
COUNTING = {NUM_IMAGES, BOTH_VIEWS}
AUDIT_COLUMNS = ["level", "trait", "auc", "low", "high", "p", "is_shortcut"]


@dataclass(frozen=True)
class TraitAuc:
    """How well a trait alone tells cancer from none.

    Attributes:
        level: `breast` or `image`.
        auc: out of fold, over the pairs within folds; None where a class is missing.
        interval: of 95 %.
        p: one-sided, of its telling nothing; by Holm's correction for all traits, or for those that count.
    """

    level: str
    trait: str
    auc: float | None
    interval: Interval | None
    p: float

    @property
    def is_shortcut(self) -> bool:
        """Whether it tells too much, beyond chance. Age may: older women have more cancers everywhere."""
        return self.trait != AGE and self.auc is not None and self.auc > LARGEST_AUC and self.p <= LARGEST_P


@dataclass(frozen=True)
class ShortcutAudit:
    """What tells the label without a look at a pixel.

    Attributes:
        traits: breasts' first.
        not_looked_at: why some traits are not there.
    """

    traits: list[TraitAuc]
    not_looked_at: dict[str, str]

    @property
    def shortcuts(self) -> list[TraitAuc]:
        """The traits that tell too much, the best first."""
        return sorted((each for each in self.traits if each.is_shortcut), key=lambda each: -(each.auc or 0))

    @property
    def counting_tells(self) -> bool:
        """Whether counting a breast's images tells, which spoils all but the images' weighted figures."""
        return any(each.trait in COUNTING for each in self.shortcuts)


def audit_shortcuts(
    oof: pd.DataFrame, breasts: pd.DataFrame, files: pd.DataFrame | None = None, *, no_files: str = ""
) -> ShortcutAudit:
    """Judges each trait of breasts and of images.

    Args:
        oof: one row per image.
        breasts: the same as breasts.
        files: as `read_file_traits` gives them; None where there are none.
        no_files: why not.
    """
    of_images = describe_image_traits(oof, files)
    judged = _judge_all(oof, breasts, of_images)
    return ShortcutAudit(judged, explain_missing_traits(oof, of_images, no_files))


def does_counting_tell(oof: pd.DataFrame, breasts: pd.DataFrame) -> bool:
    """Whether the number of a breast's images, or which views are there, tells the label."""
    return find_telling_count(oof, breasts) is not None


def find_telling_count(oof: pd.DataFrame, breasts: pd.DataFrame) -> TraitAuc | None:
    """Returns what of a breast's images, counted, tells the label best; None if nothing does."""
    of_images = describe_image_traits(oof, None)
    of_images = of_images[[trait for trait in of_images if trait in COUNTING]]
    return next(iter(ShortcutAudit(_judge_all(oof, breasts, of_images), {}).shortcuts), None)


def tabulate_audit(audit: ShortcutAudit) -> pd.DataFrame:
    """Makes the table of `shortcut_audit.csv`."""
    rows = []
    for each in audit.traits:
        low, high = (each.interval.low, each.interval.high) if each.interval else (None, None)
        rows.append((each.level, each.trait, each.auc, low, high, each.p, each.is_shortcut))
    return pd.DataFrame(rows, columns=AUDIT_COLUMNS)


def score_out_of_fold(trait: "pd.Series[float] | pd.Series[str]", labels: Floats, folds: Floats) -> Floats:
    """Returns the drawn-in share of cancers in the other folds with each prediction's value, 0 to 1."""
    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        own = folds == fold
        codes = _cut(trait, ~own)
        prior = float(labels[~own].mean()) if (~own).any() else 0.0
        sizes = np.bincount(codes[~own], minlength=codes.max() + 1)
        cancers = np.bincount(codes[~own], weights=labels[~own], minlength=codes.max() + 1)
        shares = (cancers + PRIOR_STRENGTH * prior) / (sizes + PRIOR_STRENGTH)
        scores[own] = shares[codes[own]]
    return scores


def _cut(trait: "pd.Series[float] | pd.Series[str]", others: NDArray[np.bool_]) -> Integers:
    """Numbers a trait's values from 0, many different numbers by the deciles of the others."""
    if not pd.api.types.is_numeric_dtype(trait):
        return pd.factorize(trait)[0]
    values = trait.to_numpy(np.float64)
    known = values[others & ~np.isnan(values)]
    edges = np.unique(known)
    if len(edges) > NUM_BINS:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))


def _judge_all(oof: pd.DataFrame, breasts: pd.DataFrame, of_images: pd.DataFrame) -> list[TraitAuc]:
    """Judges these traits of breasts and of images, the breasts' first."""
    if len(oof["fold"].unique()) == 1:
        fold_of = deal_patients(oof)
        oof, breasts = (table.assign(fold=table["patient_id"].map(fold_of)) for table in (oof, breasts))
    levels: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]] = {
        "breast": (breasts, describe_breast_traits(oof, of_images, breasts)),
        "image": (oof, of_images),
    }
    judged = [
        judge_trait(level, str(trait), table, traits[trait])
        for level, (table, traits) in levels.items()
        for trait in traits
    ]
    return _correct(judged)


def deal_patients(images: pd.DataFrame) -> "pd.Series[int]":
    """Returns a fold for each patient id: those with cancer are dealt out first, each class by its ids."""
    cancers = images.groupby("patient_id")["cancer"].max()
    patients = sort_by_id(cancers.reset_index(), ["patient_id"]).sort_values(
        "cancer", ascending=False, kind="stable"
    )
    return pd.Series(np.arange(len(patients)) % NUM_DEALT, index=patients["patient_id"])


def judge_trait(
    level: str, trait: str, table: pd.DataFrame, values: "pd.Series[float] | pd.Series[str]"
) -> TraitAuc:
    """Judges a trait of predictions, in the order of their table; its p value is not corrected."""
    labels, folds = table["cancer"].to_numpy(np.float64), table["fold"].to_numpy()
    patients = pd.factorize(table["patient_id"])[0]
    scores = score_out_of_fold(values, labels, folds)
    found = estimate_auc(labels, scores, patients, num_patients=int(patients.max()) + 1, folds=folds)
    return TraitAuc(level, trait, found.auc, find_auc_interval(found), find_p_of_guessing(found))


def _correct(judged: list[TraitAuc]) -> list[TraitAuc]:
    """Corrects the p values: among many traits one tells something by chance.

    Those that count images are corrected among themselves, so that they are judged alike where nothing else
    is looked at.
    """
    corrected = []
    for counts in (True, False):
        family = [each for each in judged if (each.trait in COUNTING) == counts]
        p_values = correct_by_holm([each.p for each in family])
        corrected += [replace(each, p=p) for each, p in zip(family, p_values, strict=True)]
    by_name = {(each.level, each.trait): each for each in corrected}
    return [by_name[each.level, each.trait] for each in judged]
