"""CSV files as spreadsheets leave them: the same cells in every dialect, under their spreadsheet rows."""

from pathlib import Path

import pandas as pd
import pytest

from data_prep.errors import UserError
from data_prep.storage.csv_rows import DELIMITERS, read_rows

LINES = ["file,id,note", "a b.dcm,7,x", "é.dcm,8,"]
TABLE = pd.DataFrame(
    [["a b.dcm", "7", "x"], ["é.dcm", "8", ""]], columns=["file", "id", "note"], index=[2, 3], dtype="str"
)


def read(folder: Path, content: str | bytes) -> pd.DataFrame:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_the_same_cells_are_read_in_every_dialect(
    tmp_path: Path, encoding: str, end: str, delimiter: str
) -> None:
    mark = "\ufeff" if encoding[-3:] in {"-le", "-be"} else ""
    text = mark + end.join(LINES).replace(",", delimiter) + end
    pd.testing.assert_frame_equal(read(tmp_path, text.encode(encoding)), TABLE)


@pytest.mark.parametrize("line", ["sep=,", "SEP=,", '"sep=,"', "sep=,,,", "\ufeffsep=,"])
def test_excels_word_about_the_delimiter_is_no_row(tmp_path: Path, line: str) -> None:
    pd.testing.assert_frame_equal(read(tmp_path, "\n".join([line, *LINES])), TABLE)


def test_that_word_goes_before_what_the_header_looks_like(tmp_path: Path) -> None:
    table = read(tmp_path, "sep=;\nid;a,b,c,d\n7;1,5\n")
    assert table.to_dict("list") == {"id": ["7"], "a,b,c,d": ["1,5"]}


@pytest.mark.parametrize("above", [["# mine"], ["# a, b; c", "", "#"], ['"# a, b",,'], ["", ",,"]])
@pytest.mark.parametrize("end", ["\n", "\r"], ids=["LF", "CR"])
def test_comments_and_empty_lines_above_the_header_count_as_rows(
    tmp_path: Path, above: list[str], end: str
) -> None:
    expected = TABLE.set_axis([row + len(above) for row in TABLE.index], axis="index")
    pd.testing.assert_frame_equal(read(tmp_path, end.join([*above, *LINES])), expected)


def test_a_comment_below_the_header_is_a_row_that_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 4: 1 cell under 3 names"):
        read(tmp_path, "\n".join([*LINES, "# end"]))


def test_rows_of_spaces_are_blank(tmp_path: Path) -> None:
    assert read(tmp_path, "\n".join([*LINES, " ", " , ,"])).index.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_a_row_of_another_length_is_told_with_what_separates_its_cells(
    tmp_path: Path, delimiter: str, name: str
) -> None:
    """A decimal comma makes two cells of one where commas separate them, and only there."""
    path = tmp_path / "a.csv"
    rows = [["a", "b", "c"], ["1", "2"]]
    path.write_text("\n".join(map(delimiter.join, rows)))
    with pytest.raises(UserError, match=f"row 2: 2 cells under 3 names, separated by {name}"):
        read_rows(path)
