"""CSV files as spreadsheets leave them: text cells with their rows, and all problems in one sentence."""

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_prep.errors import UserError, count
from data_prep.storage.files import read_input
from data_prep.storage.places import Place

MAX_PROBLEMS_SHOWN = 10
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""And what they are called."""
SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[,;\t|]*(\r\n|\r|\n)', re.IGNORECASE)
"""What Excel takes for a word about the delimiter, and shows no row for."""
COMMENT_LINE = re.compile(r'[ ,;\t|]*("?#[^\r\n]*)?(\r\n|\r|\n)')
"""Above the header: empty, or begun by #."""
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx, .ods and .xls files begin


class Problem(NamedTuple):
    """What is wrong in a spreadsheet row; the header is row 1 unless comments stand above it."""

    row: int
    what: str


def read_rows(path: Place) -> pd.DataFrame:
    """Reads a CSV as text cells just as they stand; the index holds spreadsheet rows, without blank ones.

    The text is UTF-8 or, with its byte order mark, UTF-16. The delimiter is what Excel's line `sep=` says,
    else the one of comma, semicolon, tab and bar that the header has most of. Empty lines and comments, which
    begin with #, may stand above the header.

    Raises:
        UserError: if the file cannot be read, is no such text, is not a rectangle, or names a column twice.
    """
    try:
        content = read_input(path) if isinstance(path, Path) else path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): name a CSV file that you may read"
        ) from error
    text, delimiter = _take_separator_line(_decode(content, path))
    text, num_above = _take_comments(text)
    if delimiter is None:
        delimiter = max(DELIMITERS, key=re.split(r"[\r\n]", text, maxsplit=1)[0].count)  # the first on a tie
    try:
        header, *records = list(
            csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        ) or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV ({error}): look for an open quote and save it again") from error
    header = [name.strip() for name in header]
    if twice := _find_twice(header):
        raise UserError(f"{path} names columns {twice[0]} and {twice[1]} alike: give each a name of its own")
    first_row = num_above + 2
    numbered = {row: cells for row, cells in enumerate(records, start=first_row) if "".join(cells).strip()}
    sizes = {row: len(cells) for row, cells in numbered.items() if len(cells) != len(header)}
    expected = f"under {count(len(header), 'name')}, separated by {DELIMITERS[delimiter]}"
    raise_if_any(
        [Problem(row, f"{count(size, 'cell')} {expected}") for row, size in sizes.items()], source=path
    )
    return pd.DataFrame(list(numbered.values()), columns=header, index=list(numbered), dtype="str")


def _decode(content: bytes, path: Place) -> str:
    """Returns a file's text; no other encoding than Unicode's is guessed: each has other letters."""
    if content.startswith(WORKBOOKS):
        raise UserError(f"{path} is a workbook, not a CSV: save its sheet as 'CSV UTF-8'")
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", content[: error.start])) + 1
        where = "" if is_utf_16 else f", line {line} has a letter in an older encoding"
        raise UserError(f"{path} is not UTF-8 text{where}: save it as 'CSV UTF-8'") from error


def _take_separator_line(text: str) -> tuple[str, str | None]:
    """Returns the text without Excel's first line `sep=;`, and the delimiter that it names."""
    found = SEPARATOR_LINE.match(text)
    return (text, None) if found is None else (text[found.end() :], found[1])


def _take_comments(text: str) -> tuple[str, int]:
    """Returns the text from the header on, and the number of lines above it."""
    start = count = 0
    while found := COMMENT_LINE.match(text, start):
        start, count = found.end(), count + 1
    return text[start:], count


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
    raise UserError(f"{source} has {count(len(problems), 'problem')} to fix: {'; '.join(shown)}")
