"""The DICOM reader: what it takes from a header, which reason each bad file gets, and what it never tells."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.frame import Frame, Grid, PhotometricInterpretation, VoiLutFunction, Window
from data_prep.preprocessing.windowing import to_display, with_voi
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import read_frame

PIXELS = make_breast(48, 32)
SECRETS = {
    "PatientName": "Weiherer^Annegret",
    "PatientID": "PID-778899",
    "PatientBirthDate": "19521103",
    "StudyDate": "20190817",
    "InstitutionName": "Klinik Seehof",
}


def refusal(path: Path) -> ImageError:
    with pytest.raises(ImageError) as error:
        read_frame(path)
    assert "\n" not in str(error.value)
    return error.value


def written(folder: Path, **elements: Any) -> Path:
    return write_dicom(folder / "a.dcm", PIXELS, **elements)


ENCODINGS = [
    (codecs.IMPLICIT_VR_LITTLE_ENDIAN, False),
    (codecs.EXPLICIT_VR_LITTLE_ENDIAN, False),
    (codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, False),
    (codecs.JPEG_LOSSLESS_SV1, False),
    (codecs.JPEG_2000_LOSSLESS, False),
    (codecs.JPEG_2000_LOSSLESS, True),
    (codecs.RLE_LOSSLESS, False),
]


@pytest.mark.parametrize(("syntax", "jp2"), ENCODINGS)
@pytest.mark.parametrize("bits", [12, 16])
def test_every_transfer_syntax_gives_the_pixels_that_were_written(
    tmp_path: Path, syntax: str, jp2: bool, bits: int
) -> None:
    pixels = make_breast(48, 32, maximum=2**bits - 1)
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, jp2=jp2, BitsStored=bits)
    frame = read_frame(path)
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert (frame.rows, frame.columns, frame.bits_stored, frame.grid) == (48, 32, bits, Grid())
    assert frame.transfer_syntax == syntax


def test_signed_pixels_stay_signed(tmp_path: Path) -> None:
    pixels = (PIXELS.astype(np.int32) - 2000).astype(np.int16)
    frame = read_frame(write_dicom(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert frame.is_signed


@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.RLE_LOSSLESS])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high_bit", [11, 13, 15, None])
def test_the_value_lies_below_high_bit(
    tmp_path: Path, syntax: str, signed: bool, high_bit: int | None
) -> None:
    """Left-aligned samples too; what stands in the other bits has no meaning."""
    values = (PIXELS.astype(np.int32) - 2000 * signed).astype(np.int16 if signed else np.uint16)
    shift = (high_bit or 11) - 11
    others = np.random.default_rng(0).integers(0, 2**16, values.shape) & ~(0x0FFF << shift)
    samples = (((values.astype(np.int32) & 0x0FFF) << shift) | others).astype(np.uint16).view(values.dtype)
    path = write_dicom(tmp_path / "a.dcm", samples, transfer_syntax=syntax)
    dataset = dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, high_bit
    dataset.save_as(path)
    np.testing.assert_array_equal(read_frame(path).pixels, values)


def test_high_bit_says_nothing_of_what_a_decoder_gives(tmp_path: Path) -> None:
    syntax = codecs.JPEG_2000_LOSSLESS
    path = write_dicom(tmp_path / "a.dcm", PIXELS, transfer_syntax=syntax, BitsStored=12, HighBit=3)
    np.testing.assert_array_equal(read_frame(path).pixels, PIXELS)


def test_the_header_tells_how_to_show_the_pixels(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=[1500, 2],
        WindowWidth=[800, 3],
        VOILUTFunction="SIGMOID",
        RescaleSlope=2,
        RescaleIntercept=-7,
        ImageLaterality="R",
    )
    frame = read_frame(path)
    assert frame.window == Window(1500, 800, VoiLutFunction.SIGMOID)
    assert (frame.rescale_slope, frame.rescale_intercept) == (2, -7)
    assert frame.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    assert frame.laterality == "R"


@pytest.mark.parametrize(
    ("elements", "aspect", "codes"),
    [
        ({}, 1.0, ()),
        ({"PixelAspectRatio": ["2", "1"]}, 2.0, ()),
        ({"PixelSpacing": ["0.125", "0.1"]}, 1.25, ()),
        ({"ImagerPixelSpacing": ["0.05", "0.1"]}, 0.5, ()),
        ({"PixelAspectRatio": ["1", "20"]}, 1.0, ("pixel_shape",)),
        ({"PixelSpacing": "", "PixelAspectRatio": ""}, 1.0, ()),  # as anonymisers leave them
        ({"PatientOrientation": ["A", "FR"]}, 1.0, ()),
        ({"PatientOrientation": ["A", "P"]}, 1.0, ("orientation_unknown",)),
        ({"PatientOrientation": "MLO"}, 1.0, ()),
    ],
)
def test_the_shape_of_pixels_and_what_is_doubtful_are_read(
    tmp_path: Path, elements: dict[str, Any], aspect: float, codes: tuple[str, ...]
) -> None:
    frame = read_frame(written(tmp_path, **elements))
    assert frame.pixel_aspect == aspect
    assert frame.warnings == codes


def test_a_spacing_that_is_no_number_costs_no_picture(tmp_path: Path) -> None:
    path = written(tmp_path, PixelSpacing=["0.15", "0.1"])
    path.write_bytes(path.read_bytes().replace(b"0.15\\0.1", b"0,15\\0,1"))
    frame = read_frame(path)
    assert (frame.pixel_aspect, frame.warnings) == (1.0, ("pixel_shape",))


def test_a_bare_header_is_enough(tmp_path: Path) -> None:
    """RSNA's files have no Modality, no VOI function and often no more than the pixels' layout."""
    frame = read_frame(written(tmp_path, ImageLaterality=None, SamplesPerPixel=None))
    assert frame.window is None
    assert frame.laterality is None
    assert (frame.rescale_slope, frame.rescale_intercept) == (1, 0)


@pytest.mark.parametrize(
    ("element", "read"),
    [(None, ""), ("", ""), ("MG", "MG"), ("CT", "CT"), ("WEIHERER", "of no standard")],
)
def test_the_modality_is_read_where_it_is_there(tmp_path: Path, element: str | None, read: str) -> None:
    """A damaged header may hold a name in its place."""
    elements = {} if element is None else {"Modality": element}
    assert read_frame(written(tmp_path, **elements)).modality == read


def test_levels_come_from_the_codestream_or_from_averaging(tmp_path: Path) -> None:
    pixels = make_breast(256, 192)
    file = open_dicom(
        write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=codecs.JPEG_2000_LOSSLESS, BitsStored=12)
    )
    assert file.max_level >= 2
    frame = file.read_frame(2)
    assert (frame.pixels.shape, frame.grid, frame.rows, frame.columns) == (
        (64, 48),
        Grid(2, is_even=True),
        256,
        192,
    )
    frame = open_dicom(write_dicom(tmp_path / "b.dcm", pixels)).read_frame(2)
    assert (frame.pixels.shape, frame.grid, frame.rows, frame.columns) == ((64, 48), Grid(2), 256, 192)


@pytest.mark.parametrize("content", [b"", bytes(500), b"patient_id,image_id\n1,2\n", bytes(128) + b"DICM"])
def test_what_is_no_dicom_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    assert refusal(path).reason == "not_dicom"


BAD_ELEMENTS = {
    "no pixels": ({"PixelData": None}, "no_pixels"),
    "empty pixels": ({"PixelData": b""}, "no_pixels"),
    "several frames": ({"NumberOfFrames": 3}, "multi_frame"),
    "colour": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported"),
    "no photometric interpretation": ({"PhotometricInterpretation": None}, "unsupported"),
    "32 bits": ({"BitsAllocated": 32}, "unsupported"),
    "more bits stored than allocated": ({"BitsStored": 17}, "bad_value"),
    "high bit below the value": ({"BitsStored": 12, "HighBit": 7}, "unsupported"),
    "high bit beyond the sample": ({"BitsStored": 12, "HighBit": 16}, "unsupported"),
    "no rows": ({"Rows": 0}, "bad_value"),
    "no columns": ({"Columns": None}, "bad_value"),
    "fewer pixels than rows": ({"Rows": 6_000, "Columns": 6_000}, "truncated"),
    "more pixels than any mammogram": ({"Rows": 65_535, "Columns": 65_535}, "too_large"),
    "an unknown sign": ({"PixelRepresentation": 7}, "bad_value"),
}


@pytest.mark.parametrize(("elements", "reason"), BAD_ELEMENTS.values(), ids=BAD_ELEMENTS)
def test_each_bad_header_has_its_reason(tmp_path: Path, elements: dict[str, Any], reason: str) -> None:
    assert refusal(written(tmp_path, **elements)).reason == reason


@pytest.mark.parametrize("content", [b"", bytes(132) + b"DICM" + b"\xff" * 40])
def test_no_type_of_python_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    assert "Error" not in str(refusal(path))


def test_a_picture_under_a_dicom_name_is_called_by_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert "it is a PNG, so its name should end with .png" in str(refusal(path))


def test_a_missing_file_is_an_io_error(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.dcm").reason == "io_error"
    assert refusal(tmp_path).reason == "io_error"


def test_a_transfer_syntax_without_a_decoder_is_named(tmp_path: Path) -> None:
    mpeg = "1.2.840.10008.1.2.4.100"
    path = written(tmp_path, transfer_syntax=mpeg, PixelData=encapsulate([b"film"]))
    error = refusal(path)
    assert error.reason == "unsupported"
    assert mpeg in str(error)


@pytest.mark.parametrize(("syntax", "jp2"), ENCODINGS)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.98])
@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.filterwarnings("ignore:The end of the encapsulated pixel data")
def test_a_cut_file_is_never_half_an_image(tmp_path: Path, syntax: str, jp2: bool, part: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", make_breast(), transfer_syntax=syntax, jp2=jp2, BitsStored=12)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refusal(path)


@pytest.mark.parametrize("elements", [{}, *(elements for elements, _ in BAD_ELEMENTS.values())])
def test_nothing_that_identifies_a_patient_is_told(tmp_path: Path, elements: dict[str, Any]) -> None:
    path = written(tmp_path, **SECRETS, **elements)
    try:
        file = open_dicom(path)
        told = f"{file!r} {file.read_frame()!r}"
        assert len(told) < 5000, "the encoded pixels are no part of the description"
    except ImageError as error:
        told = f"{error} {error!r} {error.reason}"
    assert not [value for value in SECRETS.values() if value in told]
    assert not [value for value in ("Weiherer", "Annegret", path.name) if value in told]


@pytest.mark.filterwarnings("ignore")
def test_every_odd_real_file_ends_as_a_frame_or_as_an_image_error(real_data: Path) -> None:
    """No other exception, each within seconds; what becomes a frame can be shown."""
    folders = ["tricky_dicom", "malformed_dicom", "other_mg_dicom"]
    paths = sorted(path for name in folders for path in (real_data / name).rglob("*") if path.is_file())
    assert len(paths) > 50
    frames: list[Frame] = []
    for path in paths:
        start = time.perf_counter()
        with suppress(ImageError):
            frames.append(read_frame(path))
        assert time.perf_counter() - start < 5, path
    assert len(frames) > 20
    for frame in frames:
        display = to_display(with_voi(frame))
        assert display.min() >= 0
        assert display.max() <= 1


def test_real_mammograms_have_their_headers_read(real_data: Path) -> None:
    images = real_data / "rsna_dicom/train_images"
    inverted = open_dicom(images / "10006/462822612.dcm")
    assert inverted.header.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    assert inverted.header.window is not None
    assert inverted.header.window.function is VoiLutFunction.SIGMOID
    assert inverted.max_level >= 2
    plain = open_dicom(images / "10011/220375232.dcm")
    assert (plain.rows, plain.columns, plain.header.bits_stored) == (2776, 2082, 12)
    assert plain.header.window == Window(2048, 4096)
    assert plain.header.laterality in {"L", "R"}
