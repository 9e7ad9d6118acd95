"""The cache folder: one PNG per image, the exam table, and what became of every file.

While `prepare` runs, outcomes are appended to a journal; at its end they move into `manifest.csv`,
`failures.csv` and `timings.csv`. A killed run leaves a journal that the next one reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.cache.tables import (
    ADDED_COLUMNS,
    ALL_COLUMNS,
    ETAG,
    FAILED,
    FAILURE_COLUMNS,
    ID_COLUMNS,
    MANIFEST_COLUMNS,
    PREPARED,
    TIMING_COLUMNS,
    damaged,
    read_cached_exams,
    read_manifest,
    read_text_rows,
    select_prepared,
)
from data_prep.errors import UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import Split, sort_by_id, write_exam_table
from data_prep.settings import StrictSettings, differences, dump_settings, load_settings
from data_prep.storage.atomic import Journal, is_temporary, make_folder, write_csv, write_text
from data_prep.storage.files import real_folder
from data_prep.storage.locks import LOCK_NAME


class CacheSettings(StrictSettings):
    """What `settings.toml` of a cache says: which split it holds and how its images were made."""

    split: Split
    prepare: PrepareSettings


@dataclass(frozen=True)
class Cache:
    """A cache folder.

    Attributes:
        folder: holds `images/<patient_id>/<image_id>.png` and the tables.
    """

    folder: Path

    @property
    def manifest_path(self) -> Path:
        """One row per image: what became of it, and how."""
        return self.folder / "manifest.csv"

    @property
    def failures_path(self) -> Path:
        """One row per image that could not be prepared: reason code and sentence."""
        return self.folder / "failures.csv"

    @property
    def timings_path(self) -> Path:
        """Seconds per image and its source's time: all that differs between two equal runs."""
        return self.folder / "timings.csv"

    @property
    def exams_path(self) -> Path:
        """The validated rows of train.csv or test.csv."""
        return self.folder / "exams.csv"

    @property
    def left_out_path(self) -> Path:
        """Rows of the table that have no image here.

        Of test.csv all others, which a submission needs; of train.csv those whose file was absent.
        """
        return self.folder / "left_out.csv"

    @property
    def settings_path(self) -> Path:
        """Split and settings."""
        return self.folder / "settings.toml"

    @property
    def qc_path(self) -> Path:
        """The page that shows which images deserve a look."""
        return self.folder / "qc.html"

    @property
    def journal(self) -> Journal:
        """Outcomes that stand in no table yet."""
        return Journal(self.folder / "journal.jsonl")

    def image_path(self, patient_id: str, image_id: str) -> Path:
        """Where one image's PNG lies.

        Raises:
            OSError: if one of its folders is a link, which would lead elsewhere.
        """
        return self._patient_folder(patient_id) / f"{image_id}.png"

    def image_paths(self, exams: pd.DataFrame) -> list[Path]:
        """Where the PNG of each row lies."""
        folders = {patient: self._patient_folder(patient) for patient in exams["patient_id"].unique()}
        pairs = zip(exams["patient_id"], exams["image_id"], strict=True)
        return [folders[patient_id] / f"{image_id}.png" for patient_id, image_id in pairs]

    def _patient_folder(self, patient_id: str) -> Path:
        return real_folder(real_folder(self.folder / "images") / patient_id)

    def settings(self) -> CacheSettings:
        """Reads the cache's settings.

        Raises:
            UserError: if the folder is not a cache, or its settings are damaged.
        """
        if not self.settings_path.exists():
            raise UserError(
                f"{self.folder} is not a cache: it has no settings.toml; `mammo prepare` makes one"
            )
        try:
            return load_settings(CacheSettings, self.settings_path)
        except UserError as error:
            raise UserError(
                f"{error}; remove {self.folder} and run its `mammo prepare` command again"
            ) from error

    def open_for(self, settings: CacheSettings) -> None:
        """Makes the folder, or checks that what it holds was made in the same way.

        Raises:
            UserError: if it holds something else, another split, or images of other settings; names every
                difference.
        """
        make_folder(self.folder)
        if not self.settings_path.exists():
            self._require_nothing_else()
            write_text(self.settings_path, dump_settings(settings))
            return
        changed = differences(self.settings(), settings)
        if changed:
            raise UserError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): "
                "choose another --cache, or remove this folder to make it anew"
            )

    def _require_nothing_else(self) -> None:
        """Refuses a folder with files that are not what a first `prepare` leaves when it is broken off."""
        for path in sorted(self.folder.iterdir()):
            is_half_written = is_temporary(path) and path.name.endswith(f"-{self.settings_path.name}")
            if path.name != LOCK_NAME and not is_half_written:
                raise UserError(
                    f"{self.folder} is not a cache and holds {path.name}: name an empty or new folder "
                    "as --cache"
                )

    def read_records(self) -> dict[str, dict[str, Any]]:
        """Returns the newest outcome of every image by image_id, from the tables and the journal.

        Raises:
            UserError: if one of them is damaged.
        """
        if self.manifest_path.exists():
            read_manifest(self.manifest_path)  # raises now what would be found after the work
        records: dict[str, dict[str, Any]] = {}
        tables = {
            self.timings_path: TIMING_COLUMNS,
            self.manifest_path: [name for name in MANIFEST_COLUMNS if name not in ADDED_COLUMNS],
            self.failures_path: [name for name in FAILURE_COLUMNS if name not in ADDED_COLUMNS],
        }
        for path, columns in tables.items():
            for row in read_text_rows(path, columns):
                records.setdefault(row["image_id"], {}).update(row)
        for record in records.values():
            if record.get("status") == PREPARED:
                records[record["image_id"]] = {
                    name: str(value) for name, value in ADDED_COLUMNS.items()
                } | record
        for record in self.journal.read():
            if not all(isinstance(record.get(name), str) for name in ID_COLUMNS):
                raise damaged(self.journal.path)
            records[record["image_id"]] = record
        return records

    def write_tables(self, records: dict[str, dict[str, Any]]) -> None:
        """Writes manifest, failures and timings from all records, then drops the journal."""
        table = pd.DataFrame(list(records.values()), columns=ALL_COLUMNS, dtype=object)
        table = sort_by_id(table, ID_COLUMNS)
        failed = table["reason"].notna()
        table["status"] = np.where(failed, FAILED, PREPARED)
        write_csv(self.failures_path, table.loc[failed, FAILURE_COLUMNS])
        write_csv(self.timings_path, table[TIMING_COLUMNS])
        is_remote = table[ETAG].fillna("").ne("").any()
        write_csv(self.manifest_path, table[[*MANIFEST_COLUMNS, *([ETAG] if is_remote else [])]])
        self.journal.remove()

    def read_manifest(self) -> pd.DataFrame:
        """Returns the manifest: text, nullable integers, floats, booleans; a failed image has ids and file.

        `source_etag` is always there, and empty for images from local files.

        Raises:
            UserError: if the folder is not a finished cache, or its manifest is damaged.
        """
        self.settings()
        if not self.manifest_path.exists() or not self.exams_path.exists():
            raise self._not_finished()
        return read_manifest(self.manifest_path)

    def read_failures(self) -> pd.DataFrame:
        """Returns the rows of the images that could not be prepared, as text.

        Raises:
            UserError: if the table is absent or damaged.
        """
        if not self.failures_path.exists():
            raise self._not_finished()
        needed = [name for name in FAILURE_COLUMNS if name not in ADDED_COLUMNS]
        rows = read_text_rows(self.failures_path, needed)
        return pd.DataFrame([{"file": ""} | row for row in rows], columns=FAILURE_COLUMNS)

    def _not_finished(self) -> UserError:
        return UserError(f"{self.folder} is not finished: run the same `mammo prepare` command again")

    def write_exams(self, exams: pd.DataFrame, left_out: pd.DataFrame | None = None) -> None:
        """Writes the exam table, and beside it the rows that it leaves out, if any."""
        if left_out is not None and len(left_out):
            write_exam_table(self.left_out_path, left_out)
        else:
            self.left_out_path.unlink(missing_ok=True)
        write_exam_table(self.exams_path, exams)

    def read_exams(self, *, prepared_only: bool = True) -> pd.DataFrame:
        """Returns the exam table, sorted by id, without the images that could not be prepared.

        Raises:
            UserError: if the folder is not a finished cache, or a table is damaged.
        """
        manifest = self.read_manifest()
        exams = read_cached_exams(self.exams_path)
        if not prepared_only:
            return exams
        prepared = select_prepared(manifest)["image_id"]
        return exams[exams["image_id"].isin(prepared)].reset_index(drop=True)

    def read_all_exams(self) -> pd.DataFrame:
        """Returns the exam table with the rows that it leaves out, sorted by id.

        Raises:
            UserError: if the folder is not a finished cache, or a table is damaged.
        """
        exams = self.read_exams(prepared_only=False)
        left_out = self.read_left_out(exams)
        return sort_by_id(pd.concat([exams, left_out]), ID_COLUMNS) if len(left_out) else exams

    def read_left_out(self, exams: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows that the cache's exam table leaves out, without those that it holds.

        Raises:
            UserError: if the table is damaged.
        """
        if not self.left_out_path.exists():
            return exams.iloc[:0]
        left_out = read_cached_exams(self.left_out_path)  # a killed command may leave rows in both
        return left_out[~left_out["image_id"].isin(exams["image_id"])]
