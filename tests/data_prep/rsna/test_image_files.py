"""Which files are images: every suffix in letters of any case, the preferred one where there are several."""

from pathlib import Path

import pytest

from data_prep.rsna.image_files import IMAGE_SUFFIXES, find_image_files, split_name
from data_prep.storage.places import Url
from tests.object_store import Store

SUFFIXES = [".dcm", ".DCM", ".dicom", ".DICOM", ".dic", ".ima", ".IMA", ".dcm.gz", ".DCM.GZ", ".Png", ""]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("image_id", ["5", "1.2.840.113", "left.breast"])
def test_a_file_is_found_under_each_suffix(tmp_path: Path, suffix: str, image_id: str) -> None:
    path = tmp_path / "1" / f"{image_id}{suffix}"
    path.parent.mkdir()
    path.touch()
    assert find_image_files(tmp_path, [("1", image_id), ("1", "6"), ("2", image_id)]) == [path, None, None]
    assert split_name(path.name) == (image_id, suffix.lower())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_in_storage_is_found_under_each_suffix(store: Store, suffix: str) -> None:
    store.put(f"data/images/1/5{suffix}", b"content")
    (found,) = find_image_files(Url(f"{store.s3}/images"), [("1", "5")])
    assert found is not None
    assert found.name == f"5{suffix}"


def test_the_preferred_suffix_is_taken(tmp_path: Path) -> None:
    paths = [tmp_path / "1" / f"5{suffix}" for suffix in IMAGE_SUFFIXES]
    paths[0].parent.mkdir()
    for path in reversed(paths):
        path.touch()
    for path in paths:
        assert find_image_files(tmp_path, [("1", "5")]) == [path]
        path.unlink()


def test_files_of_other_kinds_are_no_image_of_that_id(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    for name in ("5.txt", "5.json", "5.gz", "5.tar.gz"):
        (folder / name).touch()
    assert find_image_files(tmp_path, [("1", "5")]) == [None]
