"""Breasts whose label can be told by counting their images: nothing that sees all of them may learn that."""

import pandas as pd

from data_prep.errors import UserError
from pipeline.evaluation.audit.shortcuts import find_telling_count
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.runs.recipe import ModelSettings


def require_uncountable(exams: pd.DataFrame, fold_table: pd.DataFrame, model: ModelSettings) -> None:
    """Makes sure that a model that sees all images of a breast does not see its label by their number.

    Raises:
        UserError: if the number of images, or which views are there, tells the label.
    """
    if model.fusion == "none" or model.views_per_breast:
        return
    folds = exams["patient_id"].map(fold_table.set_index("patient_id")["fold"])
    images = exams.assign(fold=folds, probability=0.5)
    found = find_telling_count(images, require_breasts(images))
    if found is not None:
        raise UserError(
            f'"{found.trait}" alone tells cancer with an AUC of {found.auc:.2f}, so a model that sees all '
            "images of a breast would learn to count them: add --set model.views_per_breast=1, or --set "
            "model.fusion=none"
        )
