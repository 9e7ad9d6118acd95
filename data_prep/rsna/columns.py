"""The columns of train.csv and test.csv: their names, what their cells must look like, how they are read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.csv_rows import Problem
from data_prep.storage.places import Place

MISSING = {"", "nan", "na", "n/a", "null", "none", "<na>"}
MAX_CELL_SHOWN = 40  # characters
SCIENTIFIC = re.compile(r"[0-9]+([.,][0-9]+)?[eE][+-]?[0-9]+")
ROUNDED = (
    "a number in scientific notation, which a spreadsheet may have rounded: format the column as text and "
    "fill it in anew"
)


@dataclass(frozen=True)
class Column:
    """What the cells of one column must look like.

    Attributes:
        dtype: pandas dtype of the checked column.
        pattern: regular expression for the whole cell.
        rule: the pattern in words.
        needed: whether no cell may be empty.
        spellings: what to read for other ways of writing a value, which stand here in lower case.
        is_verbatim: whether a cell is taken as it stands: 1.0 may be the name of a file.
    """

    dtype: str
    pattern: str
    rule: str
    needed: bool = False
    spellings: Mapping[str, str] = field(default_factory=dict)
    is_verbatim: bool = False


ID = ("str", r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "1 to 64 letters, digits, _ and -, not starting with _ or -")
CODE = (
    "str",
    r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}",
    "1 to 64 letters, digits, _ . - and spaces, a letter or digit first",
)
EXAM = ("str", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", ID[2].replace("digits, _", "digits, _ ."))
"""No file is called by it, so that the dots of a StudyInstanceUID may stand in it."""
PREDICTION_ID = ("str", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,130}", EXAM[2].replace("64", "131"))
"""As long as the ids of patient, exam and side may be together."""
YES_AND_NO = {"yes": "1", "no": "0", "true": "1", "false": "0"}
LABELS = YES_AND_NO | {"malignant": "1", "benign": "0"}
FLAG = Column("Int64", r"[01]", "0 or 1 (or yes, no, true, false)", spellings=YES_AND_NO)
SIDE_SPELLINGS = {"l": "L", "r": "R", "left": "L", "right": "R"}
BOOLEANS = {"true": "True", "false": "False"}

EXAM_COLUMNS = {
    "patient_id": Column(*ID, needed=True),
    "exam_id": Column(*EXAM, needed=True),
    "image_id": Column(*ID, needed=True),
    "laterality": Column("str", r"[LR]", "L or R", needed=True, spellings=SIDE_SPELLINGS),
    "prediction_id": Column(*PREDICTION_ID),
    "cancer": Column(
        "int64",
        r"[01]",
        "0 or 1 (or yes, no, true, false, malignant, benign)",
        needed=True,
        spellings=LABELS,
    ),
    "view": Column(*CODE),
    "site_id": Column(*CODE),
    "machine_id": Column(*CODE),
    "age": Column("float64", r"[0-9]{1,3}(\.[0-9]+)?", "years such as 61 or 61.5"),
    "implant": FLAG,
    "density": Column(*CODE),
    "biopsy": FLAG,
    "invasive": FLAG,
    "BIRADS": Column(*CODE),
    "difficult_negative_case": Column("boolean", r"True|False", "True or False", spellings=BOOLEANS),
    "file": Column(
        "str",
        r"[^=+\-@\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,1023}",  # in a spreadsheet the others begin a formula
        "a path without control characters, with ./ before a name that begins with = + - or @",
        is_verbatim=True,
    ),
}
"""All that is ever taken from a CSV, in the order of the checked table. Other columns stay behind."""


def check_cells(cells: "pd.Series[str]", column: Column) -> tuple["pd.Series[str]", list[Problem]]:
    """Returns the cells in their one spelling, NaN where empty or wrong, and what is wrong."""
    cleaned = {cell: _clean(cell, column) for cell in cells.unique()}
    valid = {cell: text for cell, text in cleaned.items() if re.fullmatch(column.pattern, text)}
    allowed = valid if column.needed else valid | {cell: text for cell, text in cleaned.items() if not text}
    problems = [
        Problem(row, f"{cells.name} {show_cell(cleaned[cell])} must be {column.rule}{_hint(cleaned[cell])}")
        for row, cell in zip(cells.index.tolist(), cells.tolist(), strict=True)
        if cell not in allowed
    ]
    return pd.Series([valid.get(cell) for cell in cells.tolist()], index=cells.index, dtype="str"), problems


def _hint(text: str) -> str:
    return f"; it is {ROUNDED}" if SCIENTIFIC.fullmatch(text) else ""


def _clean(cell: str, column: Column) -> str:
    """Returns the one spelling of what a cell says."""
    text = cell.strip() if column.is_verbatim else read_cell(cell)
    return column.spellings.get(text.lower(), text)


def read_cell(cell: str) -> str:
    """Returns "" for an empty cell, and 61 for 61.0, as spreadsheets and pandas may write that number."""
    text = cell.strip()
    if text.lower() in MISSING:
        return ""
    return re.sub(r"^([0-9]+)\.0+$", r"\1", text)


def show_cell(text: str) -> str:
    """Returns a cell as messages show it: cut, and with its control characters escaped."""
    if not text:
        return "(empty)"
    return repr(text if len(text) <= MAX_CELL_SHOWN else text[:MAX_CELL_SHOWN] + "...")


def name_columns(rows: pd.DataFrame, known: Sequence[str], *, source: Place) -> pd.DataFrame:
    """Returns the rows with each known column under its own name, whatever its case in the file.

    Spaces and hyphens stand for underscores: `Patient ID` is patient_id.

    Raises:
        UserError: if two columns are the same one; says which by their places, since names may be patients'.
    """
    names = {name.lower(): name for name in known}
    found = [names.get(re.sub(r"[\s-]+", "_", name).lower(), name) for name in rows.columns]
    for place, name in enumerate(found):
        first = found.index(name)
        if name in known and first != place:
            places = f"columns {first + 1} and {place + 1}"
            raise UserError(f"{source} names {places} alike, both are {name}: remove one of them")
    return rows.set_axis(found, axis="columns")
