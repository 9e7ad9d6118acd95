"""The run folder: names, columns and formats of every file in it, in one place. Knows no metric."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.errors import UserError

FOLDS_COLUMNS = ["patient_id", "fold", "num_images", "num_cancers"]
OOF_COLUMNS = ["fold", "image_id", "patient_id", "laterality", "cancer", "probability"]
FOLD_METRICS_COLUMNS = [
    "fold",
    "num_images",
    "num_breasts",
    "num_cancers",
    "pf1",
    "pf1_best",
    "threshold_best",
    "auc",
    "average_precision",
]
ID_TYPES = {"patient_id": "str", "image_id": "str"}


@dataclass(frozen=True)
class FoldFolder:
    """`fold_<k>/` of a run: what one fold's training leaves."""

    folder: Path

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before it."""
        return self.folder / "previous.pt"

    @property
    def weights(self) -> Path:
        """The model that `predict` uses."""
        return self.folder / "model.safetensors"

    @property
    def history(self) -> Path:
        """One row per epoch: losses, learning rate, validation metrics."""
        return self.folder / "history.csv"

    @property
    def throughput(self) -> Path:
        """One row per epoch: images and seconds."""
        return self.folder / "throughput.csv"

    @property
    def oof(self) -> Path:
        """Out-of-fold predictions of this fold's images; the last file that a finished fold writes."""
        return self.folder / "oof.csv"

    @property
    def is_finished(self) -> bool:
        """Whether this fold's training has ended."""
        return self.oof.exists()


@dataclass(frozen=True)
class Run:
    """`reports/<name>/`: everything that a training run leaves."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def settings(self) -> Path:
        """The resolved recipe, itself a valid CONFIG."""
        return self.folder / "settings.toml"

    @property
    def folds(self) -> Path:
        """One row per patient: patient_id, fold, num_images, num_cancers."""
        return self.folder / "folds.csv"

    @property
    def environment(self) -> Path:
        """Versions, machine and device."""
        return self.folder / "environment.json"

    @property
    def oof(self) -> Path:
        """Out-of-fold predictions of all training images."""
        return self.folder / "oof.csv"

    @property
    def fold_metrics(self) -> Path:
        """One row of breast-level metrics per fold."""
        return self.folder / "fold_metrics.csv"

    @property
    def metrics(self) -> Path:
        """Metrics per fold and pooled, with intervals and the threshold."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The page that people read."""
        return self.folder / "report.html"

    @property
    def submission(self) -> Path:
        """prediction_id, cancer."""
        return self.folder / "submission.csv"

    def fold(self, fold: int) -> FoldFolder:
        """The folder of one fold."""
        return FoldFolder(self.folder / f"fold_{fold}")

    def read_folds(self) -> pd.DataFrame:
        """Reads `folds.csv`.

        Raises:
            UserError: if the folder is no run.
        """
        if not self.folds.exists():
            raise UserError(f"{self.folder} is no run folder: it has no folds.csv; `mammo train` makes one")
        return _read_csv(self.folds, FOLDS_COLUMNS)

    def list_folds(self) -> list[int]:
        """Returns all folds' numbers.

        Raises:
            UserError: if the folder is no run.
        """
        return sorted(int(fold) for fold in self.read_folds()["fold"].unique())

    def unfinished_folds(self) -> list[int]:
        """Returns the numbers of the folds that are still to be trained, or to be finished."""
        return [fold for fold in self.list_folds() if not self.fold(fold).is_finished]

    def require_finished(self) -> list[int]:
        """Returns all folds' numbers.

        Raises:
            UserError: if a fold has not finished training.
        """
        folds, missing = self.list_folds(), self.unfinished_folds()
        if missing:
            names = ", ".join(str(fold) for fold in missing)
            raise UserError(
                f"{self.folder} is not finished: of {len(folds)} folds, {names} still to be trained; "
                f"go on with `mammo train {self.settings} --run {self.folder}` and the same --cache"
            )
        return folds


def read_oof(path: Path) -> pd.DataFrame:
    """Reads a table of out-of-fold predictions, one row per image.

    Raises:
        UserError: if a column is missing or an image stands there twice.
    """
    table = _read_csv(path, OOF_COLUMNS)
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise UserError(f"{path} holds image {twice.iloc[0]} twice; each image is predicted exactly once")
    return table


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=ID_TYPES)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): remove it and train again") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; it needs {', '.join(columns)}")
    return table[columns]
