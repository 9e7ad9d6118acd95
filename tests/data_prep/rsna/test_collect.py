"""Collecting your own images: a sound RSNA-layout folder, or a refusal before anything is written."""

import os
import unicodedata
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.rsna.collect import collect, has_labels
from data_prep.rsna.exam_table import read_exams, require_images

LABELS = """file,patient_id,laterality,cancer,age,name
a/one.dcm,7,L,0,61,Anna
./two.PNG,7,R,1,61,Anna
1.2.840.113,12,left,0,,Eva
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "a").mkdir(parents=True)
    for name in ["a/one.dcm", "two.PNG", "1.2.840.113"]:
        (folder / name).write_text(name)
    return folder


def write_labels(files: Path, text: str) -> Path:
    path = files / "labels.csv"
    path.write_text(text)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def refusal(files: Path, text: str, out: Path) -> str:
    with pytest.raises(UserError) as error:
        collect(files, write_labels(files, text), out)
    return str(error.value)


def test_the_folder_has_the_rsna_layout_and_links_to_the_files(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert collect(files, write_labels(files, LABELS), out) == 3
    exams = read_exams(out, "train")
    assert exams["image_id"].tolist() == ["1", "2", "3"]
    assert exams["laterality"].tolist() == ["L", "R", "L"]
    located = require_images(exams, out, "train")
    names = [str(path.relative_to(out)) for path in located.paths]
    assert names == ["train_images/7/1.dcm", "train_images/7/2.png", "train_images/12/3"]
    assert [path.read_text() for path in located.paths] == ["a/one.dcm", "two.PNG", "1.2.840.113"]
    assert all(path.is_symlink() and path.readlink().is_absolute() for path in located.paths)


def test_columns_that_are_not_known_stay_behind(files: Path, tmp_path: Path) -> None:
    collect(files, write_labels(files, LABELS), tmp_path / "out")
    table = (tmp_path / "out" / "train.csv").read_text()
    assert table.splitlines()[0] == "patient_id,image_id,laterality,prediction_id,cancer,age,file"
    assert "Anna" not in table


def test_the_table_keeps_the_names_of_the_files(files: Path, tmp_path: Path) -> None:
    collect(files, write_labels(files, LABELS), tmp_path / "out")
    assert read_exams(tmp_path / "out", "train")["file"].tolist() == ["a/one.dcm", "./two.PNG", "1.2.840.113"]


def test_a_folder_that_an_older_mammo_collected_gets_the_names_too(files: Path, tmp_path: Path) -> None:
    labels, path = write_labels(files, LABELS), tmp_path / "out/train.csv"
    collect(files, labels, tmp_path / "out")
    now = path.read_text()
    read_exams(tmp_path / "out", "train").drop(columns="file").to_csv(path, index=False)
    collect(files, labels, tmp_path / "out")
    assert path.read_text() == now


@pytest.mark.parametrize("name", ["=one.dcm", "+1.dcm", "@x", "-2.dcm"])
def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_written_as_a_path(
    files: Path, tmp_path: Path, name: str
) -> None:
    (files / name).touch()
    header = "file,patient_id,laterality,cancer"
    assert "with ./ before a name that begins with" in refusal(
        files, f"{header}\n{name},7,L,0\n", tmp_path / "out"
    )
    assert collect(files, write_labels(files, f"{header}\n./{name},7,L,0\n"), tmp_path / "out") == 1


@pytest.mark.parametrize("name", ["1.0", "nan", "1E5", "Übersicht 2.dcm"])
def test_a_name_is_taken_as_it_stands(files: Path, tmp_path: Path, name: str) -> None:
    (files / name).touch()
    labels = write_labels(files, f"file,patient_id,laterality,cancer\n{name},7,L,0\n")
    collect(files, labels, tmp_path / "out")
    assert read_exams(tmp_path / "out", "train")["file"].tolist() == [name]


def test_given_image_ids_are_kept_and_a_test_split_needs_no_labels(files: Path, tmp_path: Path) -> None:
    labels = write_labels(files, "file,patient_id,image_id,laterality\na/one.dcm,7,x1,L\n")
    collect(files, labels, tmp_path / "out", "test")
    assert not has_labels(labels)
    assert has_labels(write_labels(files, LABELS))
    assert read_exams(tmp_path / "out", "test")["image_id"].tolist() == ["x1"]
    assert (tmp_path / "out" / "test_images" / "7" / "x1.dcm").is_file()


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("table", ["NFC", "NFD"])
def test_names_with_accents_are_found_however_they_are_composed(
    tmp_path: Path, disk: str, table: str
) -> None:
    """The folder as the table has it, its file the other way or not."""
    folder, name = unicodedata.normalize(table, "Jürgen"), "é.dcm"
    path = tmp_path / "files" / folder / unicodedata.normalize(disk, name)
    path.parent.mkdir(parents=True)
    path.touch()
    row = f"{folder}/{unicodedata.normalize(table, name)},7,L,0"
    labels = write_labels(tmp_path / "files", f"file,patient_id,laterality,cancer\n{row}\n")
    assert collect(tmp_path / "files", labels, tmp_path / "out") == 1
    assert (tmp_path / "out/train_images/7/1.dcm").readlink() == path


def test_backslashes_lead_into_folders_and_not_out_of_them(files: Path, tmp_path: Path) -> None:
    labels = write_labels(files, "file,patient_id,laterality,cancer\na\\one.dcm,7,L,0\n")
    assert collect(files, labels, tmp_path / "out") == 1
    (files / "out.dcm").touch()
    for name in ("a\\..\\..\\out.dcm", "C:\\a\\one.dcm", "\\\\server\\share\\one.dcm"):
        what = refusal(files, f"file,patient_id,laterality,cancer\n{name},7,L,0\n", tmp_path / "no")
        assert "must be a path below" in what


def test_a_file_whose_name_looks_like_a_drive_or_has_a_backslash_is_itself(
    files: Path, tmp_path: Path
) -> None:
    for name in ("a:1.dcm", "a\\one.dcm"):
        (files / name).write_text(name)
    labels = write_labels(files, "file,patient_id,laterality,cancer\na:1.dcm,7,L,0\na\\one.dcm,7,R,0\n")
    assert collect(files, labels, tmp_path / "out") == 2
    assert (tmp_path / "out/train_images/7/2.dcm").read_text() == "a\\one.dcm"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", ""])
def test_a_name_that_no_file_can_have_is_a_row_to_mend(files: Path, tmp_path: Path, name: str) -> None:
    assert "row 2: file " in refusal(
        files, f"file,patient_id,laterality,cancer\n{name},7,L,0\n", tmp_path / "out"
    )


def test_the_same_again_changes_nothing(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = write_labels(files, LABELS)
    collect(files, labels, out)
    before = contents(out)
    collect(files, labels, out)
    assert contents(out) == before


def test_a_run_that_was_cut_short_is_completed(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = write_labels(files, LABELS)
    collect(files, labels, out)
    before = contents(out)
    (out / "train.csv").unlink()
    (out / "train_images" / "7" / "2.png").unlink()
    collect(files, labels, out)
    assert contents(out) == before


def test_a_relative_folder_of_files_gives_links_that_work(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collect(Path("files"), write_labels(files, LABELS), Path("out"))
    monkeypatch.chdir("/")
    assert (tmp_path / "out" / "train_images" / "7" / "1.dcm").read_text() == "a/one.dcm"


def test_all_files_that_cannot_be_taken_are_told_at_once(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "secret").touch()
    bad_names = ["../secret", "absent.dcm", "./a/one.dcm", str(tmp_path / "secret"), "", "a", "a/../two.PNG"]
    rows = "".join(
        f"{name},{patient},L,0\n" for patient, name in enumerate(["a/one.dcm", *bad_names], start=1)
    )
    message = refusal(files, "file,patient_id,laterality,cancer\n" + rows, out)
    assert "7 problems" in message
    for part in [
        "row 3: file '../secret' must be a path below",
        "row 4: file 'absent.dcm' is not in",
        "row 5: file './a/one.dcm' stands in an earlier row too",
        f"row 6: file '{tmp_path}/secret' must be a path below",
        "row 7: file '' is not in",
        "row 8: file 'a' is not in",
        "row 9: file 'a/../two.PNG' must be a path below",
    ]:
        assert part in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path,patient_id,laterality,cancer\nx,7,L,0\n", "lacks the column file: it needs file, patient_id"),
        ("file,patient_id,laterality\na/one.dcm,7,L\n", "lacks the column cancer"),
        ("file,patient_id,laterality,cancer\n", "no rows below its header"),
        ("file,patient_id,laterality,cancer\na/one.dcm,../x,L,0\n", "row 2: patient_id '../x'"),
        ("file,patient_id,laterality,cancer\na/one.dcm,7,L,0\ntwo.PNG,7,L,1\n", "row 3: cancer 1 but 0"),
    ],
)
def test_labels_that_break_a_rule_are_refused_before_anything_is_written(
    files: Path, tmp_path: Path, text: str, what: str
) -> None:
    assert what in refusal(files, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_and_broken_rules_are_told_in_one_round(files: Path, tmp_path: Path) -> None:
    text = "file,patient_id,laterality,cancer\nabsent.dcm,7,L,0\ntwo.PNG,8,up,3\n"
    message = refusal(files, text, tmp_path / "out")
    assert "has 3 problems to fix" in message
    assert "row 2: file 'absent.dcm' is not in" in message
    assert "row 3: laterality 'up' must be L or R" in message
    assert "row 3: cancer '3' must be 0 or 1" in message


def test_a_folder_of_files_that_is_absent_is_named(files: Path, tmp_path: Path) -> None:
    labels = write_labels(files, LABELS)
    with pytest.raises(UserError, match="absent does not exist: name the folder that holds your image files"):
        collect(tmp_path / "absent", labels, tmp_path / "out")
    with pytest.raises(UserError, match=r"labels\.csv is not a folder: name the folder that holds"):
        collect(labels, labels, tmp_path / "out")


def test_other_labels_for_the_same_folder_are_refused(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect(files, write_labels(files, LABELS), out)
    before = contents(out)
    assert "holds other exams already" in refusal(files, LABELS.replace(",L,0", ",L,1"), out)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["1.dcm", "1.png", "1"])
def test_another_file_of_the_same_image_is_refused(files: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / "train_images" / "7" / name
    path.parent.mkdir(parents=True)
    path.write_text("older")
    assert f"{path} is something else already" in refusal(files, LABELS, tmp_path / "out")
    assert contents(tmp_path / "out") == {f"train_images/7/{name}": "older"}


@pytest.mark.parametrize("target", ["two.PNG", "nowhere"])
def test_a_link_to_another_file_is_refused(files: Path, tmp_path: Path, target: str) -> None:
    path = tmp_path / "out" / "train_images" / "7" / "1.dcm"
    path.parent.mkdir(parents=True)
    path.symlink_to(files / target)
    assert f"{path} is something else already" in refusal(files, LABELS, tmp_path / "out")


@pytest.mark.parametrize("linked", ["train_images", "train_images/7"])
def test_nothing_is_written_through_a_linked_folder(files: Path, tmp_path: Path, linked: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = tmp_path / "out" / linked
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    assert "is something else already" in refusal(files, LABELS, tmp_path / "out")
    assert not list(elsewhere.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(files: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "cannot write" in refusal(files, LABELS, tmp_path / "out")


def test_a_file_system_without_links_is_one_sentence(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    assert "cannot write" in refusal(files, LABELS, tmp_path / "out")
