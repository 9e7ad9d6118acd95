"""From image predictions to breast predictions."""

from typing import Literal

import pandas as pd
from scipy.special import expit

from data_prep.rsna.exam_table import join_ids, name_breast, sort_by_id
from pipeline.evaluation.formulas import to_logits

Views = Literal["mean", "max"]
"""What a breast's probability is of those of its images: the mean on the logit, or the highest."""


def to_breasts(images: pd.DataFrame, views: Views = "mean") -> pd.DataFrame:
    """Joins the probabilities of each breast's images, by default to their mean on the logit.

    A mean of small probabilities themselves follows the highest, and more images have a higher highest:
    random numbers would tell the number of images, and what that tells.

    Args:
        images: one row per image: patient_id, laterality, probability, and exam_id, fold and cancer where
            known. An image that could not be read has no probability (NaN) and does not count.
        views: which of the images' probabilities the breast gets.

    Returns:
        One row per breast, of each exam where exams have ids: prediction_id, patient_id, exam_id where given,
        laterality, fold and cancer where given, num_images, probability; sorted by prediction_id, shorter ids
        first. The order of the images changes no bit of it.

    Raises:
        ValueError: if fold or cancer differs between the images of a breast.
    """
    breast = name_breast(images)
    constant = [name for name in ("fold", "cancer") if name in images]
    for name in constant:
        _require_constant(images, name)
    ordered = images.sort_values([*breast, "probability"])  # a mean of floats depends on their order
    ordered["logit"] = to_logits(ordered["probability"])
    breasts = ordered.groupby(breast, as_index=False).agg(
        **{name: (name, "first") for name in constant},
        num_images=("probability", "count"),
        lowest=("probability", "min"),
        highest=("probability", "max"),
        probability=("logit", "mean"),
    )
    joined = expit(breasts["probability"]).clip(
        breasts["lowest"], breasts["highest"]
    )  # of one image, its own
    breasts["probability"] = breasts["highest"] if views == "max" else joined
    breasts = breasts.drop(columns=["lowest", "highest"])
    breasts.insert(0, "prediction_id", join_ids(breasts, breast))
    return sort_by_id(breasts, ["prediction_id"])


def name_as_table(breasts: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Gives breasts the prediction_id that the table of their images has, which need not be made of ids."""
    breast = name_breast(images)
    identifiers = images[[*breast, "prediction_id"]].drop_duplicates()
    return breasts.drop(columns="prediction_id").merge(identifiers, on=breast)


def _require_constant(images: pd.DataFrame, name: str) -> None:
    breast = name_breast(images)
    differing = images[[*breast, name]].drop_duplicates()
    mixed = differing[differing.duplicated(breast)]
    if len(mixed):
        prediction_id = "_".join(mixed[breast].iloc[0])
        raise ValueError(f"breast {prediction_id} has images of different {name}; a breast has one {name}")
