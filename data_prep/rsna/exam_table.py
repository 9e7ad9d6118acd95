"""train.csv and test.csv: which images there are, whose, and in which files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.rsna.columns import EXAM_COLUMNS, check_cells, name_columns
from data_prep.rsna.doubtful_cells import find_doubtful_cells
from data_prep.rsna.image_files import IMAGE_SUFFIXES, find_image_files
from data_prep.storage.atomic import write_csv
from data_prep.storage.csv_rows import Problem, raise_if_any, read_rows
from data_prep.storage.places import Place

Split = Literal["train", "test"]

EXAM_ID = "exam_id"
"""Tells a patient's exams apart, such as her screening rounds; RSNA's tables have none."""


def name_breast(*tables: pd.DataFrame) -> list[str]:
    """Returns the columns that name a breast: one of an exam, where all of these tables tell exams apart."""
    has_exams = all(EXAM_ID in table for table in tables)
    return ["patient_id", *([EXAM_ID] if has_exams else []), "laterality"]


def read_exams(folder: Place, split: Split) -> pd.DataFrame:
    """Reads and checks `<split>.csv` of a folder in RSNA layout: one row per image, by patient and image id.

    The columns are those of `EXAM_COLUMNS` that the file has, in that order. `prediction_id` is always there;
    `cancer` is there in the train split alone.

    Raises:
        UserError: if the file or a needed column is absent, or naming all rows that break a rule.
    """
    return sort_by_id(_read_in_file_order(folder, split), ["patient_id", "image_id"])


def read_prediction_ids(folder: Place) -> list[str]:
    """Reads the ids that a submission must hold: those of test.csv, each once, in order of appearance.

    Raises:
        UserError: as `read_exams` does.
    """
    return list(_read_in_file_order(folder, "test")["prediction_id"].unique())


def _read_in_file_order(folder: Place, split: Split) -> pd.DataFrame:
    path = folder / f"{split}.csv"
    if not path.is_file():
        is_here = isinstance(folder, Path) and folder.is_dir()
        collect = f"mammo collect {folder} --labels LABELS.csv --out DATA --split {split}"
        hint = f", or make one of your own files: `{collect}`" if is_here else ""
        raise UserError(
            f"{folder} has no {split}.csv: the layout is {split}.csv beside "
            f"{split}_images/<patient_id>/<image_id>.dcm (or .png); give the folder that holds them{hint}"
        )
    return check_exams(read_named_rows(path), split, source=path)


def read_named_rows(path: Place) -> pd.DataFrame:
    """Reads text cells as `read_rows` does; the columns of `EXAM_COLUMNS` have their own names.

    Raises:
        UserError: as `read_rows` does, or if the file has one of them twice.
    """
    return name_columns(read_rows(path), [*EXAM_COLUMNS], source=path)


def read_exam_table(path: Path) -> pd.DataFrame:
    """Reads a table that `write_exam_table` wrote: the same columns and dtypes, by patient and image id.

    Raises:
        UserError: if the file is absent or somebody damaged it.
    """
    rows = read_rows(path)
    exams = _check_exams(rows, "train" if "cancer" in rows else "test", source=path)
    return sort_by_id(exams, ["patient_id", "image_id"])


def write_exam_table(path: Path, exams: pd.DataFrame) -> None:
    """Writes checked exams, and of them only the columns in `EXAM_COLUMNS`."""
    write_csv(path, exams[[name for name in EXAM_COLUMNS if name in exams]])


def check_exams(
    rows: pd.DataFrame, split: Split, *, source: Place, others: Sequence[Problem] = ()
) -> pd.DataFrame:
    """Turns text cells, as from `read_rows`, into checked exams in the same order.

    Labels in a test table are not read, and its doubtful cells pass: nobody can mend a hidden one, and no
    prediction depends on them. `others` are problems of the same rows that were found before.

    Raises:
        UserError: naming `source` and, by spreadsheet row, everything that breaks a rule.
    """
    require_columns(rows, ["patient_id", "image_id", "laterality"], split, source=source)
    doubts = find_doubtful_cells(rows) if split == "train" else []
    return _check_exams(rows, split, source=source, others=[*others, *doubts])


def _check_exams(
    rows: pd.DataFrame, split: Split, *, source: Place, others: Sequence[Problem] = ()
) -> pd.DataFrame:
    """Does so without a look for doubtful cells: a table of ours may be older than one of its rules."""
    require_columns(rows, ["patient_id", "image_id", "laterality"], split, source=source)
    cells, problems = pd.DataFrame(index=rows.index), list(others)
    for name, column in EXAM_COLUMNS.items():
        if name in rows and (split == "train" or name != "cancer"):
            cells[name], wrong = check_cells(rows[name], column)
            problems += wrong
    derived = join_ids(cells, name_breast(cells))
    cells["prediction_id"] = cells["prediction_id"].fillna(derived) if "prediction_id" in cells else derived
    raise_if_any([*problems, *_find_contradictions(cells)], source=source)
    present = [name for name in EXAM_COLUMNS if name in cells]
    exams = pd.DataFrame({name: _convert(cells[name], EXAM_COLUMNS[name].dtype) for name in present})
    return exams.reset_index(drop=True)


def _find_contradictions(cells: pd.DataFrame) -> list[Problem]:
    """Checks the rules between rows; cells that broke a rule of their own are NaN here and take no part."""
    image_ids = cells["image_id"].dropna()
    twice = image_ids[image_ids.duplicated()]
    problems = [
        Problem(row, f"image_id {image_id} stands in an earlier row too, an image has one row")
        for row, image_id in zip(twice.index.tolist(), twice, strict=True)
    ]
    breast = name_breast(cells)
    problems += _find_disagreements(cells, breast, "prediction_id")
    for name in breast:
        problems += _find_disagreements(cells, ["prediction_id"], name)
    if "cancer" in cells:
        problems += _find_disagreements(cells, breast, "cancer")
    return problems


def _find_disagreements(cells: pd.DataFrame, group: list[str], name: str) -> list[Problem]:
    """Finds rows whose value is not that of the first row of their group."""
    known = cells[[*group, name]].dropna()
    known["first"] = known.groupby(group, sort=False)[name].transform("first")
    wrong = known[known[name] != known["first"]]
    return [
        Problem(row, f"{name} {value} but {expected} in an earlier row of the same {' and '.join(group)}")
        for row, value, expected in zip(wrong.index.tolist(), wrong[name], wrong["first"], strict=True)
    ]


def _convert(cells: "pd.Series[str]", dtype: str) -> "pd.Series[Any]":
    if dtype == "boolean":
        return cells.map({"True": True, "False": False}).astype("boolean")
    return cells if dtype == "str" else pd.to_numeric(cells).astype(dtype)  # type: ignore[call-overload]


def require_columns(rows: pd.DataFrame, needed: list[str], split: Split, *, source: Place) -> None:
    """Checks that a table has rows and the needed columns, for the train split `cancer` too.

    Raises:
        UserError: naming the columns that are needed and those that are there.
    """
    needed = [*needed, "cancer"] if split == "train" else needed
    missing = [name for name in needed if name not in rows]
    if missing:
        there = ", ".join(name for name in rows if name in EXAM_COLUMNS) or "none of them"
        raise UserError(  # other names are not repeated: a file without a header has a patient's values there
            f"{source} lacks the column {', '.join(missing)}: it needs {', '.join(needed)} and has {there}"
        )
    if rows.empty:
        raise UserError(f"{source} has no rows below its header: it needs one row per image")


def join_ids(table: pd.DataFrame, columns: Sequence[str]) -> "pd.Series[str]":
    """Returns the ids of each row in one, such as patient_laterality of a breast."""
    first, *others = columns
    joined: pd.Series[str] = table[first]
    for name in others:
        joined = joined + "_" + table[name]
    return joined


def number_exams(table: pd.DataFrame) -> NDArray[np.int64]:
    """Numbers the exam of each row, from 0; where no ids tell exams apart, a patient has one."""
    by_exam = table.groupby([name for name in name_breast(table) if name != "laterality"])
    return np.asarray(by_exam.ngroup(), np.int64)


def id_sort_key(identifier: str) -> tuple[int, str]:
    """Orders ids by length, then text: as numbers where they are numbers."""
    return len(identifier), identifier


def sort_by_id(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Sorts by columns of ids in the order of `id_sort_key`; equal rows keep their order."""

    def rank(ids: "pd.Series[str]") -> "pd.Series[int]":
        places = {identifier: place for place, identifier in enumerate(sorted(ids.unique(), key=id_sort_key))}
        return ids.map(places)

    return table.sort_values(list(columns), key=rank, kind="stable", ignore_index=True)


def locate_images(exams: pd.DataFrame, folder: Place, split: Split) -> "pd.Series[Any]":
    """Finds each row's file in `<split>_images/<patient_id>/`: an ImagePath, or None where there is none.

    Raises:
        UserError: if object storage does not tell.
    """
    pairs = list(zip(exams["patient_id"], exams["image_id"], strict=True))
    return pd.Series(find_image_files(folder / f"{split}_images", pairs), index=exams.index, dtype=object)


class LocatedExams(NamedTuple):
    """Exams whose files are all there, their paths with the same index, and how many rows were left out."""

    exams: pd.DataFrame
    paths: "pd.Series[Any]"
    num_absent: int


def require_images(
    exams: pd.DataFrame, folder: Place, split: Split, *, present_only: bool = False
) -> LocatedExams:
    """Locates all images; `present_only` leaves rows without a file out.

    Raises:
        UserError: if a file is absent and `present_only` is not set, or if all files are.
    """
    paths = locate_images(exams, folder, split)
    absent = exams[paths.isna()]
    if len(absent) == len(exams) or (len(absent) and not present_only):
        patient_id, image_id = absent.iloc[0][["patient_id", "image_id"]]
        path = folder / f"{split}_images" / patient_id / f"{image_id}.dcm"
        suffixes = ", ".join(suffix or "none" for suffix in IMAGE_SUFFIXES[1:])
        way_out = "" if len(absent) == len(exams) else ", or leave their rows out with --present-only"
        raise UserError(
            f"{len(absent)} of the {len(exams)} images in {split}.csv have no readable file, the first is "
            f"image {image_id}: put it at {path} (or with another suffix: {suffixes}){way_out}"
        )
    present = paths.notna()
    return LocatedExams(
        exams[present].reset_index(drop=True), paths[present].reset_index(drop=True), len(absent)
    )


def select_patients(exams: pd.DataFrame, num_patients: int, seed: int) -> pd.DataFrame:
    """Takes all rows of some patients, drawn by the seed with the share of cancer patients kept.

    Where both kinds exist, two patients or more hold both. The draw of n patients lies within that of n + 1.

    Raises:
        UserError: if fewer than one patient is asked for, or more than there are.
    """
    labels = exams["cancer"] if "cancer" in exams else pd.Series(0, index=exams.index)
    has_cancer = (labels == 1).groupby(exams["patient_id"]).any()  # sorted, whatever the order of the rows
    if not 1 <= num_patients <= len(has_cancer):
        raise UserError(
            f"{num_patients} patients asked for: choose from 1 to the {len(has_cancer)} that there are"
        )
    num_cancer = round(num_patients * has_cancer.mean())
    if has_cancer.nunique() == 2 and num_patients >= 2:
        num_cancer = min(max(num_cancer, 1), num_patients - 1)
    generator = np.random.default_rng(seed)
    with_cancer = generator.permutation(has_cancer.index[has_cancer])[:num_cancer]
    without = generator.permutation(has_cancer.index[~has_cancer])[: num_patients - num_cancer]
    chosen = exams["patient_id"].isin([*with_cancer, *without])
    return exams[chosen].reset_index(drop=True)
