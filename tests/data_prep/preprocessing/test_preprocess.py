"""One file to its square: every setting, the transform back to the original pixels, and the warnings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from data_prep.cache.images import read_image, write_image
from data_prep.imageio import codecs
from data_prep.imageio.frame import Pixels
from data_prep.preprocessing.placement import Placement
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image, preprocess

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
SYNTAXES = [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.JPEG_2000_LOSSLESS, codecs.HTJ2K_LOSSLESS]
EDGES = ("left", "top", "right", "bottom")
each_syntax = pytest.mark.parametrize("syntax", SYNTAXES)


def add_dot(pixels: Pixels, x0: float, y0: float) -> Pixels:
    """A bright round spot in a breast that is darker everywhere else."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    dot = 3500 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 20.0**2))
    return np.maximum(pixels // 4, dot).astype(np.uint16)


@each_syntax
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("side", [64, 200])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_place_in_the_image_leads_back_to_the_pixel(
    tmp_path: Path, syntax: str, fit: Any, side: int, flipped: bool
) -> None:
    x0, y0 = 200.5, 520.5
    pixels = add_dot(make_breast(1000, 700), x0, y0)
    if flipped:
        pixels, x0 = np.ascontiguousarray(pixels[:, ::-1]), 700 - x0
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, **WINDOW)
    image, record = prepare_image(path, PrepareSettings(side=side, fit=fit))
    assert record["flipped"] is flipped
    weights = (image.astype(float) - 100).clip(min=0)
    y, x = np.mgrid[:side, :side] + 0.5
    found = (weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()
    placement = Placement.from_record(record)
    tolerance = 0.25 / min(placement.scale_x, placement.scale_y)  # a quarter of the image's pixel
    assert placement.to_full_matrix(*found) == pytest.approx((x0, y0), abs=tolerance)


def test_sixteen_bits_are_the_same_picture_in_finer_steps(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_breast(400, 300), **WINDOW)
    coarse, _ = prepare_image(path, PrepareSettings(side=64))
    fine, _ = prepare_image(path, PrepareSettings(side=64, bit_depth=16))
    assert (coarse.dtype, fine.dtype) == (np.uint8, np.uint16)
    assert np.abs(fine / 257 - coarse).max() <= 0.51
    write_image(tmp_path / "fine.png", fine)
    np.testing.assert_array_equal(read_image(tmp_path / "fine.png"), fine)


@each_syntax
def test_a_prefix_gives_the_same_image_from_fewer_bytes(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_breast(2000, 1400), transfer_syntax=syntax, **WINDOW)
    whole, whole_record = prepare_image(path, PrepareSettings(side=128))
    part, record = prepare_image(path, PrepareSettings(side=128, codecs=CodecSettings(read="prefix")))
    np.testing.assert_array_equal(part, whole)
    assert whole_record["bytes_read"] == whole_record["source_bytes"] == path.stat().st_size
    changed = {name for name in record if record[name] != whole_record[name]}
    if syntax == codecs.EXPLICIT_VR_LITTLE_ENDIAN:
        assert changed == set()
    else:
        assert changed == {"bytes_read"}
        assert record["bytes_read"] < 0.3 * record["source_bytes"]


def test_the_box_does_not_depend_on_the_settings(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", make_breast(900, 700), transfer_syntax=codecs.JPEG_2000_LOSSLESS, **WINDOW
    )
    variants = [
        PrepareSettings(side=64),
        PrepareSettings(side=512, bit_depth=16),
        PrepareSettings(fit="stretch"),
        PrepareSettings(codecs=CodecSettings(exact=True)),
    ]
    records = [preprocess(path, variant).record for variant in variants]
    boxes = {tuple(record[f"box_{edge}"] for edge in EDGES) for record in records}
    assert len(boxes) == 1


def test_bright_padding_is_black_and_kept_from_its_neighbours(tmp_path: Path) -> None:
    """MONOCHROME1 with padding 0, which would show white: then the frame is decoded in full."""
    breast = make_breast(1000, 700)
    pixels = np.where(breast > 0, 4095 - breast, 4095).astype(np.uint16)
    pixels[:, 600:] = 0
    elements = {"PhotometricInterpretation": "MONOCHROME1", **WINDOW}
    syntax = codecs.JPEG_2000_LOSSLESS
    plain = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, **elements)
    padded = write_dicom(tmp_path / "b.dcm", pixels, transfer_syntax=syntax, PixelPaddingValue=0, **elements)
    stages = preprocess(padded, PrepareSettings(side=64))
    assert stages.record["warnings"] == ""
    assert stages.record["box_right"] < 600
    assert preprocess(plain, PrepareSettings(side=64)).overview[:, -5:].min() > 0.9
    assert stages.overview[:, -5:].max() < 0.05


@pytest.mark.parametrize(
    ("elements", "table", "codes"),
    [
        ({}, "L", set()),
        ({}, None, set()),
        ({}, "R", {"laterality_header", "laterality_picture"}),
        ({"ImageLaterality": "R"}, "L", {"laterality_header"}),
        ({"ImageLaterality": "R"}, None, {"laterality_picture"}),
        ({"ImageLaterality": None}, "L", set()),
        ({"PresentationLUTShape": "INVERSE"}, "L", {"lut_shape"}),
        ({"PresentationLUTShape": "IDENTITY"}, "L", set()),
        ({"WindowCenter": 900, "WindowWidth": 4}, "L", {"saturated"}),
        ({"WindowCenter": 30000, "WindowWidth": 60000}, "L", {"low_contrast"}),
        ({"PresentationIntentType": "FOR PROCESSING"}, "L", {"for_processing"}),
        ({"Modality": "MG"}, "L", set()),
        ({"Modality": ""}, "L", set()),
        *(({"Modality": modality}, "L", {"not_mammography"}) for modality in ("CT", "US", "OT", "SMITH")),
    ],
)
def test_what_deserves_a_look_is_named(
    tmp_path: Path, elements: dict[str, Any], table: str | None, codes: set[str]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_breast(400, 300), **(WINDOW | elements))
    _, record = prepare_image(path, PrepareSettings(side=64), laterality=table)
    assert set(record["warnings"].split()) == codes


def test_a_file_without_a_window_says_so(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_breast(400, 300), BitsStored=12)
    _, record = prepare_image(path, PrepareSettings(side=64))
    assert record["warnings"] == "no_window"
    assert record["window"].endswith("(percentiles)")


@each_syntax
@pytest.mark.parametrize("padding", [None, 4095])
@pytest.mark.parametrize("exact", [False, True])
def test_a_window_of_its_own_is_that_of_the_full_frame_in_every_encoding(
    tmp_path: Path, syntax: str, padding: int | None, exact: bool
) -> None:
    pixels = make_breast(1000, 700, maximum=3500)
    pixels[:, 460:] = 4095
    picture = pixels if padding is None else pixels[pixels != padding]
    low, high = np.percentile(picture, (0.5, 99.5))
    elements = {} if padding is None else {"PixelPaddingValue": padding}
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, BitsStored=12, **elements)
    record = preprocess(path, PrepareSettings(side=64, codecs=CodecSettings(exact=exact))).record
    function, numbers, origin = record["window"].split()
    center, width = map(float, numbers.split("/"))
    assert (function, origin) == ("LINEAR_EXACT", "(percentiles)")
    assert (center - width / 2, center + width / 2) == pytest.approx((low, high), abs=1)


@pytest.mark.parametrize(
    ("syntax", "share", "is_told"),
    [
        (codecs.EXPLICIT_VR_LITTLE_ENDIAN, 0.5, True),
        (codecs.RLE_LOSSLESS, 0.5, True),
        (codecs.JPEG_2000_LOSSLESS, 0.5, True),
        (codecs.EXPLICIT_VR_LITTLE_ENDIAN, 0.005, False),
        (codecs.EXPLICIT_VR_LITTLE_ENDIAN, 0.0, False),
    ],
)
def test_values_beyond_bits_stored_are_told_be_they_cut_off_or_not(
    tmp_path: Path, syntax: str, share: float, is_told: bool
) -> None:
    """An uncompressed frame loses them, as old files keep overlays there; a codestream brings its own."""
    pixels = make_breast(400, 300)
    pixels[: round(400 * share)] |= 0x2000
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, BitsStored=14)
    dataset = dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path)
    record = preprocess(path, PrepareSettings(side=64)).record
    assert ("beyond_bits_stored" in record["warnings"].split()) is is_told


@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.JPEG_2000_LOSSLESS])
def test_a_white_frame_that_rings_at_a_lower_resolution_is_not_beyond_the_range(
    tmp_path: Path, syntax: str
) -> None:
    pixels = make_breast(1600, 1200)
    pixels[:24] = pixels[-24:] = pixels[:, :24] = pixels[:, -24:] = 4095
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, BitsStored=12)
    assert "beyond_bits_stored" not in preprocess(path, PrepareSettings(side=64)).record["warnings"]


@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.JPEG_2000_LOSSLESS])
@pytest.mark.parametrize(
    ("photometric", "padding"),
    [("MONOCHROME2", 4095), ("MONOCHROME1", 0)],
    ids=["MONOCHROME2", "MONOCHROME1"],
)
def test_bright_padding_blends_with_nothing(
    tmp_path: Path, photometric: str, padding: int, syntax: str
) -> None:
    """At lower resolutions too: the image is that of the same picture with black instead."""
    pixels = make_breast(1501, 1203)
    is_air = pixels == 0
    shown = 4095 - pixels if photometric == "MONOCHROME1" else pixels
    options = {"PhotometricInterpretation": photometric, "transfer_syntax": syntax, **WINDOW}
    plain = write_dicom(tmp_path / "plain.dcm", shown, **options)
    padded = write_dicom(
        tmp_path / "padded.dcm",
        np.where(is_air, shown.dtype.type(padding), shown),
        PixelPaddingValue=padding,
        **options,
    )
    expected, found = (preprocess(path, PrepareSettings(side=128)) for path in (plain, padded))
    assert found.record["level"] > 0
    assert Placement.from_record(found.record) == Placement.from_record(expected.record)
    assert abs(found.image.astype(int) - expected.image).mean() < 1.5  # JPEG 2000 by its own low resolution
