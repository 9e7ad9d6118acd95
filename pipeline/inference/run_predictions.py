"""What all folds of a run say of a set of images, per image and per breast."""

from dataclasses import dataclass, field, replace

import pandas as pd

from data_prep.preprocessing.preprocess import ManifestRow
from pipeline.evaluation.age.age_regression import BY_AGE, add_age_to_ensemble, fit_folds, knows_no_age
from pipeline.evaluation.aggregate import Views, name_as_table, to_breasts
from pipeline.runtime.progress import Reporter

FAILURES_COLUMNS = ["patient_id", "image_id", "reason", "message"]
FILE = "file"
"""The user's own name of an image, where the exam table has it; the last column of the failures."""


@dataclass(frozen=True)
class RunPredictions:
    """What all folds of a run say of a set of images.

    Attributes:
        images: what is known of the exam table, `file` (the user's own name of it, or empty),
            probability (NaN where the image failed), and that of each fold, `probability_fold_<k>`. Where
            the run takes age, these are by both, with `pixel_probability` and `age_probability` beside.
        failures: patient_id, image_id, reason, message of images that could not be used, and `file` if the
            exam table has it.
        prior: share of cancers among the breasts that the run was trained on.
        records: what a manifest would say of each image, by image_id; of files with labels alone.
    """

    images: pd.DataFrame
    failures: pd.DataFrame
    prior: float
    records: dict[str, ManifestRow] = field(default_factory=dict)

    @property
    def required_ids(self) -> list[str]:
        """Every prediction_id once."""
        return list(self.images["prediction_id"].unique())

    def breasts(self, views: Views = "mean") -> pd.DataFrame:
        """Returns prediction_id and probability per breast: of its usable images.

        A breast without one has that of its woman's age where the run takes it, or else the prior.
        """
        breasts = to_breasts(self.images, views)
        if BY_AGE in self.images:
            by_age = to_breasts(self.images.assign(probability=self.images[BY_AGE]))
            breasts = breasts.fillna({"probability": by_age["probability"]})
        return name_as_table(breasts.fillna({"probability": self.prior}), self.images)


def count_age(found: RunPredictions, oof: pd.DataFrame, reporter: Reporter) -> RunPredictions:
    """Has age count as the run's out-of-fold predictions teach; says so if no age is recorded."""
    if knows_no_age(found.images):
        reporter.say(
            "warning: the run takes the woman's age, and none is recorded here: all count as unknown"
        )
    return replace(found, images=add_age_to_ensemble(found.images, fit_folds(oof)))
