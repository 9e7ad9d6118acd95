"""The same picture under two patients: found by what a manifest knows, named, marked, and kept together."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cache.folder import Cache
from data_prep.cache.shared_pictures import SharedPictures, find_shared_pictures
from data_prep.cache.verify import verify
from data_prep.errors import ImageError
from data_prep.preprocessing.preprocess import try_preprocess
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.folds import make_folds
from tests.data_prep.cache_folder import edit, make_cache
from tests.data_prep.data_folder import find_image, make_data, prepare_folder, snapshot
from tests.data_prep.dicom_files import make_breast, write_dicom


def find(*rows: tuple[Any, ...]) -> SharedPictures:
    """Each row is patient, image, what it shows, its file, cancer."""
    columns = ["patient_id", "image_id", "image_sha256", "source_sha256", "cancer"]
    table = pd.DataFrame(rows, columns=columns).assign(status="prepared", contrast=0.5)
    return find_shared_pictures(table.drop(columns="cancer"), table[["patient_id", "image_id", "cancer"]])


def groups_of(shared: SharedPictures) -> dict[str, str]:
    return dict(zip(shared.images["patient_id"], shared.images["group"], strict=True))


@pytest.mark.parametrize("files", [("f", "g"), ("f", "f")], ids=["other header", "same file"])
def test_the_same_pixels_tie_two_patients(files: tuple[str, str]) -> None:
    shared = find(("7", "70", "p", files[0], 0), ("12", "9", "p", files[1], 0), ("13", "8", "q", "h", 0))
    assert groups_of(shared) == {"7": "7", "12": "7"}
    (sentence,) = shared.describe()
    assert "1 picture of 2 patients: 7 and 12 (image 70 is 9);" in sentence


def test_the_same_file_prepared_in_two_ways_is_one_picture() -> None:
    """As by two versions of mammo, one of which a resumed command was broken off in."""
    assert groups_of(find(("7", "70", "p", "f", 0), ("12", "9", "q", "f", 0))) == {"7": "7", "12": "7"}


def test_patients_are_tied_through_others() -> None:
    shared = find(
        ("3", "1", "p", "a", 0),
        ("2", "2", "p", "b", 0),
        ("2", "3", "q", "c", 0),
        ("10", "4", "q", "d", 0),
        ("5", "5", "r", "e", 0),
    )
    assert groups_of(shared) == {"2": "2", "3": "2", "10": "2"}
    assert shared.group_patients(pd.Series(["5", "10", "3"])).tolist() == ["5", "2", "2"]


def test_a_patients_own_pictures_tie_nobody() -> None:
    assert find(("7", "70", "p", "f", 0), ("7", "71", "p", "f", 0)).describe() == []


def test_contradicting_labels_are_named_whosever_images_they_are() -> None:
    shared = find(
        ("7", "70", "p", "f", 0), ("12", "9", "p", "g", 1), ("3", "1", "q", "h", 1), ("3", "2", "q", "i", 0)
    )
    assert (
        "2 pictures: 3/2 cancer 0 but 3/1 cancer 1; 7/70 cancer 0 but 12/9 cancer 1; correct"
        in shared.describe()[1]
    )


def test_without_labels_nothing_is_said_of_training() -> None:
    table = pd.DataFrame(
        {"patient_id": ["1", "2"], "image_id": ["3", "4"], "image_sha256": "p", "source_sha256": "f"}
    )
    (sentence,) = find_shared_pictures(table.assign(status="prepared", contrast=1), table).describe()
    assert sentence.endswith("1 and 2 (image 3 is 4); check which patient it belongs to")


def test_images_without_contrast_and_failed_ones_are_nobodys_picture() -> None:
    table = pd.DataFrame(
        {
            "patient_id": ["1", "2", "3", "4"],
            "image_id": ["1", "2", "3", "4"],
            "image_sha256": ["black", "black", None, None],
            "source_sha256": ["f", "g", None, None],
            "contrast": [0.0, 0.0, None, None],
            "status": ["prepared", "prepared", "failed", "failed"],
        }
    )
    assert find_shared_pictures(table, table[["patient_id", "image_id"]]).describe() == []


def test_of_many_groups_ten_are_named_and_of_many_patients_three() -> None:
    pairs = [(str(patient), str(patient), f"p{patient % 12}", str(patient), 0) for patient in range(100, 124)]
    (sentence,) = find(*pairs).describe()
    assert "12 pictures of 24 patients" in sentence
    assert sentence.count("(image ") == 10
    assert (
        "; and 2 groups more; check which patient it belongs to; until then `mammo train` keeps" in sentence
    )
    (sentence,) = find(*((str(patient), str(patient), "p", "f", 0) for patient in range(1, 51))).describe()
    assert "1 and 2 and 3 and 47 more (image 1 is 2)" in sentence


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=20))
def test_groups_are_the_finest_that_keep_every_picture_in_one(pairs: list[tuple[int, int]]) -> None:
    rows = [(str(who), str(row), f"p{what}", str(row), 0) for row, (who, what) in enumerate(pairs)]
    tied = [{str(who)} for who, _ in pairs]  # merged until none of them touch: the definition
    for _, what in pairs:
        here = {str(who) for who, other in pairs if other == what}
        met = [group for group in tied if group & here]
        tied = [group for group in tied if not group & here] + [here.union(*met)]
    patients = pd.Series([str(who) for who, _ in pairs])
    found = find(*rows).group_patients(patients)
    assert {frozenset(patients[found == group]) for group in found} == {frozenset(group) for group in tied}


# In a cache


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients; the first's images are the fourth's too, the right one in a file with another header."""
    folder = make_data(tmp_path_factory.mktemp("data"))
    for image_id, twin in [("90", "132"), ("97", "139")]:
        find_image(folder, twin).unlink()
        (folder / "train_images" / "11" / f"{twin}.dcm").write_bytes(
            find_image(folder, image_id).read_bytes()
        )
    path = folder / "train_images" / "11" / "139.dcm"
    path.write_bytes(path.read_bytes().replace(b"Weiherer^Annegret", b"Reiherer^Annegret"))
    return folder


def test_prepare_names_the_patients_and_marks_their_images(data: Path, tmp_path: Path) -> None:
    summary = prepare_folder(data, tmp_path / "cache")
    assert "2 pictures of 2 patients: 5 and 11 (image 90 is 132)" in summary.shared_pictures[0]
    manifest = Cache(tmp_path / "cache").read_manifest().set_index("image_id")
    assert manifest.loc["97", "source_sha256"] != manifest.loc["139", "source_sha256"]
    marked = manifest.index[manifest["warnings"].str.split().map(lambda codes: "shared_picture" in codes)]
    assert set(marked) == {"90", "97", "132", "139"}


def test_a_cache_in_two_steps_is_marked_as_one_in_one_and_unmarked_again(data: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(data, tmp_path / "data"))
    whole = (changed / "train.csv").read_text()
    (changed / "train.csv").write_text("".join(whole.splitlines(keepends=True)[:-2]))
    prepare_folder(changed, tmp_path / "steps")
    assert "shared_picture" not in Cache(tmp_path / "steps").manifest_path.read_text()
    (changed / "train.csv").write_text(whole)
    prepare_folder(changed, tmp_path / "steps")
    prepare_folder(changed, tmp_path / "once")
    assert snapshot(tmp_path / "steps") == snapshot(tmp_path / "once")
    for image_id in ("132", "139"):
        find_image(changed, image_id).write_text("no image any more")
    assert prepare_folder(changed, tmp_path / "steps").shared_pictures == []
    assert "shared_picture" not in Cache(tmp_path / "steps").manifest_path.read_text()


def test_verify_names_them_and_the_cache_is_sound(tmp_path: Path) -> None:
    made = make_cache(tmp_path)
    assert verify(made.cache, None, workers=0).shared_pictures == []
    old, new = made.png("10"), made.png("15")
    new.write_bytes(old.read_bytes())

    def copy_checksum(table: pd.DataFrame) -> pd.DataFrame:
        of = table.set_index("image_id")["image_sha256"]
        return table.assign(image_sha256=table["image_sha256"].replace(of["15"], of["10"]))

    edit(made.cache.manifest_path, copy_checksum)
    found = verify(made.cache, None, workers=0)
    assert found.problems == []
    assert "1 picture of 2 patients: 1 and 3 (image 10 is 15)" in found.shared_pictures[0]


def test_blank_files_of_two_patients_are_not_one_picture(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "black.dcm", make_breast(160, 110, seed=0) * 0, BitsStored=12)
    stages = try_preprocess(path, PrepareSettings(side=32))
    assert isinstance(stages, ImageError) or stages.record["contrast"] == 0


def test_folds_keep_tied_patients_together_and_are_as_before_without_ties() -> None:
    rows = [
        (str(who), f"{who}{side}", side, int(who <= 8 and side == "L"))
        for who in range(1, 31)
        for side in "LR"
    ]
    exams = pd.DataFrame(rows, columns=["patient_id", "image_id", "laterality", "cancer"])
    plain = make_folds(exams, num_folds=3, seed=5)
    pd.testing.assert_frame_equal(make_folds(exams, num_folds=3, seed=5, groups=exams["patient_id"]), plain)
    groups = exams["patient_id"].replace({str(20 + who): str(who) for who in range(1, 9)})
    fold_of = make_folds(exams, num_folds=3, seed=5, groups=groups).set_index("patient_id")["fold"]
    assert all(fold_of[str(who)] == fold_of[str(20 + who)] for who in range(1, 9))
    assert not all(fold_of == plain.set_index("patient_id")["fold"])
