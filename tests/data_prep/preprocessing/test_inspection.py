"""What `mammo inspect` says and draws of one file, from stages made by hand and from small files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.preprocessing.inspection import ENCODINGS, describe_stages, draw_stages
from data_prep.preprocessing.preprocess import Stages, preprocess
from data_prep.preprocessing.quality_checks import NOTES, WARNINGS
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.byte_source import ByteSource
from tests.data_prep.dicom_files import make_breast, write_dicom

RECORD = {
    "modality": "",
    "transfer_syntax": codecs.JPEG_2000_LOSSLESS,
    "photometric_interpretation": "MONOCHROME1",
    "window": "LINEAR 2048/4096",
    "rows": 4000,
    "columns": 3000,
    "pixel_aspect": 1.0,
    "level": 2,
    "box_left": 1500,
    "box_top": 0,
    "box_right": 3000,
    "box_bottom": 2000,
    "turned": 0,
    "flipped": True,
    "scale_x": 0.256,
    "scale_y": 0.256,
    "top": 0,
    "contrast": 0.5,
    "saturated": 0.012,
    "warnings": "",
    "source_bytes": 4_000_000,
    "bytes_read": 1_000_000,
    "source_sha256": "0" * 64,
}


def make_stages(*, dtype: type = np.uint8, **changes: Any) -> Stages:
    """A black frame, a grey crop and a white image."""
    image = np.full((64, 64), np.iinfo(dtype).max, dtype)
    overview, crop = np.zeros((200, 150), np.float32), np.full((500, 375), 0.5, np.float32)
    return Stages(
        source=ByteSource.of(b""), overview=overview, crop=crop, image=image, record=RECORD | changes
    )


def describe(**changes: Any) -> dict[str, str]:
    return dict(describe_stages(make_stages(**changes)))


def read_picture(stages: Stages) -> np.ndarray[Any, Any]:
    """The drawing as [H, W, 3] in the order blue, green, red."""
    picture = cv2.imdecode(np.frombuffer(draw_stages(stages), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.int32)


def box_columns(stages: Stages) -> tuple[int, int]:
    """The first and last column in which something orange is drawn."""
    blue, _, red = np.moveaxis(read_picture(stages), 2, 0)
    columns = np.nonzero((red - blue > 100).any(axis=0))[0]
    return int(columns[0]), int(columns[-1])


def test_the_description_is_in_words_with_numbers() -> None:
    said = describe()
    assert said["encoding"] == "JPEG 2000 lossless (1.2.840.10008.1.2.4.90)"
    assert said["size"] == "4000 rows x 3000 columns"
    assert said["greys"] == "MONOCHROME1: large values are dark, so the picture is inverted"
    assert said["breast's box"] == "columns 1500 to 3000, rows 0 to 2000: 25% of the frame"
    assert said["decoded at"] == "1/4 of the full resolution"
    assert said["read"] == "1,000,000 of the file's 4,000,000 bytes (25%)"
    assert said["in the file"] == "upright"
    assert "pixels" not in said
    assert said["chest wall"] == "on the right, so the image is mirrored"
    assert said["scale"] == "0.2560 across, 0.2560 down: image pixels per file pixel"
    assert said["image"] == "64 x 64 pixels of 8 bits"
    assert said["saturated"].startswith("1.2% of the box's pixels")
    assert "warning" not in said


def test_the_description_follows_the_record() -> None:
    said = describe(level=0, flipped=False, scale_y=0.5, transfer_syntax="PNG", dtype=np.uint16)
    assert said["encoding"] == "PNG"
    assert said["decoded at"] == "full resolution"
    assert said["chest wall"] == "on the left, where the image has it"
    assert said["scale"] == "0.2560 across, 0.5000 down: image pixels per file pixel"
    assert said["image"] == "64 x 64 pixels of 16 bits"


def test_the_shape_of_pixels_and_the_pose_are_told() -> None:
    said = describe(pixel_aspect=1.25, turned=90)
    assert said["pixels"] == "1.25 times as high as wide, which the image corrects"
    assert said["in the file"] == "turned: the image turns it by 90 degrees clockwise"


@pytest.mark.parametrize("turned", [0, 180])
@pytest.mark.parametrize("aspect", [0.5, 1.0])
def test_the_picture_shows_the_frame_in_its_true_proportions(aspect: float, turned: int) -> None:
    """The box around the whole frame is drawn as wide and as high as the breast is."""
    record = {"box_left": 0, "box_right": 3000, "box_top": 0, "box_bottom": 4000, "turned": turned}
    blue, _, red = np.moveaxis(read_picture(make_stages(**record, pixel_aspect=aspect)), 2, 0)
    ys, xs = np.nonzero(red - blue > 100)
    assert np.ptp(ys) / np.ptp(xs) == pytest.approx(4000 * aspect / 3000, rel=0.03)


def test_each_warning_comes_with_its_sentence() -> None:
    said = describe_stages(make_stages(warnings=" ".join(WARNINGS)))
    expected = [
        ("note" if code in NOTES else "warning", f"{code}: {sentence}") for code, sentence in WARNINGS.items()
    ]
    assert said[-len(WARNINGS) :] == expected


def test_the_modality_is_told_where_the_file_has_one() -> None:
    assert "modality" not in describe()
    assert describe(modality="MG")["modality"] == "MG, mammography"
    assert describe(modality="CT")["modality"] == "CT, which is not mammography"


def test_every_encoding_that_is_read_has_words() -> None:
    assert set(ENCODINGS) == codecs.SUPPORTED


def test_the_picture_shows_frame_crop_and_image_side_by_side() -> None:
    """The middles of the three stages are black, grey and white."""
    row = read_picture(make_stages())[150, :, 0]
    middles = [int(row[round(len(row) * share)]) for share in (1 / 6, 1 / 2, 5 / 6)]
    assert middles[0] == 0
    assert abs(middles[1] - 128) <= 1
    assert middles[2] == 255


def test_the_box_is_drawn_where_it_lies_in_the_frame() -> None:
    whole = box_columns(make_stages(box_left=0, box_right=3000))
    left = box_columns(make_stages(box_left=0, box_right=1500))
    right = box_columns(make_stages(box_left=1500, box_right=3000))
    middle = sum(whole) / 2
    assert left == pytest.approx((whole[0], middle), abs=3)
    assert right == pytest.approx((middle, whole[1]), abs=3)


def test_eight_and_sixteen_bits_look_alike_and_the_same_stages_give_the_same_bytes() -> None:
    assert draw_stages(make_stages()) == draw_stages(make_stages(dtype=np.uint16))


def test_a_file_is_prepared_as_its_settings_say(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "1.dcm", make_breast(), BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    stages = preprocess(path, PrepareSettings(side=32))
    assert stages.image.shape == (32, 32)
    assert dict(describe_stages(stages))["window"] == "LINEAR 2048/4096"
    assert draw_stages(stages).startswith(b"\x89PNG")


def test_a_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "1.dcm"
    path.write_text("this is not an image")
    with pytest.raises(ImageError) as caught:
        preprocess(path, PrepareSettings())
    assert caught.value.reason == "not_dicom"


def test_what_nobody_foresaw_is_one_sentence_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *, whole: bool) -> Stages:
        raise ArithmeticError("Weiherer^Annegret")

    monkeypatch.setattr("data_prep.preprocessing.preprocess.open_image", fail)
    with pytest.raises(ImageError, match=r"^the file brought about an unforeseen ArithmeticError$"):
        preprocess(tmp_path / "1.dcm", PrepareSettings())


def test_drawing_needs_no_pyplot() -> None:
    """It would choose a window system."""
    program = "import data_prep.preprocessing.inspection, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
