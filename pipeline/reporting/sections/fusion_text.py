"""What a report says of a run that judges whole breasts."""

import pandas as pd

from data_prep.rsna.exam_table import name_breast
from pipeline.evaluation.age.age_regression import BY_PIXELS
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.estimates import estimate_auc_of, number_patients
from pipeline.runs.run_folder import IMAGE_PROBABILITY


def describe_fusion(oof: pd.DataFrame) -> str:
    """Says what figures per image are of, and what images alone would give; empty where they are alone."""
    if IMAGE_PROBABILITY not in oof:
        return ""
    alone = _find_auc(oof.assign(probability=oof[IMAGE_PROBABILITY]))
    together = _find_auc(oof.assign(probability=oof[BY_PIXELS]) if BY_PIXELS in oof else oof)
    compared = ""
    if alone is not None and together is not None:
        compared = (
            " Judged one by one by the same models, and joined to their mean, they would give an AUC per "
            f"breast of {alone:.3f} instead of {together:.3f}."
        )
    named = oof[[*name_breast(oof), "probability"]].drop_duplicates()
    if len(named) > len(named[name_breast(oof)].drop_duplicates()):
        how = "The models saw one image of a breast at a time, through the layers that join several."
    else:
        how = "Breasts were judged by all their images together, and figures per image are their breasts'."
    return how + compared


def _find_auc(images: pd.DataFrame) -> float | None:
    breasts = to_breasts(images)
    numbers, num_patients = number_patients({("", ""): breasts})
    return estimate_auc_of(breasts, numbers["", ""], num_patients).auc
