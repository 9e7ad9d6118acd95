"""Breasts whose label can be told by counting their images: nothing that sees all of them may learn that."""

from collections import Counter

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import name_breast
from pipeline.data.breasts import BreastTable
from pipeline.evaluation.audit.shortcuts import TraitAuc, find_telling_count, judge_trait
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.runs.recipe import ModelSettings

VIEWS_SEEN = "images of each kind of view"


def require_uncountable(exams: pd.DataFrame, fold_table: pd.DataFrame, model: ModelSettings) -> None:
    """Makes sure that a model that sees all images of a breast does not see its label by their number.

    Raises:
        UserError: if the number of images, or how many of which views are there, tells the label; with
            fusion "exam" those of the other breast too.
    """
    if model.fusion == "none" or model.views_per_breast:
        return
    folds = exams["patient_id"].map(fold_table.set_index("patient_id")["fold"])
    images = exams.assign(fold=folds, probability=0.5)
    breasts = require_breasts(images)
    found = find_telling_count(images, breasts) or _judge_views(exams, breasts, model)
    if found is not None:
        raise UserError(
            f'"{found.trait}" alone tells cancer with an AUC of {found.auc:.2f}, so a model that sees all '
            "images of a breast would learn to count them: add --set model.fusion=views --set "
            "model.views_per_breast=1, or --set model.fusion=none"
        )


def _judge_views(exams: pd.DataFrame, breasts: pd.DataFrame, model: ModelSettings) -> TraitAuc | None:
    """Judges how many images of which class of views the model sees of each breast, and of the other one."""
    table = BreastTable.of(exams, model)
    counts = [
        str([sorted(Counter(table.views[row] for row in rows).items()) for rows in breast])
        for breast in table.breasts
    ]
    keys = name_breast(exams)
    seen = exams.iloc[[rows.own[0] for rows in table.breasts]][keys].assign(counts=counts)
    found = judge_trait("breast", VIEWS_SEEN, breasts, breasts[keys].merge(seen, on=keys)["counts"])
    return found if found.is_shortcut else None
