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
from data_prep.files import Journal, is_temporary, make_folder, write_bytes, write_csv, write_text
from data_prep.frame import Image
from data_prep.locks import LOCK_NAME
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
    "laterality",
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
MANIFEST_TYPES |= {"flipped": "boolean", "source_etag": "str"}
ETAG = "source_etag"
"""The manifest's last column, where an image came from object storage."""
NEEDED_COLUMNS = [name for name in MANIFEST_COLUMNS if name not in {"status", "warnings"}]
"""The cells that every prepared image has."""
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
    def left_out_path(self) -> Path:
        """The other rows of test.csv: those that the command left out, and that a submission needs."""
        return self.folder / "left_out.csv"

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
            UserError: if the folder is no cache, or its settings are damaged.
        """
        if not self.settings_path.exists():
            raise UserError(
                f"{self.folder} is not a cache: it has no settings.toml; `mammo prepare` makes one"
            )
        try:
            return load_settings(CacheSettings, self.settings_path)
        except UserError as error:
            raise UserError(
                f"{error}; remove {self.folder} and give its `mammo prepare` command again"
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
                    f"{self.folder} is no cache and holds {path.name}: name an empty or new folder as --cache"
                )

    def read_records(self) -> dict[str, dict[str, Any]]:
        """Returns the newest outcome of every image by image_id, from the tables and the journal.

        Raises:
            UserError: if one of them is damaged.
        """
        if self.manifest_path.exists():
            _read_manifest(self.manifest_path)  # raises now what would be found after the work
        records: dict[str, dict[str, Any]] = {}
        tables = {
            self.timings_path: TIMING_COLUMNS,
            self.manifest_path: MANIFEST_COLUMNS,
            self.failures_path: FAILURE_COLUMNS,
        }
        for path, columns in tables.items():
            for row in _read_table(path, columns):
                records.setdefault(row["image_id"], {}).update(row)
        for record in self.journal.read():
            if not all(isinstance(record.get(name), str) for name in ID_COLUMNS):
                raise damaged(self.journal.path)
            records[record["image_id"]] = record
        return records

    def write_tables(self, records: dict[str, dict[str, Any]]) -> None:
        """Writes manifest, failures and timings from all records, then drops the journal."""
        table = pd.DataFrame(list(records.values()), columns=_ALL_COLUMNS, dtype=object)
        table = sort_by_id(table, ID_COLUMNS)
        failed = table["reason"].notna()
        table["status"] = np.where(failed, FAILED, PREPARED)
        write_csv(self.failures_path, table.loc[failed, FAILURE_COLUMNS])
        write_csv(self.timings_path, table[TIMING_COLUMNS])
        is_remote = table[ETAG].fillna("").ne("").any()
        write_csv(self.manifest_path, table[[*MANIFEST_COLUMNS, *([ETAG] if is_remote else [])]])
        self.journal.remove()

    def read_manifest(self) -> pd.DataFrame:
        """Returns the manifest: text, nullable integers, floats, booleans; a failed image has ids alone.

        `source_etag` is always there, and empty for images from local files.

        Raises:
            UserError: if the folder is no finished cache, or its manifest is damaged.
        """
        self.settings()
        if not self.manifest_path.exists() or not self.exams_path.exists():
            raise self._not_finished()
        return _read_manifest(self.manifest_path)

    def read_failures(self) -> pd.DataFrame:
        """Returns the rows of the images that could not be prepared, as text.

        Raises:
            UserError: if the table is absent or damaged.
        """
        if not self.failures_path.exists():
            raise self._not_finished()
        return pd.DataFrame(_read_table(self.failures_path, FAILURE_COLUMNS), columns=FAILURE_COLUMNS)

    def _not_finished(self) -> UserError:
        return UserError(f"{self.folder} is not finished: give the same `mammo prepare` command again")

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
            UserError: if the folder is no finished cache, or a table is damaged.
        """
        manifest = self.read_manifest()
        exams = _read_exams(self.exams_path)
        if not prepared_only:
            return exams
        prepared = manifest.loc[manifest["status"] == PREPARED, "image_id"]
        return exams[exams["image_id"].isin(prepared)].reset_index(drop=True)

    def read_all_exams(self) -> pd.DataFrame:
        """Returns the exam table with the rows that it leaves out, sorted by id.

        Raises:
            UserError: if the folder is no finished cache, or a table is damaged.
        """
        exams = self.read_exams(prepared_only=False)
        if not self.left_out_path.exists():
            return exams
        every = pd.concat([exams, _read_exams(self.left_out_path)])
        return sort_by_id(every.drop_duplicates("image_id"), ID_COLUMNS)  # a killed command may leave both


_ALL_COLUMNS = list(dict.fromkeys([*MANIFEST_COLUMNS, ETAG, *FAILURE_COLUMNS, *TIMING_COLUMNS]))


def damaged(path: Path) -> UserError:
    """Returns what to say of a table of a cache that is not as `prepare` left it."""
    return UserError(f"{path} is damaged: remove it and give the `mammo prepare` command of this cache again")


def is_whole(record: dict[str, Any]) -> bool:
    """Whether an image failed, or has all that the manifest says of a prepared one."""
    return bool(record.get("reason")) or all(record.get(name) not in {None, ""} for name in NEEDED_COLUMNS)


def _read_exams(path: Path) -> pd.DataFrame:
    try:
        return read_exam_table(path)
    except UserError as error:
        raise damaged(path) from error


def _read_manifest(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=MANIFEST_TYPES)
        manifest = table[MANIFEST_COLUMNS].assign(**{ETAG: table.get(ETAG)})
    except (ValueError, KeyError) as error:
        raise damaged(path) from error
    if manifest[ID_COLUMNS].isna().any(axis=None):
        raise damaged(path)
    return manifest.fillna({"warnings": "", ETAG: ""})


def _read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Returns rows as text, so that a table that is read and written again keeps every byte."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows, names = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path) from error
    is_ragged = any(None in row or None in row.values() for row in rows)
    if is_ragged or not {*columns} <= {*names} or not all(row["image_id"] for row in rows):
        raise damaged(path)
    return rows


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
    return decode_image(read_image_file(path), path)


def read_image_file(path: Path) -> bytes:
    """Returns the bytes of a PNG of the cache.

    Raises:
        UserError: if it is missing or cannot be read.
    """
    again = "give the `mammo prepare` command of this cache again"
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read, it is missing: {again}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): remove it and {again}") from error


def decode_image(content: bytes, path: Path) -> Image:
    """Returns the image of a PNG that was read from `path`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # the file is empty
        raise damaged(path) from error
    if image is None:
        raise damaged(path)
    return np.asarray(image, np.uint16) if image.dtype == np.uint16 else np.asarray(image, np.uint8)
