"""`mammo inspect`: what it prints and writes, and how it ends."""

from pathlib import Path

import cv2
import pytest
from click.testing import Result
from typer.testing import CliRunner

from data_prep.errors import UserError
from pipeline.cli.app import app
from tests.data_prep.dicom_files import make_breast, write_dicom


@pytest.fixture
def mammogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a patient's data, in a folder of its own; the current folder is another."""
    monkeypatch.chdir(tmp_path)
    return write_dicom(
        tmp_path / "files/one.dcm",
        make_breast(),
        BitsStored=12,
        PatientName="Weiherer^Annegret",
        PatientID="4711-0815",
        PatientBirthDate="19561231",
        InstitutionName="Klinikum Nordhang",
    )


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "160"})


def test_it_prints_what_was_understood_and_writes_the_picture(mammogram: Path) -> None:
    ended = inspect(mammogram)
    assert ended.exit_code == 0, ended.output
    assert "uncompressed (1.2.840.10008.1.2.1)" in ended.output
    assert "96 rows x 64 columns" in ended.output
    assert "512 x 512 pixels of 8 bits" in ended.output
    assert "picture: one_inspect.png" in ended.output
    assert cv2.imread("one_inspect.png") is not None


def test_a_link_is_told_with_the_file_that_it_leads_to(mammogram: Path) -> None:
    """`mammo collect` makes links, and a user looks for the own file."""
    link = Path("link.dcm")
    link.symlink_to(mammogram)
    assert f"file{link},alinkto{mammogram}" in "".join(inspect(link).output.split())
    mammogram.write_bytes(mammogram.read_bytes()[:-50])
    assert inspect(link).stderr.startswith(f"{link}, a link to {mammogram}: truncated: ")


def test_nothing_that_identifies_a_patient_is_printed_or_written(mammogram: Path) -> None:
    ended = inspect(mammogram)
    written = Path("one_inspect.png").read_bytes()
    for value in ("Weiherer", "4711-0815", "19561231", "Nordhang"):
        assert value not in ended.output
        assert value.encode() not in written


def test_settings_and_the_picture_can_be_chosen(mammogram: Path) -> None:
    ended = inspect(mammogram, "--out", "pictures/stages.png", "--set", "prepare.side=64")
    assert "64 x 64 pixels of 8 bits" in ended.output
    assert cv2.imread("pictures/stages.png") is not None


def test_a_file_that_cannot_be_used_ends_with_1_and_the_reason(mammogram: Path) -> None:
    """As with `check`, the command did its work, and what it found is the answer."""
    mammogram.write_bytes(mammogram.read_bytes()[:-50])
    ended = inspect(mammogram)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"{mammogram}: truncated: ")
    assert ended.stderr.count("\n") == 1
    assert not Path("one_inspect.png").exists()


@pytest.mark.parametrize("name", ["absent.dcm", "files"])
def test_what_is_no_file_is_a_mistake_in_the_command(mammogram: Path, name: str) -> None:
    ended = inspect(name)
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception) == f"{name} is not a file: name one mammogram"


def test_the_mammogram_is_never_overwritten(mammogram: Path) -> None:
    before = mammogram.read_bytes()
    ended = inspect(mammogram, "--out", "files/../files/one.dcm")
    assert isinstance(ended.exception, UserError)
    assert mammogram.read_bytes() == before


@pytest.mark.parametrize("name", ["stages.jpg", "stages", "files/stages.png.dcm"])
def test_a_picture_that_is_named_as_something_else_is_refused(mammogram: Path, name: str) -> None:
    ended = inspect(mammogram, "--out", name)
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception) == f"{name} is not a name for a PNG, which the picture is: end it with .png"
    assert not Path(name).exists()


def test_a_file_that_is_no_png_is_not_overwritten_whatever_its_name(mammogram: Path) -> None:
    other = write_dicom(mammogram.with_name("other.png"), make_breast())
    before = other.read_bytes()
    ended = inspect(mammogram, "--out", other)
    assert isinstance(ended.exception, UserError)
    assert "is a file of another kind" in str(ended.exception)
    assert other.read_bytes() == before


def test_an_older_picture_is_replaced(mammogram: Path) -> None:
    inspect(mammogram, "--set", "prepare.side=64")
    before = Path("one_inspect.png").read_bytes()
    assert inspect(mammogram).exit_code == 0
    assert Path("one_inspect.png").read_bytes() != before
