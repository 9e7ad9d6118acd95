"""The CSV of a submission: made of breasts, written as the competition wants it, checked against test.csv."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from data_prep.errors import UserError, count
from data_prep.rsna.exam_table import read_prediction_ids
from data_prep.storage.atomic import write_csv
from data_prep.storage.files import read_input
from data_prep.storage.places import Place

SUBMISSION_COLUMNS = ["prediction_id", "cancer"]
BREASTS_OF_AN_EXAM = 2  # these may well have equal values; more of them should not


def make_submission(
    breasts: pd.DataFrame, required_ids: Sequence[str], *, threshold: float | None = None
) -> pd.DataFrame:
    """Takes `prediction_id` and `probability` of breasts to a submission with rows in the order required.

    With a threshold, `cancer` is 1 for a breast that reaches it, else 0; without, it is the probability.

    Raises:
        ValueError: if the breasts are not exactly the required ones, once each, with probabilities in 0..1.
    """
    surplus = Counter(breasts["prediction_id"])
    surplus.subtract(required_ids)
    odd_ids = [prediction_id for prediction_id, count in surplus.items() if count]
    if odd_ids:
        raise ValueError(f"{len(odd_ids)} ids are not there exactly as required, such as {odd_ids[0]!r}")
    wrong = breasts[~breasts["probability"].between(0, 1)]
    if len(wrong):
        prediction_id, probability = wrong.iloc[0][["prediction_id", "probability"]]
        raise ValueError(f"the probability of {prediction_id} is {probability}, which is not in 0..1")
    probabilities = breasts.set_index("prediction_id")["probability"].loc[list(required_ids)]
    values = probabilities if threshold is None else (probabilities >= threshold).astype(int)
    return values.rename("cancer").reset_index()


def write_submission(
    breasts: pd.DataFrame, path: Path, *, required_ids: Sequence[str], threshold: float | None = None
) -> pd.DataFrame:
    """Writes what `make_submission` makes, as the competition wants it: two columns, no index; returns it.

    Raises:
        ValueError: as `make_submission` does.
    """
    submission = make_submission(breasts, required_ids, threshold=threshold)
    write_csv(path, submission)
    return submission


def check_submission(path: Path, folder: Place) -> list[str]:
    """Compares a submission with `test.csv` in the folder and says what is wrong; an empty list means valid.

    Raises:
        UserError: if one of the two files is absent, or `test.csv` itself is not in order.
    """
    required_ids = read_prediction_ids(folder)
    if not path.is_file():
        raise UserError(f"there is no submission at {path}: name the CSV that `mammo predict` wrote")
    return find_problems(path, required_ids)


def find_problems(path: Path, required_ids: list[str]) -> list[str]:
    """Compares a submission with the ids that it must have, and says all that is wrong."""
    header, records, problems = _read_strictly(path)
    problems += _column_problems(header, records)
    columns = {name: column for column, name in reversed([*enumerate(map(_essence, header))])}
    checks: dict[str, Callable[[pd.Series[str]], list[str]]] = {
        "prediction_id": partial(_id_problems, required_ids=required_ids),
        "cancer": _probability_problems,
    }
    for name, check in checks.items():
        column = columns.get(_essence(name))
        if column is not None:
            problems += check(pd.Series({row: cells[column] for row, cells in records.items()}, dtype="str"))
    return problems


def _read_strictly(path: Path) -> tuple[list[str], dict[int, list[str]], list[str]]:
    """Returns names and rows as Kaggle sees them, by spreadsheet row, and what makes no table of them."""
    try:
        text = read_input(path).decode("utf-8")
        header, *records = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        return [], {}, [f"it is not a CSV in UTF-8 ({error})"]
    numbered = {row: cells for row, cells in enumerate(records, start=2) if cells}  # blank lines do no harm
    ragged = [row for row, cells in numbered.items() if len(cells) != len(header)]
    whole = {row: cells for row, cells in numbered.items() if len(cells) == len(header)}
    if not ragged:
        return header, whole, []
    advice = "; a decimal comma makes two cells of one" if len(numbered[ragged[0]]) > len(header) else ""
    problem = (
        f"{count(len(ragged), 'row')} with more or fewer cells than the header, first row {ragged[0]}{advice}"
    )
    return header, whole, [problem]


def _column_problems(header: list[str], records: dict[int, list[str]]) -> list[str]:
    problems = []
    if header and header != SUBMISSION_COLUMNS:
        index_columns = [name for name in header if name in {"", "index"} or name.startswith("Unnamed")]
        advice = "; leave the index column out" if index_columns else ""
        if len(header) == 1 and (found := re.search(r"[;\t]", header[0])):
            separator = "semicolons" if found[0] == ";" else "tabs"
            advice = f"; the cells are separated by {separator}: separate them by commas"
        meant = {_essence(name) for name in SUBMISSION_COLUMNS}
        known = [repr(name) for name in header if _essence(name) in meant]  # others may be a patient's values
        others = count(len(header) - len(known), "other name") if len(known) < len(header) else ""
        there = " and ".join(filter(None, [", ".join(known), others]))
        problems.append(f"the columns must be prediction_id, cancer, but are {there}{advice}")
    if not records:
        problems.append("there are no rows")
    return problems


def _id_problems(identifiers: "pd.Series[str]", required_ids: list[str]) -> list[str]:
    required = set(required_ids)
    unknown = identifiers[~identifiers.isin(required)]
    intended = {_essence(identifier): identifier for identifier in required_ids}
    damaged = unknown[unknown.map(_essence).isin(intended)]
    mended = {intended[_essence(identifier)] for identifier in damaged}
    missing = [identifier for identifier in required_ids if identifier not in {*identifiers, *mended}]
    if len(identifiers) and len(unknown) - len(damaged) == len(identifiers):
        sentence = "none of its {} ids is in test.csv, whose first is {!r}: it is made for another test set"
        return [sentence.format(len(identifiers), required_ids[0])]
    problems = _describe(unknown.drop(damaged.index), "id", "not in test.csv")
    problems += _describe(identifiers[identifiers.duplicated()], "id", "standing in an earlier row too")
    if len(damaged):
        meant = intended[_essence(damaged.iloc[0])]
        problems += _describe(damaged, "id", f"with other blanks, dashes or case than {meant!r} and its like")
    if missing:
        problems.append(
            f"{len(missing)} of {len(required_ids)} required ids are missing, first {missing[0]!r}"
        )
    return problems


def _essence(identifier: str) -> str:
    """What is left of an id when blanks and dashes come or go and the case changes."""
    return re.sub(r"[\s_\ufeff-]", "", identifier).upper()


def _probability_problems(cells: "pd.Series[str]") -> list[str]:
    probabilities = pd.to_numeric(cells, errors="coerce")
    is_number = probabilities.notna()
    outside = is_number & ~probabilities.between(0, 1)
    problems = _describe(cells[~is_number], "value", "of cancer other than a number")
    problems += _describe(cells[outside], "value", "of cancer outside 0..1")
    if len(cells) > BREASTS_OF_AN_EXAM and is_number.all() and (probabilities == probabilities.iloc[0]).all():
        problems.append(f"all {len(cells)} values of cancer are {cells.iloc[0]}, which tells nothing apart")
    return problems


def _describe(cells: "pd.Series[str]", noun: str, what: str) -> list[str]:
    """Says how many cells are wrong, and shows the first; nothing for none."""
    if cells.empty:
        return []
    return [f"{count(len(cells), noun)} {what}, first {cells.iloc[0]!r} in row {cells.index[0]}"]
