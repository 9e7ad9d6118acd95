"""CSV files: text cells with their spreadsheet rows, and all problems in one sentence."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.errors import UserError
from data_prep.storage.files import read_input
from data_prep.storage.places import Place

MAX_PROBLEMS_SHOWN = 10


class Problem(NamedTuple):
    """What is wrong in a spreadsheet row; the header is row 1."""

    row: int
    what: str


def read_rows(path: Place) -> pd.DataFrame:
    """Reads a CSV as text cells just as they stand; the index holds spreadsheet rows, without blank ones.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, is not a rectangle, or names a column twice.
    """
    try:
        content = read_input(path) if isinstance(path, Path) else path.read_bytes()
        text = content.decode("utf-8-sig")
        header, *records = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV ({error}): look for an open quote and save it again") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): name a CSV file that you may read"
        ) from error
    header = [name.strip() for name in header]
    if twice := _find_twice(header):
        raise UserError(f"{path} names columns {twice[0]} and {twice[1]} alike: give each a name of its own")
    numbered = {row: cells for row, cells in enumerate(records, start=2) if any(cells)}
    sizes = {row: len(cells) for row, cells in numbered.items() if len(cells) != len(header)}
    raise_if_any(
        [Problem(row, f"{size} cells under {len(header)} names") for row, size in sizes.items()], source=path
    )
    return pd.DataFrame(list(numbered.values()), columns=header, index=list(numbered), dtype="str")


def _find_twice(header: list[str]) -> tuple[int, int] | None:
    """Returns the places, from 1, of two columns of one name, which may be a patient's without a header."""
    places: dict[str, int] = {}
    for place, name in enumerate(header, start=1):
        if name and places.setdefault(name, place) != place:
            return places[name], place
    return None


def raise_if_any(problems: list[Problem], *, source: Place) -> None:
    """Raises one UserError for all problems: the first ten by row, and how many there are."""
    if not problems:
        return
    shown = [f"row {row}: {what}" for row, what in sorted(problems)[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UserError(f"{source} has {count} to mend: {'; '.join(shown)}")
