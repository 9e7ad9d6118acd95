"""The header: no number is invented, what cannot be used is left out with a warning, messages say what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import dictionary_VR

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.frame import Frame, Pixels, VoiLutFunction, Window
from data_prep.preprocessing.quality_checks import judge_values
from data_prep.preprocessing.windowing import to_display, with_voi
from tests.data_prep.dicom_files import make_breast, put_bytes, write_dicom
from tests.data_prep.reading import read_frame

PIXELS = make_breast(48, 32)
WINDOW = Window(2047.5, 4096, VoiLutFunction.LINEAR_EXACT)
ELEMENTS = {"BitsStored": 12, "WindowCenter": 2047.5, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}


def read(
    folder: Path, pixels: Pixels = PIXELS, *, odd: dict[str, bytes] | None = None, **elements: Any
) -> Frame:
    """Writes a file, puts bytes into its elements that pydicom would not write, and reads it."""
    path = write_dicom(folder / "a.dcm", pixels, **(ELEMENTS | elements))
    for keyword, content in (odd or {}).items():
        put_bytes(path, keyword, dictionary_VR(keyword)[:2], content)
    return read_frame(path)


WINDOWS: dict[str, tuple[dict[str, bytes], Window | None]] = {
    "sound": ({}, WINDOW),
    "first center empty": ({"WindowCenter": b"\\2047.5", "WindowWidth": b"99\\4096"}, WINDOW),
    "first width blank": ({"WindowCenter": b"7\\2047.5", "WindowWidth": b"  \\4096"}, WINDOW),
    "first width 0": ({"WindowCenter": b"7\\2047.5", "WindowWidth": b"0\\4096"}, WINDOW),
    "more centers": ({"WindowCenter": b"2047.5\\100"}, WINDOW),
    "more widths": ({"WindowWidth": b"4096\\10"}, WINDOW),
    "lower case": ({"VOILUTFunction": b"linear_exact"}, WINDOW),
    "null padding": ({"VOILUTFunction": b"LINEAR_EXACT\0\0"}, WINDOW),
    "blank function": ({"VOILUTFunction": b"  "}, Window(2047.5, 4096)),
    "center blank": ({"WindowCenter": b"      "}, None),
    "width blank": ({"WindowWidth": b"    "}, None),
    "no pair": ({"WindowCenter": b"\\5", "WindowWidth": b"9\\"}, None),
    "decimal comma": ({"WindowCenter": b"2047,5"}, None),
    "width 0": ({"WindowWidth": b"0 "}, None),
    "width negative": ({"WindowWidth": b"-4096"}, None),
    "width not finite": ({"WindowWidth": b"1e400"}, None),
    "no number": ({"WindowCenter": b"middle"}, None),
    "LINEAR below 1": ({"VOILUTFunction": b"LINEAR", "WindowWidth": b".5"}, None),
    "unknown function": ({"VOILUTFunction": b"LOGARITHM"}, None),
}


@pytest.mark.parametrize(("odd", "window"), WINDOWS.values(), ids=WINDOWS)
def test_the_first_complete_and_valid_window_is_taken(
    tmp_path: Path, odd: dict[str, bytes], window: Window | None
) -> None:
    frame = read(tmp_path, odd=odd)
    assert frame.window == window
    assert frame.warnings == (() if window else ("window_unusable",))
    if window is None:  # the picture is that of a file without a window
        without = with_voi(read_frame(write_dicom(tmp_path / "b.dcm", PIXELS, BitsStored=12)))
        np.testing.assert_array_equal(to_display(with_voi(frame)), to_display(without))


def test_blank_values_on_both_sides_are_no_window(tmp_path: Path) -> None:
    frame = read(tmp_path, odd={"WindowCenter": b"", "WindowWidth": b"  "})
    assert (frame.window, frame.warnings) == (None, ())


@pytest.mark.parametrize("slope", [b"0 ", b"0,5 ", b"nan ", b"1e99", b"1e-99 "])
def test_an_unusable_rescale_leaves_no_unit_for_the_window(tmp_path: Path, slope: bytes) -> None:
    frame = read(tmp_path, odd={"RescaleSlope": slope, "RescaleIntercept": b"3 "})
    assert (frame.rescale_slope, frame.rescale_intercept, frame.window) == (1, 0, None)
    assert frame.warnings == ("rescale_unusable",)
    assert to_display(with_voi(frame)).std() > 0.2


def test_an_absent_rescale_is_none(tmp_path: Path) -> None:
    frame = read(tmp_path, odd={"RescaleSlope": b"  ", "RescaleIntercept": b"-5 "})
    assert (frame.rescale_slope, frame.rescale_intercept, frame.window) == (1, -5, WINDOW)
    assert frame.warnings == ()


# Padding


SIGNED = (PIXELS.astype(int) - 2048).astype(np.int16)
BACKGROUND = PIXELS == 0


@pytest.mark.parametrize("vr", ["US", "SS", "IS", "SL", "UN"])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_read_as_the_pixels_are(tmp_path: Path, vr: str, bits: int, signed: bool) -> None:
    value = -2000 if signed else (65535 if bits == 16 else 4000)
    pixels = np.where(BACKGROUND, value, SIGNED if signed else PIXELS).astype(
        SIGNED.dtype if signed else "u2"
    )
    word = (value & 0xFFFF).to_bytes(2, "little")
    wide = (value & 0xFFFFFFFF).to_bytes(4, "little")
    content = {"IS": str(value).encode(), "SL": wide}.get(vr, word)
    path = write_dicom(tmp_path / "a.dcm", pixels, **(ELEMENTS | {"BitsStored": bits}))
    put_bytes(path, "PixelPaddingValue", vr, content)
    frame = read_frame(path)
    assert frame.padding == (value, value)
    assert not to_display(frame, blacken_padding=True)[BACKGROUND].any()


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("syntax", [codecs.EXPLICIT_VR_LITTLE_ENDIAN, codecs.RLE_LOSSLESS])
@pytest.mark.parametrize("signed", [False, True])
def test_padding_beyond_bits_stored_hides_no_tissue(
    tmp_path: Path, vr: str, syntax: str, signed: bool
) -> None:
    """Cut to 12 bits it would be 4,095, or 0 of signed pixels: saturated or ordinary tissue."""
    value, tissue = (-32768, 0) if signed else (65535, 4095)
    pixels = np.where(BACKGROUND, value, SIGNED if signed else PIXELS).astype(
        SIGNED.dtype if signed else "u2"
    )
    pixels[24, :3] = tissue
    elements = ELEMENTS | {"BitsStored": 16}  # pydicom's RLE encoder writes nothing beyond
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, **elements)
    for keyword, number in (("BitsStored", 12), ("HighBit", 11)):
        put_bytes(path, keyword, "US", number.to_bytes(2, "little"))
    put_bytes(path, "PixelPaddingValue", vr, (value & 0xFFFF).to_bytes(2, "little"))
    frame = read_frame(path)
    shown = to_display(frame, blacken_padding=True)
    assert not shown[BACKGROUND].any()
    assert (shown[24, :3] > 0).all()
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert judge_values(frame) == []


def test_padding_without_the_sign_in_its_unused_bits_is_the_same(tmp_path: Path) -> None:
    pixels = np.where(BACKGROUND, -2000, SIGNED).astype(np.int16) & 0x0FFF
    for value in (-2000, 2096):
        frame = read(tmp_path, pixels, odd={"PixelPaddingValue": (value & 0xFFFF).to_bytes(2, "little")})
        assert frame.padding == (-2000, -2000)


def test_padding_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    path = put_bytes(write_dicom(tmp_path / "a.dcm", PIXELS, **ELEMENTS), "PixelPaddingValue", "LO", b"none")
    frame = read_frame(path)
    assert (frame.padding, frame.warnings) == (None, ("padding_unusable",))


# Messages


NUMBERS = ("Rows", "BitsAllocated", "BitsStored", "PixelRepresentation", "HighBit", "NumberOfFrames")


@pytest.mark.parametrize("keyword", NUMBERS)
@pytest.mark.parametrize(
    ("vr", "content", "said"),
    [
        ("LO", b"Ann ", "no number"),
        ("IS", b"1\\1 ", r"1\\1"),
        ("IS", b"9" * 400, "no number"),
        ("DS", b"1.5 ", "1.5"),
        ("US", b"\x30\x00\x20\x00", r"48\\32"),
        ("US", b"\x30", "nan"),
    ],
)
def test_a_bad_number_is_named_with_its_value_and_rule(
    tmp_path: Path, keyword: str, vr: str, content: bytes, said: str
) -> None:
    path = put_bytes(write_dicom(tmp_path / "a.dcm", PIXELS, **ELEMENTS), keyword, vr, content)
    with pytest.raises(ImageError, match=f"^{keyword} is {said}; one whole number is needed") as error:
        read_frame(path)
    assert error.value.reason == "bad_value"


@pytest.mark.parametrize(
    ("content", "said"), [(b"RGB ", "RGB"), (b"Weiherer^Annegret ", "of no standard"), (b"", "missing")]
)
def test_a_colour_is_named_and_a_name_is_not(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=f"^PhotometricInterpretation is {said}; a mammogram has") as error:
        read(tmp_path, odd={"PhotometricInterpretation": content})
    assert error.value.reason == "unsupported"


@pytest.mark.parametrize("content", [b"monochrome2 ", b"MONOCHROME2\0", b" MONOCHROME2"])
def test_codes_may_be_padded_and_in_small_letters(tmp_path: Path, content: bytes) -> None:
    frame = read(tmp_path, odd={"PhotometricInterpretation": content, "ImageLaterality": b"l\0"})
    assert (frame.photometric_interpretation, frame.laterality) == ("MONOCHROME2", "L")
