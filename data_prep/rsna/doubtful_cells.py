"""Cells that could be read and would mislead: refused in the tables that users give, with the way out."""

import re
from collections.abc import Iterator

import pandas as pd

from data_prep.rsna.columns import ROUNDED, read_cell, show_cell
from data_prep.storage.csv_rows import Problem

AGES = (1.0, 120.0)  # years; 0 and 999 are how tables say that they do not know
NUMBER = re.compile(r"[0-9]+")
SCIENTIFIC_ID = re.compile(r"[0-9]+(\.[0-9]+)?[eE][0-9]+")  # with a sign it is no id anyway


def find_doubtful_cells(rows: pd.DataFrame) -> list[Problem]:
    """Returns the problems of text cells that keep the rules of their columns."""
    problems = [*_find_lookalikes(rows["patient_id"])]
    for name in ("patient_id", "exam_id", "image_id"):
        problems += _find_scientific_ids(rows[name]) if name in rows else []
    return problems + (list(_find_impossible_ages(rows["age"])) if "age" in rows else [])


def _find_lookalikes(patient_ids: "pd.Series[str]") -> Iterator[Problem]:
    """Finds ids that a spreadsheet, or a file system, takes for one: 0001 and 1, abc and ABC."""
    firsts: dict[str, str] = {}
    for row, patient_id in _read(patient_ids):
        number = patient_id.lstrip("0") if NUMBER.fullmatch(patient_id) else patient_id
        first = firsts.setdefault(number.lower(), patient_id)
        if first != patient_id:
            yield Problem(
                row,
                f"patient_id {show_cell(patient_id)} but {show_cell(first)} in an earlier row: write one "
                "patient's id in one way, and give two patients ids that differ in more than zeros and case",
            )


def _find_scientific_ids(ids: "pd.Series[str]") -> Iterator[Problem]:
    """Finds 1E5 among numbers: it may be a number that a spreadsheet has cut, or an id that it would."""
    known = _read(ids)
    if all(NUMBER.fullmatch(text) or SCIENTIFIC_ID.fullmatch(text) for _, text in known):
        for row, text in known:
            if SCIENTIFIC_ID.fullmatch(text):
                yield Problem(row, f"{ids.name} {show_cell(text)} is {ROUNDED}")


def _find_impossible_ages(ages: "pd.Series[str]") -> Iterator[Problem]:
    for row, text in _read(ages):
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text) and not AGES[0] <= float(text) <= AGES[1]:
            yield Problem(
                row,
                f"age {show_cell(text)} must be from {AGES[0]:g} to {AGES[1]:g} years: leave the cell empty "
                "where it is not known",
            )


def _read(cells: "pd.Series[str]") -> list[tuple[int, str]]:
    """Returns the rows and texts of the cells that are not empty."""
    texts = zip(cells.index.tolist(), map(read_cell, cells.tolist()), strict=True)
    return [(row, text) for row, text in texts if text]
