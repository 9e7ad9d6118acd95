"""One picture, one answer: however it is stored, turned or encoded, and of whatever shape its pixels are."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.imageio import codecs
from data_prep.imageio.frame import Box, Pixels
from data_prep.imageio.pose import EXIF_POSES, Directions, Pose
from data_prep.preprocessing.preprocess import preprocess
from data_prep.preprocessing.search import is_chest_wall_across, to_stored_box
from data_prep.preprocessing.settings import PrepareSettings
from tests.data_prep.dicom_files import make_breast, write_dicom

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
EDGES = ("left", "top", "right", "bottom")
SETTINGS = PrepareSettings(side=96)


def make_mlo(rows: int = 500, columns: int = 400) -> Pixels:
    """A left breast whose upper end has a bright corner; smooth enough to be drawn at any resolution."""
    pixels = cv2.GaussianBlur(make_breast(rows, columns).astype(np.float32), (0, 0), 4)
    pixels[: rows // 3, : columns // 3] += 900
    return np.rint(pixels.clip(0, 4095)).astype(np.uint16)


def box_of(record: dict[str, Any]) -> list[int]:
    return [record[f"box_{edge}"] for edge in EDGES]


@pytest.mark.parametrize("stored", EXIF_POSES.values(), ids=map(str, EXIF_POSES))
@pytest.mark.parametrize("view", ["A\\F", "A\\R"])
def test_patient_orientation_turns_a_picture_upright(tmp_path: Path, stored: Pose, view: str) -> None:
    pixels = make_mlo()
    upright = preprocess(write_dicom(tmp_path / "a.dcm", pixels, **WINDOW), SETTINGS)
    directions = Directions(*view.split("\\")).after(stored)
    elements = WINDOW | {"PatientOrientation": [directions.row, directions.column]}
    turned = np.ascontiguousarray(stored.turn(pixels))
    stages = preprocess(write_dicom(tmp_path / "b.dcm", turned, **elements), SETTINGS)
    assert np.abs(stages.image.astype(int) - upright.image).max() <= 1
    is_only_mirrored = stored == Pose(0, is_mirrored=True)
    assert stages.record["warnings"] == ("laterality_picture" if is_only_mirrored else "")
    assert stages.record["turned"] in {0, 90, 180, 270}


@pytest.mark.parametrize("orientation", EXIF_POSES)
def test_exif_turns_a_picture_upright(tmp_path: Path, orientation: int) -> None:
    pixels = (make_mlo() // 16).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = EXIF_POSES[{6: 8, 8: 6}.get(orientation, orientation)]  # the others undo themselves
    Image.fromarray(np.ascontiguousarray(back.turn(pixels))).save(tmp_path / "b.png", exif=exif.tobytes())
    Image.fromarray(pixels).save(tmp_path / "a.png")
    upright = preprocess(tmp_path / "a.png", SETTINGS, laterality="L")
    stages = preprocess(tmp_path / "b.png", SETTINGS, laterality="L")
    assert np.abs(stages.image.astype(int) - upright.image).max() <= 1
    assert stages.record["warnings"] == upright.record["warnings"] == ""


@pytest.mark.parametrize("said", [["P", "F"], ["P", "H"], ["F", "A"], ["H", "P"]])
def test_where_the_picture_contradicts_the_header_it_is_followed(tmp_path: Path, said: list[str]) -> None:
    pixels = make_mlo()
    upright = preprocess(write_dicom(tmp_path / "a.dcm", pixels, **WINDOW), SETTINGS)
    stages = preprocess(write_dicom(tmp_path / "b.dcm", pixels, PatientOrientation=said, **WINDOW), SETTINGS)
    np.testing.assert_array_equal(stages.image, upright.image)
    assert stages.record["warnings"] == "orientation_picture"


@pytest.mark.parametrize("aspect", [0.5, 0.8, 1.25, 2.0])
@pytest.mark.parametrize("turned", [0, 90])
def test_a_breast_of_oblong_pixels_keeps_its_proportions(tmp_path: Path, aspect: float, turned: int) -> None:
    """`aspect` is a stored pixel's height over its width."""
    pixels = np.ascontiguousarray(np.rot90(make_mlo(1000, 800), turned // 90))
    size = pixels.shape[1], round(pixels.shape[0] / aspect)
    squashed = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if aspect > 1 else cv2.INTER_LINEAR)
    orientation = {"PatientOrientation": ["F", "P"] if turned else ["A", "F"]}
    square = preprocess(write_dicom(tmp_path / "a.dcm", pixels, **WINDOW, **orientation), SETTINGS)
    spacing = {"PixelSpacing": [f"{0.1 * aspect:.3f}", "0.1"]}
    stages = preprocess(
        write_dicom(tmp_path / "b.dcm", squashed, **WINDOW, **orientation, **spacing), SETTINGS
    )
    assert stages.record["pixel_aspect"] == pytest.approx(aspect)
    assert stages.record["warnings"] == square.record["warnings"] == ""
    assert np.abs(stages.image.astype(int) - square.image).mean() < 2


@pytest.mark.parametrize(("rows", "columns"), [(1283, 905), (1601, 1203)])
def test_every_encoding_gives_the_same_box_and_image(tmp_path: Path, rows: int, columns: int) -> None:
    pixels = np.rint(cv2.GaussianBlur(make_breast(rows, columns).astype(np.float32), (0, 0), 1.5)).astype(
        np.uint16
    )
    syntaxes = [
        codecs.EXPLICIT_VR_LITTLE_ENDIAN,
        codecs.JPEG_LOSSLESS_SV1,
        codecs.JPEG_2000_LOSSLESS,
        codecs.HTJ2K_LOSSLESS,
    ]
    stages = [
        preprocess(
            write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, **WINDOW), PrepareSettings()
        )
        for syntax in syntaxes
    ]
    assert len({tuple(box_of(one.record)) for one in stages}) == 1
    for one in stages[1:]:
        assert np.abs(one.image.astype(float) - stages[0].image).mean() < 0.5


@pytest.mark.parametrize("pose", EXIF_POSES.values(), ids=map(str, EXIF_POSES))
def test_a_box_of_the_upright_picture_is_found_in_the_stored_one(pose: Pose) -> None:
    stored = np.arange(30 * 20).reshape(30, 20)
    upright = pose.turn(stored)
    shown = upright[3:9, 4:15]
    box = to_stored_box(Box(4, 3, 15, 9), pose, rows=upright.shape[0], columns=upright.shape[1])
    np.testing.assert_array_equal(pose.turn(stored[box.top : box.bottom, box.left : box.right]), shown)


def test_a_straight_side_above_is_told_from_one_at_the_left() -> None:
    mask = (make_breast(160, 128) > 0).astype(np.uint8)
    assert not is_chest_wall_across(mask)
    assert is_chest_wall_across(np.rot90(mask))
