"""Label-stratified folds that keep each patient, and patients who belong together, in one."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from data_prep.errors import UserError
from data_prep.rsna.exam_table import sort_by_id


def make_folds(
    exams: pd.DataFrame,
    *,
    num_folds: int,
    seed: int,
    groups: "pd.Series[str] | None" = None,
    known: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Gives every patient a fold, with about the same share of cancer images in each.

    Args:
        exams: checked exams with `cancer`, in any order.
        num_folds: 2 or more.
        seed: for the order in which scikit-learn deals the patients out.
        groups: by the index of `exams`; patients of one group come into one fold. None: each is on their own.
        known: patients' folds of an earlier cross-validation, which they keep; all others are dealt out.

    Returns:
        `patient_id` and `fold` (0 to num_folds - 1), one row per patient, sorted by id.

    Raises:
        UserError: if a fold would lack a breast with cancer or one without, or a group has two known folds.
    """
    groups = exams["patient_id"] if groups is None else groups
    exams = sort_by_id(exams.assign(group=groups), ["patient_id", "image_id"])
    _require_enough_patients(exams, num_folds)
    exams["fold"] = 0
    if known:
        exams["fold"] = _deal_out_new(exams, num_folds, seed, known)
    else:
        splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
        parts = splitter.split(exams, exams["cancer"], groups=exams["group"])
        for fold, (_, validation) in enumerate(parts):
            exams.loc[validation, "fold"] = fold
    _require_both_labels(exams, num_folds)
    folds = exams[["patient_id", "fold"]].drop_duplicates(ignore_index=True)
    if not folds["patient_id"].is_unique:
        raise AssertionError("a patient in two folds")
    return folds


def _deal_out_new(
    exams: pd.DataFrame, num_folds: int, seed: int, known: Mapping[str, int]
) -> "pd.Series[int]":
    """Returns each image's fold: that of its group, or else the one that has the least so far.

    That is of cancer images for a group with cancer, and of images for one without. Groups with the most
    cancer images come first, those with as many in an order drawn by the seed.
    """
    earlier = exams["patient_id"].map(known)
    folds = earlier.groupby(exams["group"]).agg(["min", "max"])
    torn = folds.index[folds["min"] < folds["max"]]
    if len(torn):
        names = exams.loc[(exams["group"] == torn[0]) & earlier.notna(), "patient_id"].unique()
        raise UserError(
            f"patients {names[0]} and {names[1]} share a picture, and the run that train.init names has them "
            "in two folds: start from a file of weights, or take one of them out"
        )
    sizes = exams.groupby("group")["cancer"].agg(["sum", "size"])
    totals = np.array(sizes.groupby(folds["min"]).sum().reindex(range(num_folds), fill_value=0))
    new = sizes[folds["min"].isna()].sample(frac=1, random_state=seed)
    found = folds["min"].dropna().astype(int).to_dict()
    for group, counts in new.sort_values("sum", ascending=False, kind="stable").iterrows():
        cancers_F, images_F = totals.T
        keys = (images_F, cancers_F) if counts["sum"] else (cancers_F, images_F)
        found[str(group)] = fold = int(np.lexsort(keys)[0])
        totals[fold] += counts.to_numpy()
    return exams["group"].map(found)


def _require_enough_patients(exams: pd.DataFrame, num_folds: int) -> None:
    if num_folds < 2:
        raise UserError(f"{num_folds} folds asked for: cross-validation needs 2 or more")
    num_patients, num_groups = exams["patient_id"].nunique(), exams["group"].nunique()
    patients = f"{num_patients} patients"
    if num_groups < num_patients:
        patients += f", {num_groups} where those who share pictures count as one"
    if num_groups < num_folds:
        raise UserError(f"{num_folds} folds of {patients}: every fold needs one; use fewer folds")
    for label, words in [(1, "with cancer"), (0, "without cancer")]:
        num_fitting = exams.loc[exams["cancer"] == label, "group"].nunique()
        if num_fitting < num_folds:
            raise UserError(
                f"{num_folds} folds of {patients}: every fold needs a breast {words}, but only "
                f"{num_fitting} of the patients have one; use fewer folds or more patients"
            )


def _require_both_labels(exams: pd.DataFrame, num_folds: int) -> None:
    """Patients of very different size may leave a fold short although there are enough of them."""
    counts = pd.crosstab(exams["fold"], exams["cancer"])
    counts = counts.reindex(index=range(num_folds), columns=[0, 1], fill_value=0)
    for fold, (num_without, num_with) in enumerate(counts.to_numpy()):
        if not (num_without and num_with):
            raise UserError(
                f"fold {fold} of {num_folds} would hold {num_with} images with cancer and {num_without} "
                "without, but needs both: use fewer folds or another seed"
            )
