"""Files packed with gzip: read like what they hold, and refused in one sentence where they hold too much."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import ImageError
from data_prep.imageio import codecs, file_format
from data_prep.imageio.dicom import open_dicom
from tests.data_prep.dicom_files import make_breast, write_dicom

PIXELS = make_breast(48, 32)


@pytest.mark.parametrize("name", ["a.dcm.gz", "a.dcm", "a"])
@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.JPEG_2000_LOSSLESS])
@pytest.mark.parametrize("whole", [False, True])
def test_a_packed_file_is_read_whatever_its_name(tmp_path: Path, name: str, syntax: str, whole: bool) -> None:
    plain = write_dicom(tmp_path / "plain", PIXELS, transfer_syntax=syntax, BitsStored=12)
    packed = tmp_path / name
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    file = open_dicom(packed, whole=whole)
    np.testing.assert_array_equal(file.read_frame().pixels, PIXELS)
    assert file.source.received == packed.read_bytes()


def test_all_members_of_a_packed_file_are_unpacked(tmp_path: Path) -> None:
    content = write_dicom(tmp_path / "plain", PIXELS, BitsStored=12).read_bytes()
    members = [gzip.compress(content[start : start + 500]) for start in range(0, len(content), 500)]
    (tmp_path / "a.dcm.gz").write_bytes(b"".join(members) + bytes(20))
    np.testing.assert_array_equal(open_dicom(tmp_path / "a.dcm.gz").read_frame().pixels, PIXELS)


def test_damaged_and_cut_files_are_told(tmp_path: Path) -> None:
    content = gzip.compress(write_dicom(tmp_path / "plain", PIXELS).read_bytes())
    path = tmp_path / "a.dcm.gz"
    cases = {content[:-20]: "truncated", content[:30] + b"\xff" * 30 + content[60:]: "decode_error"}
    for damaged, reason in cases.items():
        path.write_bytes(damaged)
        with pytest.raises(ImageError) as error:
            open_dicom(path)
        assert error.value.reason == reason


def test_a_packed_file_of_something_else_is_not_dicom(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm.gz"
    path.write_bytes(gzip.compress(b"patient_id,image_id\n" * 50))
    with pytest.raises(ImageError) as error:
        open_dicom(path)
    assert error.value.reason == "not_dicom"


def test_no_more_is_unpacked_than_any_mammogram_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_format, "MAX_INFLATED_BYTES", 2**20)
    path = tmp_path / "a.dcm.gz"
    path.write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(ImageError, match="unpacks to more than 1 MB") as error:
        open_dicom(path)
    assert error.value.reason == "too_large"
