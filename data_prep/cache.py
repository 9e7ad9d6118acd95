"""The cache folder: one PNG per image, the exam table, and what became of every file. Knows no decoder.

While `prepare` runs, outcomes are appended to a journal; at its end they move into `manifest.csv`,
`failures.csv` and `timings.csv`. A killed run leaves a journal that the next one reads.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.exams import Split, read_exam_table, sort_by_id, write_exam_table
from data_prep.files import Journal, make_folder, write_bytes, write_csv, write_text
from data_prep.frame import Image
from data_prep.settings import PrepareSettings, StrictSettings, differences, dump_settings, load_settings

PREPARED, FAILED = "prepared", "failed"

ID_COLUMNS = ["patient_id", "image_id"]
MANIFEST_COLUMNS = [
    *ID_COLUMNS,
    "status",
    "source_bytes",
    "bytes_read",
    "source_sha256",
    "image_sha256",
    "transfer_syntax",
    "photometric_interpretation",
    "window",
    "rows",
    "columns",
    "level",
    "box_left",
    "box_top",
    "box_right",
    "box_bottom",
    "flipped",
    "scale_x",
    "scale_y",
    "top",
    "contrast",
    "saturated",
    "warnings",
]
MANIFEST_TYPES = dict.fromkeys(MANIFEST_COLUMNS, "str")
MANIFEST_TYPES |= dict.fromkeys(["source_bytes", "bytes_read", "rows", "columns", "level", "top"], "Int64")
MANIFEST_TYPES |= dict.fromkeys(["box_left", "box_top", "box_right", "box_bottom"], "Int64")
MANIFEST_TYPES |= dict.fromkeys(["scale_x", "scale_y", "contrast", "saturated"], "float64")
MANIFEST_TYPES |= {"flipped": "boolean"}
FAILURE_COLUMNS = [*ID_COLUMNS, "reason", "message"]
TIMING_COLUMNS = [*ID_COLUMNS, "source_mtime_ns", "seconds"]


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
    def settings_path(self) -> Path:
        """Split and settings."""
        return self.folder / "settings.toml"

    @property
    def journal(self) -> Journal:
        """Outcomes that stand in no table yet."""
        return Journal(self.folder / "journal.jsonl")

    def image_path(self, patient_id: str, image_id: str) -> Path:
        """Where one image's PNG lies."""
        return self.folder / "images" / patient_id / f"{image_id}.png"

    def image_paths(self, exams: pd.DataFrame) -> list[Path]:
        """Where the PNG of each row lies."""
        return [self.image_path(*ids) for ids in zip(exams["patient_id"], exams["image_id"], strict=True)]

    def settings(self) -> CacheSettings:
        """Reads the cache's settings.

        Raises:
            UserError: if the folder is no cache.
        """
        if not self.settings_path.exists():
            raise UserError(
                f"{self.folder} is not a cache: it has no settings.toml; `mammo prepare` makes one"
            )
        return load_settings(CacheSettings, self.settings_path)

    def open_for(self, settings: CacheSettings) -> None:
        """Makes the folder, or checks that what it holds was made in the same way.

        Raises:
            UserError: if it holds another split or images of other settings; names every difference.
        """
        make_folder(self.folder)
        if not self.settings_path.exists():
            write_text(self.settings_path, dump_settings(settings))
            return
        changed = differences(self.settings(), settings)
        if changed:
            raise UserError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): "
                "choose another --cache, or remove this folder to make it anew"
            )

    def read_records(self) -> dict[str, dict[str, Any]]:
        """Returns the newest outcome of every image by image_id, from the tables and the journal."""
        records: dict[str, dict[str, Any]] = {}
        for path in (self.timings_path, self.manifest_path, self.failures_path):
            for row in _read_table(path):
                records.setdefault(row["image_id"], {}).update(row)
        for row in self.journal.read():
            records[row["image_id"]] = row
        return records

    def write_tables(self, records: dict[str, dict[str, Any]]) -> None:
        """Writes manifest, failures and timings from all records, then drops the journal."""
        table = pd.DataFrame(list(records.values()), columns=_ALL_COLUMNS, dtype=object)
        table = sort_by_id(table, ID_COLUMNS)
        failed = table["reason"].notna()
        table["status"] = np.where(failed, FAILED, PREPARED)
        write_csv(self.failures_path, table.loc[failed, FAILURE_COLUMNS])
        write_csv(self.timings_path, table[TIMING_COLUMNS])
        write_csv(self.manifest_path, table[MANIFEST_COLUMNS])
        self.journal.remove()

    def read_manifest(self) -> pd.DataFrame:
        """Returns the manifest: text, nullable integers, floats, booleans; a failed image has ids alone.

        Raises:
            UserError: if the folder is no finished cache.
        """
        self.settings()
        if not self.manifest_path.exists() or not self.exams_path.exists():
            raise UserError(f"{self.folder} is not finished: give the same `mammo prepare` command again")
        manifest = pd.read_csv(self.manifest_path, dtype=MANIFEST_TYPES)
        return manifest.fillna({"warnings": ""})

    def write_exams(self, exams: pd.DataFrame) -> None:
        """Writes the exam table."""
        write_exam_table(self.exams_path, exams)

    def read_exams(self, *, prepared_only: bool = True) -> pd.DataFrame:
        """Returns the exam table, sorted by id, without the images that could not be prepared.

        Raises:
            UserError: if the folder is no finished cache.
        """
        manifest = self.read_manifest()
        exams = read_exam_table(self.exams_path)
        if not prepared_only:
            return exams
        prepared = manifest.loc[manifest["status"] == PREPARED, "image_id"]
        return exams[exams["image_id"].isin(prepared)].reset_index(drop=True)


_ALL_COLUMNS = list(dict.fromkeys(MANIFEST_COLUMNS + FAILURE_COLUMNS + TIMING_COLUMNS))


def _read_table(path: Path) -> list[dict[str, str]]:
    """Returns rows as text, so that a table that is read and written again keeps every byte."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_image(path: Path, image: Image) -> str:
    """Writes a PNG atomically and returns the file's SHA-256."""
    encoded, payload = cv2.imencode(".png", image)
    assert encoded, "OpenCV encodes every image of 8 or 16 bits"
    content = payload.tobytes()
    make_folder(path.parent)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_image(path: Path) -> Image:
    """Reads a PNG of the cache.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise UserError(
            f"{path} cannot be read: give the `mammo prepare` command of this cache again"
        ) from error
    if image is None:
        raise UserError(
            f"{path} is damaged: remove it and give the `mammo prepare` command of this cache again"
        )
    return np.asarray(image, np.uint16) if image.dtype == np.uint16 else np.asarray(image, np.uint8)
