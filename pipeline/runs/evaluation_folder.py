"""The files that an evaluation leaves: in a run's own folder, and in that of an external set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.storage.files import real_folder

EvaluationTable = Literal[
    "fold_table", "slices", "calibration", "threshold_stability", "shortcut_audit", "decision_curve"
]


@dataclass(frozen=True)
class EvaluationFolder:
    """A folder with figures, tables and a report."""

    folder: Path

    @property
    def oof(self) -> Path:
        """Predictions that were judged, one row per image."""
        return self.folder / "oof.csv"

    @property
    def metrics(self) -> Path:
        """All figures, with intervals."""
        return self.folder / "metrics.json"

    @property
    def fold_metrics(self) -> Path:
        """One row of metrics per fold."""
        return self.folder / "fold_metrics.csv"

    @property
    def images(self) -> Path:
        """A row per image for statisticians."""
        return self.folder / "images.csv"

    @property
    def breasts(self) -> Path:
        """A row per breast for statisticians."""
        return self.folder / "breasts.csv"

    @property
    def report(self) -> Path:
        """The page that people read."""
        return self.folder / "report.html"

    @property
    def report_text(self) -> Path:
        """The report's numbers and sentences as Markdown."""
        return self.folder / "report.md"

    def table(self, name: EvaluationTable) -> Path:
        """One of the other tables that an evaluation writes."""
        return self.folder / f"{name}.csv"


@dataclass(frozen=True)
class ExternalFolder(EvaluationFolder):
    """`external/<name>/` of a run: what its models say of other patients, and how right they are."""

    @property
    def name(self) -> str:
        """What the set is called."""
        return self.folder.name

    @property
    def journal(self) -> Path:
        """What was predicted, batch by batch."""
        return self.folder / "predictions.jsonl"

    @property
    def oof(self) -> Path:
        """Predictions of the ensemble and of each fold that were judged, one row per image."""
        return self.folder / "predictions.csv"

    @property
    def failures(self) -> Path:
        """Images that could not be used, and why."""
        return self.folder / "failures.csv"

    @property
    def left_out(self) -> Path:
        """Patients that the run has learned from, and how that is known."""
        return self.folder / "left_out.csv"

    @property
    def shift(self) -> Path:
        """How its patients and pictures differ from the run's own."""
        return self.folder / "shift.csv"

    @classmethod
    def of(cls, run_folder: Path, name: str) -> "ExternalFolder":
        """Returns the folder of a set.

        Raises:
            OSError: if it is a link, which would lead elsewhere.
        """
        return cls(real_folder(real_folder(run_folder / "external") / name))
