"""The run folder of a pretraining: encoders, and whom and what each of them has seen."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_prep.cache.shared_pictures import CHECKSUMS
from data_prep.errors import UserError
from data_prep.storage.files import real_folder
from pipeline.runs.run_folder import RunFolder, TrainingFolder, name_folds, read_table

SEEN_COLUMNS = ["patient_id", "image_id", *CHECKSUMS, "fold"]
HASH_LENGTH = 16  # hexadecimal digits: of a million ids no two are likely to share one


@dataclass(frozen=True)
class PretrainRun(RunFolder):
    """A pretraining: an encoder per fold in `fold_<k>/`, or a single one in the run's own folder."""

    @property
    def seen(self) -> Path:
        """A row per image: ids, checksums, and the fold whose encoder has not seen it; empty for none."""
        return self.folder / "seen.csv"

    @property
    def report(self) -> Path:
        """The page that people read."""
        return self.folder / "pretrain.html"

    def read_seen(self) -> pd.DataFrame:
        """Reads `seen.csv`; checksums of images that show nothing, or are of no cache, are empty.

        Raises:
            UserError: if the folder is not a pretraining, or the table is damaged.
        """
        if not self.seen.exists():
            raise UserError(
                f"{self.folder} is not a pretraining: it has no {self.seen.name}; `mammo pretrain` makes one"
            )
        table = read_table(self.seen, SEEN_COLUMNS, dtype="str", keep_default_na=False)[SEEN_COLUMNS]
        try:
            return table.assign(fold=pd.to_numeric(table["fold"]).astype("Int64"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.seen} is damaged: a fold in it is not a number") from error

    @property
    def knows_its_patients(self) -> bool:
        """Whether its images were of caches, which tell patients and pictures; a folder tells none."""
        seen = self.read_seen()
        return bool((seen["patient_id"] != seen["image_id"]).any() or (seen[CHECKSUMS] != "").any(axis=None))

    def list_folds(self) -> list[int]:
        """Returns the numbers of the folds that have an encoder each; empty where there is one for all."""
        return sorted(set(self.map_folds().values()))

    def map_folds(self) -> dict[str, int]:
        """Returns the fold of each patient who has one."""
        held_out = self.read_seen().dropna(subset=["fold"])
        return dict(zip(held_out["patient_id"], held_out["fold"].astype(int), strict=True))

    def training(self, fold: int | None) -> TrainingFolder:
        """The folder of a fold's encoder, or for None of the single one.

        Raises:
            OSError: if it is a link, which would lead elsewhere.
        """
        return TrainingFolder(self.folder if fold is None else real_folder(self.folder / f"fold_{fold}"))

    def list_trainings(self) -> dict[int | None, TrainingFolder]:
        """Returns the folder of each encoder by its fold."""
        folds = self.list_folds()
        return {fold: self.training(fold) for fold in folds} or {None: self.training(None)}

    def training_for(self, fold: int | None) -> TrainingFolder:
        """The folder of the encoder that a training of that fold, or for None one without folds, starts from.

        Raises:
            UserError: if the run has encoders for other folds alone, or this one is not finished.
        """
        folds = self.list_folds()
        if folds and fold not in folds:
            what = "one without folds" if fold is None else f"fold {fold}"
            raise UserError(f"{self.folder} has encoders for {name_folds(folds)} and none for {what}")
        training = self.training(fold if folds else None)
        if not training.is_finished:
            raise UserError(
                f"the encoder in {training.folder} is not finished: go on with `mammo pretrain "
                f"{self.settings} --run {self.folder}` and the same --cache or --data and --for"
            )
        return training


def hash_ids(ids: Iterable[str]) -> set[str]:
    """Returns a hash of each id, so that a file of weights names nobody.

    Who has a list of ids can still look them up: it hides ids from eyes, not from their owners.
    """
    return {hashlib.sha256(each.encode()).hexdigest()[:HASH_LENGTH] for each in ids}


def hash_pictures(pictures: pd.DataFrame) -> set[str]:
    """Returns the beginnings of the checksums of pictures, each of which has two."""
    found = pd.concat([pictures[name] for name in CHECKSUMS]).dropna()
    return {str(checksum)[:HASH_LENGTH] for checksum in found if checksum}
