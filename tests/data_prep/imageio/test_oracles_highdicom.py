"""Windows and lookup tables against highdicom, on values and on files whose tables it wrote."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from highdicom.pixels import apply_lut, apply_voi_window
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset

from data_prep.imageio import codecs
from data_prep.imageio.frame import LookupTable, VoiLutFunction, Window
from data_prep.preprocessing.windowing import apply_lookup_table, apply_window, to_display
from tests.data_prep.dicom_files import write_dicom
from tests.data_prep.reading import read_frame

VALUES = np.concatenate([np.arange(-70_000, 70_000, 37), np.linspace(-3, 5000, 4001)])
ORDERS = {
    codecs.IMPLICIT_VR_LITTLE_ENDIAN: "<",
    codecs.EXPLICIT_VR_LITTLE_ENDIAN: "<",
    codecs.EXPLICIT_VR_BIG_ENDIAN: ">",
}
functions = st.sampled_from(list(VoiLutFunction))
syntaxes = pytest.mark.parametrize("syntax", ORDERS, ids=["implicit", "explicit", "big-endian"])
photometrics = pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])


def judge_window(
    values: NDArray[Any], center: float, width: float, function: VoiLutFunction, *, invert: bool = False
) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return apply_voi_window(values, center, width, str(function), invert=invert)


def make_entries(length: int, bits: int, seed: int = 0) -> NDArray[Any]:
    entries = np.random.default_rng(seed).integers(0, 2**bits, length)
    return entries.astype(np.uint8 if bits == 8 else np.uint16)


def make_stored(*, signed: bool = False) -> NDArray[Any]:
    stored = np.random.default_rng(3).integers(-(2**15), 2**15, (20, 30)) + 2**15 * (not signed)
    return stored.astype(np.int16 if signed else np.uint16)


def write(folder: Path, stored: NDArray[Any], syntax: str, **elements: Any) -> Path:
    """Writes the pixels, and the words of tables, which highdicom makes little-endian, as a syntax says."""
    order = ORDERS[syntax]
    for items in elements.values():
        for item in items if isinstance(items, list) else []:
            if isinstance(item, Dataset):
                content = item.LUTData + bytes(len(item.LUTData) % 2)
                words = np.frombuffer(content, "<u2").astype(f"{order}u2")
                item.add_new("LUTData", "OW", words.tobytes())
    elements["PixelData"] = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    return write_dicom(folder / "a.dcm", stored, transfer_syntax=syntax, **elements)


@given(center=st.floats(-70_000, 70_000), width=st.floats(1.001, 200_000), function=functions)
@settings(max_examples=200, deadline=None)
def test_any_window_is_highdicoms(center: float, width: float, function: VoiLutFunction) -> None:
    shown = apply_window(VALUES, Window(center, width, function))
    np.testing.assert_allclose(shown, judge_window(VALUES, center, width, function), rtol=0, atol=1e-9)


@given(
    center=st.floats(-10, 5000),
    width=st.floats(1e-3, 1),
    function=st.sampled_from([VoiLutFunction.LINEAR_EXACT, VoiLutFunction.SIGMOID]),
)
@settings(max_examples=100, deadline=None)
def test_any_narrow_window_is_highdicoms(center: float, width: float, function: VoiLutFunction) -> None:
    shown = apply_window(VALUES, Window(center, width, function))
    np.testing.assert_allclose(shown, judge_window(VALUES, center, width, function), rtol=0, atol=1e-6)


@given(
    length=st.integers(1, 2**16),
    bits=st.sampled_from([8, 10, 12, 16]),
    first_mapped=st.integers(-(2**15), 2**16 - 1),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_any_lookup_table_is_highdicoms(
    length: int, bits: int, first_mapped: int, signed: bool, seed: int
) -> None:
    stored, entries = make_stored(signed=signed), make_entries(length, bits, seed)
    table = LookupTable(entries.astype(np.uint16), first_mapped, bits)
    expected = apply_lut(stored.astype(np.int64), entries, first_mapped)
    np.testing.assert_array_equal(apply_lookup_table(stored, table), expected)


@syntaxes
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("length", "first_mapped"), [(256, 0), (4095, 1000), (2, 7), (60_000, 40_000)])
@photometrics
def test_a_voi_lut_that_highdicom_wrote(
    tmp_path: Path, syntax: str, bits: int, length: int, first_mapped: int, photometric: str
) -> None:
    """Entries of 8 bits lie two in a word, with a byte of padding behind an odd number."""
    stored, entries = make_stored(), make_entries(length, bits)
    lut = highdicom.VOILUT(first_mapped, entries, "table")
    expected = lut.apply(stored) / (2**bits - 1)
    path = write(tmp_path, stored, syntax, VOILUTSequence=[lut], PhotometricInterpretation=photometric)
    shown = to_display(read_frame(path))
    np.testing.assert_allclose(
        shown, 1 - expected if photometric == "MONOCHROME1" else expected, rtol=0, atol=1e-6
    )


@syntaxes
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("function", VoiLutFunction)
@photometrics
def test_a_window_behind_a_modality_lut_that_highdicom_wrote(
    tmp_path: Path, syntax: str, bits: int, function: VoiLutFunction, photometric: str
) -> None:
    stored, center, width = make_stored(), 0.45 * 2**bits, 0.7 * 2**bits
    lut = highdicom.ModalityLUT("US", 300, make_entries(50_001, bits), "table")
    expected = judge_window(lut.apply(stored), center, width, function, invert=photometric == "MONOCHROME1")
    window = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": str(function)}
    path = write(
        tmp_path,
        stored,
        syntax,
        ModalityLUTSequence=[lut],
        PhotometricInterpretation=photometric,
        **window,
    )
    np.testing.assert_allclose(to_display(read_frame(path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1024), (0.0003, 7), (-1, 0), (90, 1e6)])
@pytest.mark.parametrize("function", VoiLutFunction)
def test_the_first_window_of_rescaled_values(
    tmp_path: Path, signed: bool, slope: float, intercept: float, function: VoiLutFunction
) -> None:
    """Of three windows, in elements that highdicom wrote."""
    stored = make_stored(signed=signed)
    rescale = highdicom.ModalityLUTTransformation(float(intercept), float(slope), "US")
    centers = [10_000.0 * slope + intercept, 3.0, 9.0]
    widths = [max(20_000.0 * abs(slope), 600.0), 5.0, 7.0]  # narrow, LINEAR would be of steps
    voi = highdicom.VOILUTTransformation(centers, widths, voi_lut_function=str(function))
    with np.errstate(over="ignore"):
        expected = voi.apply(rescale.apply(stored))
    elements = {element.keyword: element.value for element in [*rescale, *voi]}
    path = write(tmp_path, stored, codecs.EXPLICIT_VR_LITTLE_ENDIAN, **elements)
    np.testing.assert_allclose(to_display(read_frame(path)), expected, rtol=0, atol=1e-6)
