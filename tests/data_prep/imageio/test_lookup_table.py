"""Lookup tables: every way in which files hold one table gives that table, and what is none is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence

from data_prep.imageio import codecs
from data_prep.imageio.elements import Element, Elements
from data_prep.imageio.frame import Frame, Pixels, Window
from data_prep.imageio.lookup_table import choose_first_mapped, read_table
from data_prep.preprocessing.windowing import to_display, with_voi
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import read_frame

PIXELS = make_breast(48, 32)
RAMP = np.rint(np.arange(4096) * (65535 / 4095)).astype("<u2")
BYTES = (np.arange(4096) // 16).astype(np.uint8)
EVEN = {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}
BIG = codecs.EXPLICIT_VR_BIG_ENDIAN


def make_item(
    data: Any,
    vr: str = "OW",
    *,
    count: int = 4096,
    first: int = 0,
    bits: int = 16,
    descriptor: str = "US",
) -> Dataset:
    item = Dataset()
    item.add(DataElement("LUTDescriptor", descriptor, [count, first, bits]))
    item.add(DataElement("LUTData", vr, data))
    return item


def read(
    folder: Path,
    *items: Dataset,
    pixels: Pixels = PIXELS,
    sequence: str = "VOILUTSequence",
    syntax: str = codecs.EXPLICIT_VR_LITTLE_ENDIAN,
    **elements: Any,
) -> Frame:
    elements = {"BitsStored": 12, sequence: Sequence(items)} | elements
    if syntax == BIG:
        elements["PixelData"] = pixels.byteswap().tobytes()
    return read_frame(write_dicom(folder / "a.dcm", pixels, transfer_syntax=syntax, **elements))


def as_words(values: NDArray[Any], dtype: str) -> list[int]:
    return [int(value) for value in values.view(dtype)]


ENCODINGS = {
    "words": (make_item(RAMP.tobytes()), {}),
    "implicit": (make_item(RAMP.tobytes()), {"syntax": codecs.IMPLICIT_VR_LITTLE_ENDIAN}),
    "big endian": (make_item(RAMP.byteswap().tobytes()), {"syntax": BIG}),
    "big endian US": (make_item(as_words(RAMP, "<u2"), "US"), {"syntax": BIG}),
    "US": (make_item(as_words(RAMP, "<u2"), "US"), {}),
    "SS": (make_item(as_words(RAMP, "<i2"), "SS"), {}),
    "UN": (make_item(RAMP.tobytes(), "UN"), {}),
    "12 bits": (make_item(np.arange(4096, dtype="<u2").tobytes(), bits=12), {}),
    "says 16, has 12": (make_item(np.arange(4096, dtype="<u2").tobytes()), {}),
    "says 8, has 16": (make_item(RAMP.tobytes(), bits=8), {}),
    "says 10, has 12": (make_item(np.arange(4096, dtype="<u2").tobytes(), bits=10), {}),
    "says 0": (make_item(RAMP.tobytes(), bits=0), {}),
}


@pytest.mark.parametrize(("item", "elements"), ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_table_is_the_same_however_it_is_stored(
    tmp_path: Path, item: Dataset, elements: dict[str, Any], photometric: str
) -> None:
    frame = read(tmp_path, item, PhotometricInterpretation=photometric, **elements)
    expected = PIXELS / 4095
    inverted = photometric == "MONOCHROME1"
    np.testing.assert_allclose(to_display(frame), 1 - expected if inverted else expected, atol=1e-5)
    assert frame.voi_lut is not None
    assert ("lut_range" in frame.warnings) == frame.voi_lut.is_contradicted


@pytest.mark.parametrize("count", [4096, 4095])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_entries_of_8_bits_may_be_packed_two_in_a_word(tmp_path: Path, sequence: str, count: int) -> None:
    """The length tells which; in a big-endian file the first of two is the low byte as well."""
    packed = BYTES[:count].tobytes() + b"\0" * (count % 2)
    swapped = np.frombuffer(packed, "<u2").byteswap().tobytes()
    padded = BYTES[:count].astype("<u2").tobytes()
    window = {"WindowCenter": 127.5, "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"}
    little = codecs.EXPLICIT_VR_LITTLE_ENDIAN
    shown = [
        to_display(
            read(tmp_path, make_item(data, bits=8, count=count), sequence=sequence, syntax=syntax, **window)
        )
        for data, syntax in ((padded, little), (packed, little), (swapped, BIG))
    ]
    np.testing.assert_allclose(shown[0], np.minimum(PIXELS, count - 1) // 16 / 255, atol=1e-6)
    np.testing.assert_array_equal(shown[1], shown[0])
    np.testing.assert_array_equal(shown[2], shown[0])


def test_a_table_of_65536_entries_says_0(tmp_path: Path) -> None:
    table = make_item(np.arange(2**16, dtype="<u2").tobytes(), count=0)
    np.testing.assert_allclose(to_display(read(tmp_path, table)), PIXELS / 65535, atol=1e-6)


UNUSABLE = {
    "empty": Dataset(),
    "without data": make_item(b""),
    "short": make_item(RAMP[:4000].tobytes()),
    "half, of more than 8 bits": make_item(RAMP[:2048].tobytes()),
    "even": make_item(np.full(4096, 7, "<u2").tobytes()),
    "beyond the values": make_item(RAMP.tobytes(), first=40000),
    "in text": make_item("4", "LO"),
}


@pytest.mark.parametrize("item", UNUSABLE.values(), ids=UNUSABLE)
def test_a_table_that_cannot_be_used_leaves_the_window(tmp_path: Path, item: Dataset) -> None:
    frame = read(tmp_path, item, **EVEN)
    assert frame.voi_lut is None
    assert frame.warnings == ("lut_unusable",)
    np.testing.assert_allclose(to_display(frame), PIXELS / 4095, atol=1e-6)
    without = read(tmp_path, item)
    assert without.window is None
    assert with_voi(without).warnings == ("lut_unusable", "no_window")


@pytest.mark.parametrize("descriptor", [[], [4096], [4096, 0], [4096, 0, 16, 1], [4096, None, 16]])
def test_a_descriptor_needs_three_numbers(descriptor: list[int | None]) -> None:
    text = "\\".join("" if value is None else str(value) for value in descriptor)
    data = Element("LUTData", "OW", RAMP.tobytes())
    item = Elements({"LUTDescriptor": Element("LUTDescriptor", "IS", text.encode()), "LUTData": data})
    assert read_table(item, (0, 4095)) is None


def test_the_first_table_that_can_be_used_is_taken(tmp_path: Path) -> None:
    items = Dataset(), make_item(RAMP.tobytes()), make_item(RAMP[::-1].tobytes())
    frame = read(tmp_path, *items)
    np.testing.assert_allclose(to_display(frame), PIXELS / 4095, atol=1e-5)
    assert frame.warnings == ()
    assert read(tmp_path).warnings == ()


def test_a_modality_table_that_is_damaged_leaves_no_unit_for_the_window(tmp_path: Path) -> None:
    """A window of its values means nothing for stored ones; an empty item says nothing of any table."""
    frame = read(tmp_path, make_item(RAMP[:99].tobytes()), sequence="ModalityLUTSequence", **EVEN)
    assert frame.window is None
    assert frame.warnings == ("lut_unusable",)
    rescaled = EVEN | {"RescaleSlope": 1, "RescaleIntercept": 0}  # which tells the unit
    frame = read(tmp_path, make_item(RAMP[:99].tobytes()), sequence="ModalityLUTSequence", **rescaled)
    assert isinstance(frame.window, Window)
    frame = read(tmp_path, Dataset(), sequence="ModalityLUTSequence", **EVEN)
    assert isinstance(frame.window, Window)
    assert frame.warnings == ("lut_unusable",)


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("first", [-2048, 40000])
def test_the_first_mapped_value_is_signed_as_the_pixels_are(
    tmp_path: Path, vr: str, sequence: str, first: int
) -> None:
    pixels = (PIXELS.astype(int) + first).astype(np.int16 if first < 0 else np.uint16)
    bits = first & 0xFFFF
    item = make_item(RAMP.tobytes(), first=bits - 2**16 if vr == "SS" else bits, descriptor=vr)
    window = {"WindowCenter": 32767.5, "WindowWidth": 65535, "VOILUTFunction": "LINEAR_EXACT"}
    frame = read(tmp_path, item, pixels=pixels, sequence=sequence, **(window | {"BitsStored": 16}))
    np.testing.assert_allclose(to_display(frame), PIXELS / 4095, atol=1e-5)


def test_the_first_mapped_value_of_rescaled_values_lies_among_them() -> None:
    assert choose_first_mapped(64512, 4096, (-1024, 3071)) == -1024
    assert choose_first_mapped(40000, 4096, (-1024, 64511)) == 40000
    assert choose_first_mapped(64512, 4096, (-1024, 64511)) == -1024
    assert choose_first_mapped(40000, 4096, (0, 131070)) == 40000
    assert choose_first_mapped(5, 4096, (-1024, 3071)) == 5
