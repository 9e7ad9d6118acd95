"""The run folder: names, columns and formats of every file in it, in one place."""

import io
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import EXAM_ID
from data_prep.storage.files import read_own, real_folder
from pipeline.runs.evaluation_folder import EvaluationFolder, ExternalFolder

FOLDS_COLUMNS = ["patient_id", "fold", "num_images", "num_cancers"]
GROUP = "group"
"""The last column of `folds.csv`, where patients share a picture: the first id of those kept together."""
OOF_COLUMNS = ["fold", "image_id", "patient_id", "laterality", "cancer", "probability"]
IMAGE_PROBABILITY = "image_probability"
"""What a run with `model.fusion` says of an image by itself; its `probability` is that of its breast."""
OOF_EXAM_COLUMNS = ["view", "site_id", "machine_id", "age", "density", "implant"]
"""What `oof.csv` has besides, where the exam table has it: the slices of an evaluation. Before them stands
`exam_id`, where exams are told apart."""
Kind = Literal["cross_validation", "classification", "pretraining"]
START_TABLES: dict[Kind, str] = {
    "cross_validation": "folds.csv",
    "classification": "images.csv",
    "pretraining": "seen.csv",
}
"""What a run of each kind was started with; a run has one of these tables."""
ID_TYPES = {"patient_id": "str", EXAM_ID: "str", "image_id": "str", GROUP: "str"}
OOF_TYPES = ID_TYPES | {name: "str" for name in OOF_EXAM_COLUMNS if name != "age"}


@dataclass(frozen=True)
class TrainingFolder:
    """What the training of one model leaves; some of it in a folder of its own, some in the run's."""

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
        """The model that predicts."""
        return self.folder / "model.safetensors"

    @property
    def history(self) -> Path:
        """One row per epoch: losses, learning rate, metrics of the held-out images."""
        return self.folder / "history.csv"

    @property
    def throughput(self) -> Path:
        """One row per epoch: images and seconds."""
        return self.folder / "throughput.csv"

    @property
    def events(self) -> Path:
        """History and throughput for TensorBoard, if `train.tensorboard` is true."""
        return real_folder(self.folder / "events")

    @property
    def initial_weights(self) -> Path:
        """What became of each tensor of `train.init`: tensor, outcome, detail."""
        return self.folder / "initial_weights.csv"

    @property
    def attention(self) -> Path:
        """Mean attention distance in pixels of each layer's heads."""
        return self.folder / "attention.csv"

    @property
    def predictions(self) -> Path:
        """Predictions of the held-out images; the last file that a finished training writes."""
        return self.folder / "predictions.csv"

    @property
    def log(self) -> Path:
        """What it said on a machine of a cluster."""
        return self.folder / "log.txt"

    @property
    def is_finished(self) -> bool:
        """Whether this training has ended."""
        return self.predictions.exists()


@dataclass(frozen=True)
class FoldFolder(TrainingFolder):
    """`fold_<k>/` of a run: what one fold's training leaves."""

    @property
    def oof(self) -> Path:
        """Out-of-fold predictions of this fold's images; the last file that a finished fold writes."""
        return self.folder / "oof.csv"

    @property
    def predictions(self) -> Path:
        """The same, by the name that every training has for it."""
        return self.oof


@dataclass(frozen=True)
class RunFolder:
    """`reports/<name>/`: what every training run leaves."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's own name, of a repeat behind that of its run."""
        folder = self.folder.resolve()
        is_repeat = re.fullmatch(r"repeat_[0-9]+", folder.name)
        return f"{folder.parent.name}/{folder.name}" if is_repeat else folder.name

    @property
    def kind(self) -> Kind | None:
        """What the run does; None where it has not been started."""
        return next((kind for kind, name in START_TABLES.items() if (self.folder / name).exists()), None)

    @property
    def settings(self) -> Path:
        """The resolved recipe, itself a valid CONFIG."""
        return self.folder / "settings.toml"

    @property
    def environment(self) -> Path:
        """Versions, machine and device."""
        return self.folder / "environment.json"

    @property
    def metrics(self) -> Path:
        """All figures, with intervals."""
        return self.folder / "metrics.json"

    @property
    def report(self) -> Path:
        """The page that people read."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Run(RunFolder, EvaluationFolder):
    """A cross-validation on mammograms."""

    @property
    def folds(self) -> Path:
        """One row per patient: patient_id, fold, num_images, num_cancers; `group` if some share pictures."""
        return self.folder / "folds.csv"

    @property
    def oof(self) -> Path:
        """Out-of-fold predictions of all training images."""
        return self.folder / "oof.csv"

    @property
    def pictures(self) -> Path:
        """Checksums of the pictures that the run has learned from: patient_id, image_id and both."""
        return self.folder / "pictures.csv"

    @property
    def submission(self) -> Path:
        """prediction_id, cancer."""
        return self.folder / "submission.csv"

    @property
    def model_card(self) -> Path:
        """What the models are, what they were made of and what they are not for."""
        return self.folder / "model_card.md"

    @property
    def onnx(self) -> Path:
        """Where exported models lie, unless the user names another folder."""
        return real_folder(self.folder / "onnx")

    def fold(self, fold: int) -> FoldFolder:
        """The folder of one fold.

        Raises:
            OSError: if it is a link, which would lead elsewhere.
        """
        return FoldFolder(real_folder(self.folder / f"fold_{fold}"))

    def repeat(self, number: int) -> "Run":
        """The run with other seeds and splits of that number; 0 is this one.

        Raises:
            OSError: if its folder is a link, which would lead elsewhere.
        """
        return Run(real_folder(self.folder / f"repeat_{number}")) if number else self

    def list_repeats(self) -> list[int]:
        """Returns the numbers of the repeats that have been begun, without this run's own."""
        found = [re.fullmatch(r"repeat_([1-9][0-9]*)", path.name) for path in self.folder.glob("repeat_*")]
        numbers = sorted(int(name[1]) for name in found if name)
        return [number for number in numbers if self.repeat(number).folds.exists()]

    @property
    def repeats(self) -> Path:
        """One row of figures per repeat."""
        return self.folder / "repeats.csv"

    def external(self, name: str) -> ExternalFolder:
        """The folder of an external set.

        Raises:
            OSError: if it is a link, which would lead elsewhere.
        """
        return ExternalFolder.of(self.folder, name)

    def read_folds(self) -> pd.DataFrame:
        """Reads `folds.csv`.

        Raises:
            UserError: if the folder is not a run, or one of another kind.
        """
        if self.kind not in {None, "cross_validation"}:
            raise UserError(
                f"{self.folder} is not a cross-validation on mammograms and has no folds and no submission: "
                f"its predictions are in {TrainingFolder(self.folder).predictions}"
            )
        if not self.folds.exists():
            raise UserError(
                f"{self.folder} is not a run folder: it has no folds.csv; `mammo train` makes one"
            )
        table = read_table(self.folds, FOLDS_COLUMNS, dtype=ID_TYPES)
        table = table[[*FOLDS_COLUMNS, *([GROUP] if GROUP in table else [])]]
        if not all(pd.api.types.is_integer_dtype(table[name]) for name in FOLDS_COLUMNS[1:]):
            raise UserError(f"{self.folds} is damaged: a fold or count in it is not a number; train again")
        return table

    def read_inputs(self) -> list[str]:
        """Returns what counts beside the pixels; nothing where the settings cannot be read."""
        try:
            settings = tomllib.loads(read_own(self.settings).decode())
        except (OSError, ValueError):  # what needs more of them says so
            return []
        return list(settings.get("model", {}).get("inputs", []))

    def list_folds(self) -> list[int]:
        """Returns all folds' numbers.

        Raises:
            UserError: if the folder is not a run.
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
            raise UserError(
                f"{self.folder} is not finished: {name_folds(missing)} of {len(folds)} still to be trained; "
                f"go on with `mammo train {self.settings} --run {self.folder}` and the same --cache"
            )
        return folds


def name_folds(folds: list[int]) -> str:
    """Names folds in words, such as "folds 0, 2"."""
    return f"{'fold' if len(folds) == 1 else 'folds'} {', '.join(map(str, folds))}"


def select_oof(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of `oof.csv`: all that it must have, and those of the exam table that are there."""
    optional = (IMAGE_PROBABILITY, EXAM_ID, *OOF_EXAM_COLUMNS)
    return table[[*OOF_COLUMNS, *(name for name in optional if name in table)]]


def read_oof(path: Path) -> pd.DataFrame:
    """Reads a table of out-of-fold predictions, one row per image.

    Raises:
        UserError: if a needed column is missing or an image stands there twice.
    """
    table = select_oof(read_table(path, OOF_COLUMNS, dtype=OOF_TYPES))
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise UserError(f"{path} holds image {twice.iloc[0]} twice; each image is predicted exactly once")
    return table


def read_table(path: Path, columns: list[str], **options: Any) -> pd.DataFrame:
    """Reads a table of a run with at least these columns.

    Raises:
        UserError: if it is damaged or lacks one.
    """
    try:
        table: pd.DataFrame = pd.read_csv(io.BytesIO(read_own(path)), **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): remove it and train again") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{path} lacks the column {', '.join(missing)}; it needs {', '.join(columns)}")
    return table
