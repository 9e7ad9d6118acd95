"""The run folder of a classification: one training, one test split, no folds."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.errors import UserError
from pipeline.runs.run_folder import RunFolder, TrainingFolder, read_table

IMAGES_COLUMNS = ["image", "label", "split"]
CLASS_PREDICTION_COLUMNS = ["image", "label", "predicted", "probability"]
AS_WRITTEN = {  # a class may be called 007 or NA
    "dtype": {"image": "str", "label": "str", "predicted": "str"},
    "keep_default_na": False,
}


@dataclass(frozen=True)
class ClassRun(RunFolder):
    """A classification of an image folder: one training, one test split, no folds."""

    @property
    def images(self) -> Path:
        """The images that it was started with: image, label, split (train or test); classes in order."""
        return self.folder / "images.csv"

    @property
    def training(self) -> TrainingFolder:
        """What the training leaves, in the run's own folder."""
        return TrainingFolder(self.folder)

    @property
    def exists(self) -> bool:
        """Whether the folder is such a run."""
        return self.images.exists()

    def read_images(self) -> pd.DataFrame:
        """Reads `images.csv`.

        Raises:
            UserError: if the folder is not such a run.
        """
        if not self.exists:
            raise UserError(
                f"{self.folder} is not a run on an image folder: it has no images.csv; "
                "`mammo train CONFIG --data FOLDER` makes one"
            )
        return read_table(self.images, IMAGES_COLUMNS, **AS_WRITTEN)[IMAGES_COLUMNS]

    def read_predictions(self, labels: list[str]) -> pd.DataFrame:
        """Reads `predictions.csv`, one row per test image.

        Raises:
            UserError: if the training has not ended, or a column is missing.
        """
        if not self.training.is_finished:
            raise UserError(
                f"{self.folder} is not finished: go on with `mammo train {self.settings} "
                f"--run {self.folder}` and the same --data"
            )
        columns = prediction_columns(labels)
        return read_table(self.training.predictions, columns, **AS_WRITTEN)[columns]


def prediction_columns(labels: list[str]) -> list[str]:
    """Returns the columns of a class run's `predictions.csv`, one per class at the end."""
    return [*CLASS_PREDICTION_COLUMNS, *map(probability_column, labels)]


def probability_column(label: str) -> str:
    """Returns the name of the column with a class's probability, which no other column has."""
    return f"p_{label}"
