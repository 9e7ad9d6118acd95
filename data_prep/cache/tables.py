"""The tables of a cache: their columns and types, and how they are read."""

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import read_exam_table
from data_prep.storage.files import read_own

PREPARED, FAILED = "prepared", "failed"
ID_COLUMNS = ["patient_id", "image_id"]
MANIFEST_COLUMNS = [
    *ID_COLUMNS,
    "status",
    "file",
    "source_bytes",
    "bytes_read",
    "source_sha256",
    "image_sha256",
    "laterality",
    "modality",
    "transfer_syntax",
    "photometric_interpretation",
    "window",
    "rows",
    "columns",
    "pixel_aspect",
    "level",
    "box_left",
    "box_top",
    "box_right",
    "box_bottom",
    "turned",
    "flipped",
    "scale_x",
    "scale_y",
    "top",
    "contrast",
    "saturated",
    "patches",
    "warnings",
]
INTEGER_COLUMNS = ["source_bytes", "bytes_read", "rows", "columns", "level", "turned", "top", "patches"]
ADDED_COLUMNS: dict[str, Any] = {"file": "", "modality": "", "pixel_aspect": 1.0, "turned": 0, "patches": ""}
"""Columns that the manifests of older versions lack, and what holds for all of their images; "": unknown."""
MANIFEST_TYPES = dict.fromkeys(MANIFEST_COLUMNS, "str")
MANIFEST_TYPES |= dict.fromkeys(INTEGER_COLUMNS, "Int64")
MANIFEST_TYPES |= dict.fromkeys(["box_left", "box_top", "box_right", "box_bottom"], "Int64")
MANIFEST_TYPES |= dict.fromkeys(["pixel_aspect", "scale_x", "scale_y", "contrast", "saturated"], "float64")
MANIFEST_TYPES |= {"flipped": "boolean", "source_etag": "str"}
ETAG = "source_etag"
"""The manifest's last column, where an image came from object storage."""
MAY_BE_EMPTY = ("status", "file", "modality", "patches", "warnings")
NEEDED_COLUMNS = [name for name in MANIFEST_COLUMNS if name not in MAY_BE_EMPTY]
"""The cells that every prepared image has."""
FAILURE_COLUMNS = [*ID_COLUMNS, "reason", "message", "file"]
TIMING_COLUMNS = [*ID_COLUMNS, "source_mtime_ns", "seconds"]
ALL_COLUMNS = list(dict.fromkeys([*MANIFEST_COLUMNS, ETAG, *FAILURE_COLUMNS, *TIMING_COLUMNS]))


def damaged(path: Path) -> UserError:
    """Returns what to say of a table of a cache that is not as `prepare` left it."""
    return UserError(f"{path} is damaged: remove it and run the `mammo prepare` command of this cache again")


def is_whole(record: dict[str, Any]) -> bool:
    """Whether an image failed, or has all that the manifest says of a prepared one."""
    return bool(record.get("reason")) or all(record.get(name) not in {None, ""} for name in NEEDED_COLUMNS)


def read_cached_exams(path: Path) -> pd.DataFrame:
    """Reads `exams.csv` or `left_out.csv`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return read_exam_table(path)
    except UserError as error:
        raise damaged(path) from error


def read_manifest(path: Path) -> pd.DataFrame:
    """Reads `manifest.csv` with the types of `MANIFEST_TYPES`; `source_etag` is always there.

    Raises:
        UserError: if it is damaged.
    """
    try:
        table = pd.read_csv(io.BytesIO(read_own(path)), dtype=MANIFEST_TYPES)
        for name in ADDED_COLUMNS.keys() - table.columns:
            is_known = (table["status"] == PREPARED) & (ADDED_COLUMNS[name] != "")
            values = [ADDED_COLUMNS[name] if known else None for known in is_known]
            dtype: Any = MANIFEST_TYPES[name]
            table[name] = pd.Series(values, table.index, dtype=dtype)
        manifest = table[MANIFEST_COLUMNS].assign(**{ETAG: table.get(ETAG)})
    except (ValueError, KeyError) as error:
        raise damaged(path) from error
    if manifest[ID_COLUMNS].isna().any(axis=None):
        raise damaged(path)
    return manifest.fillna(dict.fromkeys(["file", "modality", "warnings", ETAG], ""))


def read_text_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Returns rows as text, so that a table that is read and written again keeps every byte."""
    if not path.exists():
        return []
    try:
        text = read_own(path).decode("utf-8")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, names = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(path) from error
    is_ragged = any(None in row or None in row.values() for row in rows)
    if is_ragged or not {*columns} <= {*names} or not all(row["image_id"] for row in rows):
        raise damaged(path)
    return rows


def select_prepared(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of images that could be prepared."""
    return manifest[manifest["status"] == PREPARED]
