"""Display values against pydicom's modality and VOI transforms, over every way a file can ask for them."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from data_prep.imageio.frame import Frame, LookupTable, PhotometricInterpretation, VoiLutFunction, Window
from data_prep.imageio.header import make_window
from data_prep.preprocessing.breast_segmentation import find_breast
from data_prep.preprocessing.windowing import (
    describe_voi,
    display_curve,
    find_black,
    to_display,
    with_voi,
)
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import read_frame

MONOCHROME1 = PhotometricInterpretation.MONOCHROME1
MONOCHROME2 = PhotometricInterpretation.MONOCHROME2


def make_pixels(*, bits: int, signed: bool) -> NDArray[Any]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    pixels = np.random.default_rng(0).integers(low, high + 1, (24, 16))
    pixels[0, :2] = low, high
    return pixels.astype(np.int16 if signed else np.uint16)


def make_lut(entries: NDArray[Any], *, first_mapped: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first_mapped, bits]
    item["LUTDescriptor"].VR = "SS" if first_mapped < 0 else "US"
    item.LUTData = entries.astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    item.LUTExplanation = "test"
    return item


def judge(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.float64]:
    """pydicom's display values, scaled to 0..1 over its output range."""
    with np.errstate(over="ignore"), catch_warnings():
        filterwarnings("ignore", message="Applying a VOI LUT on a float input array")
        shown = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(np.float64)
    if dataset.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        bits, signed = dataset.BitsStored, dataset.PixelRepresentation
        ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], float)
        low, high = ends * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    shown = (shown - low) / (high - low)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def assert_equals_pydicom(path: Path) -> None:
    dataset = dcmread(path)
    display = to_display(read_frame(path))
    assert display.dtype == np.float32
    np.testing.assert_allclose(display, judge(dataset, dataset.pixel_array), rtol=0, atol=1e-6)


WINDOWS = {
    "linear": {"WindowCenter": 2048, "WindowWidth": 4096},
    "narrow linear": {"WindowCenter": 1000.25, "WindowWidth": 7.5},
    "threshold": {"WindowCenter": 1000, "WindowWidth": 1},
    "linear exact": {"WindowCenter": 900, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1500, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
    "steep sigmoid": {"WindowCenter": 1500, "WindowWidth": 0.01, "VOILUTFunction": "SIGMOID"},
    "first of several": {
        "WindowCenter": [700, 3000, 1],
        "WindowWidth": [900, 10, 5],
        "VOILUTFunction": "SIGMOID",
    },
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(("bits", "signed"), [(12, False), (12, True), (16, False), (16, True)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_equal_pydicoms(
    tmp_path: Path, window: dict[str, Any], bits: int, signed: bool, photometric: str
) -> None:
    pixels = make_pixels(bits=bits, signed=signed)
    path = write_dicom(
        tmp_path / "a.dcm", pixels, BitsStored=bits, PhotometricInterpretation=photometric, **window
    )
    assert_equals_pydicom(path)


@pytest.mark.parametrize("slope", [2.5, 0.125, -1.0])
def test_the_window_applies_to_rescaled_values(tmp_path: Path, slope: float) -> None:
    pixels = make_pixels(bits=12, signed=False)
    rescale = {"RescaleSlope": slope, "RescaleIntercept": -1024}
    path = write_dicom(
        tmp_path / "a.dcm", pixels, BitsStored=12, WindowCenter=300, WindowWidth=2000, **rescale
    )
    assert_equals_pydicom(path)


@pytest.mark.parametrize(("first_mapped", "bits"), [(0, 12), (500, 10), (-300, 16)])
@pytest.mark.parametrize("slope", [1.0, 0.3])
def test_a_voi_lut_is_preferred_and_clipped_at_its_ends(
    tmp_path: Path, first_mapped: int, bits: int, slope: float
) -> None:
    entries = np.sort(np.random.default_rng(1).integers(0, 2**bits, 1000))
    path = write_dicom(
        tmp_path / "a.dcm",
        make_pixels(bits=12, signed=True),
        BitsStored=12,
        RescaleSlope=slope,
        RescaleIntercept=0.25,
        WindowCenter=5,
        WindowWidth=5,
        VOILUTSequence=[make_lut(entries, first_mapped=first_mapped, bits=bits)],
    )
    assert_equals_pydicom(path)
    assert describe_voi(read_frame(path)) == "VOI LUT"


@pytest.mark.parametrize("window", [WINDOWS["linear"], WINDOWS["sigmoid"]], ids=["linear", "sigmoid"])
def test_a_modality_lut_replaces_the_rescale(tmp_path: Path, window: dict[str, Any]) -> None:
    entries = 60000 - 20 * np.arange(2500)
    path = write_dicom(
        tmp_path / "a.dcm",
        make_pixels(bits=12, signed=False),
        BitsStored=12,
        ModalityLUTSequence=[make_lut(entries, first_mapped=100, bits=16)],
        **window,
    )
    assert_equals_pydicom(path)


@given(
    center=st.floats(-5000, 70000),
    width=st.floats(1, 100000),
    function=st.sampled_from(list(VoiLutFunction)),
    signed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_window_equals_pydicoms(
    center: float, width: float, function: VoiLutFunction, signed: bool
) -> None:
    pixels = make_pixels(bits=16, signed=signed)
    dataset = Dataset()
    dataset.BitsStored, dataset.PixelRepresentation = 16, int(signed)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    # DS values are text of at most 16 characters: both sides see the value that fits.
    dataset.WindowCenter, dataset.WindowWidth = f"{center:.8g}", f"{max(1.0, float(f'{width:.8g}')):.8g}"
    dataset.VOILUTFunction = str(function)
    window = Window(float(dataset.WindowCenter), float(dataset.WindowWidth), function)
    frame = Frame(pixels=pixels, rows=24, columns=16, bits_stored=16, is_signed=signed, window=window)
    np.testing.assert_allclose(to_display(frame), judge(dataset, pixels), rtol=0, atol=1e-6)


@given(
    center=st.floats(-5000, 70000), width=st.floats(1, 1e5), function=st.sampled_from(list(VoiLutFunction))
)
@settings(max_examples=40, deadline=None)
def test_monochrome1_is_exactly_one_minus_monochrome2(
    center: float, width: float, function: VoiLutFunction
) -> None:
    stored = np.arange(0, 65536, 7)
    frame = Frame(
        pixels=make_pixels(bits=16, signed=False),
        rows=24,
        columns=16,
        bits_stored=16,
        window=Window(center, width, function),
    )
    inverted = replace(frame, photometric_interpretation=MONOCHROME1)
    assert (display_curve(inverted, stored) == 1.0 - display_curve(frame, stored)).all()
    shown, shown_inverted = to_display(frame), to_display(inverted)
    np.testing.assert_allclose(shown_inverted, 1 - shown, rtol=0, atol=np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_without_a_window_the_bulk_of_the_pixels_spans_the_range(dtype: type[Any]) -> None:
    pixels = np.linspace(20, 120, 10_000).reshape(100, 100).astype(dtype)
    pixels[0, 0] = np.iinfo(dtype).max  # one hot pixel does not decide the window
    frame = Frame(pixels=pixels, rows=100, columns=100, bits_stored=pixels.itemsize * 8)
    frame = with_voi(frame)
    display = to_display(frame)
    assert (display.min(), display.max()) == (0.0, 1.0)
    assert np.median(display) == pytest.approx(0.5, abs=0.02)
    assert "percentiles" in describe_voi(frame)
    assert frame.warnings == ("no_window",)


def test_an_even_image_without_a_window_has_an_even_display() -> None:
    frame = Frame(pixels=np.full((5, 4), 77, np.uint16), rows=5, columns=4, bits_stored=12)
    assert np.unique(to_display(with_voi(frame))).tolist() == [0.5]


def test_a_window_or_lut_of_the_file_is_kept() -> None:
    pixels = make_pixels(bits=12, signed=False)
    frame = Frame(pixels=pixels, rows=24, columns=16, bits_stored=12, window=Window(5, 9))
    assert with_voi(frame) is frame
    table = LookupTable(np.arange(256, dtype=np.uint16), first_mapped=0, bits=8)
    assert with_voi(replace(frame, window=None, voi_lut=table)).voi_lut is table


def test_a_frame_without_any_window_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="neither window nor VOI LUT"):
        to_display(Frame(pixels=np.zeros((2, 2), np.uint16), rows=2, columns=2, bits_stored=12))


@pytest.mark.parametrize("photometric", list(PhotometricInterpretation))
def test_padding_is_black_and_does_not_count(photometric: PhotometricInterpretation) -> None:
    """Whatever the window and the inversion make of its values; the other pixels are as without it."""
    pixels = np.linspace(500, 1500, 400).reshape(20, 20).astype(np.uint16)
    plain = Frame(pixels=pixels, rows=20, columns=20, bits_stored=12, photometric_interpretation=photometric)
    pixels_with_padding = np.concatenate([pixels, np.full((5, 20), 60), np.full((15, 20), 63)]).astype(
        np.uint16
    )
    padded = replace(plain, pixels=pixels_with_padding, rows=40, padding=(60, 63))
    display = to_display(with_voi(padded), blacken_padding=True)
    np.testing.assert_array_equal(display[:20], to_display(with_voi(plain)))
    assert (display[20:] == 0).all()
    assert find_black(with_voi(padded)) == (1494 if photometric is MONOCHROME1 else None)
    assert find_black(with_voi(plain)) is None


@pytest.mark.parametrize(
    ("padding", "black"),
    [((0, 0), None), ((0, 50), None), ((-1000, -1000), None), ((-30_000, -30_000), 3), ((4095, 4095), 3)],
)
def test_padding_is_averaged_as_it_is_where_it_is_about_as_black_as_the_picture(
    padding: tuple[int, int], black: int | None
) -> None:
    window = Window(2047.5, 4096, VoiLutFunction.LINEAR_EXACT)
    pixels = np.zeros((2, 2), np.int16)
    frame = Frame(pixels=pixels, rows=2, columns=2, bits_stored=16, is_signed=True, window=window)
    assert find_black(replace(frame, padding=padding)) == black


def test_a_frame_of_nothing_but_padding_is_black() -> None:
    frame = Frame(pixels=np.full((4, 4), 7, np.uint16), rows=4, columns=4, bits_stored=12, padding=(7, 7))
    assert not to_display(with_voi(frame), blacken_padding=True).any()


def test_detector_data_are_shown_on_a_logarithmic_scale() -> None:
    """Attenuation adds up in the exposure's logarithm: equal steps of tissue give equal steps of grey."""
    exposure = (16000 * np.exp(-np.linspace(0, 4, 1000))).astype(np.uint16).reshape(20, 50)
    frame = Frame(
        pixels=exposure,
        rows=20,
        columns=50,
        bits_stored=14,
        photometric_interpretation=MONOCHROME1,
        is_for_processing=True,
        warnings=("for_processing",),
    )
    display = to_display(with_voi(frame)).ravel()
    np.testing.assert_allclose(display[10:-10], np.linspace(0, 1, 1000)[10:-10], atol=0.012)
    assert describe_voi(with_voi(frame)).startswith("logarithm")
    assert with_voi(frame).warnings == ("for_processing", "no_window")


@pytest.mark.parametrize("values", [np.zeros(9), np.full(9, 1), np.full(9, 3000), -np.arange(9)])
def test_detector_data_without_any_spread_can_be_shown(values: NDArray[Any]) -> None:
    frame = Frame(
        pixels=values.reshape(3, 3).astype(np.int16), rows=3, columns=3, bits_stored=16, is_signed=True
    )
    display = to_display(with_voi(replace(frame, is_for_processing=True)))
    assert 0 <= display.min() <= display.max() <= 1


def test_values_beyond_a_lookup_table_take_its_ends() -> None:
    table = LookupTable(np.array([10, 20, 255], np.uint16), first_mapped=5, bits=8)
    frame = Frame(pixels=np.array([[0, 5, 6, 7, 900]], np.uint16), rows=1, columns=5, bits_stored=10)
    display = to_display(replace(frame, voi_lut=table))
    np.testing.assert_allclose(display * 255, [[10, 10, 20, 255, 255]], atol=1e-4)


@pytest.mark.parametrize("function", list(VoiLutFunction))
@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_window_without_a_width_is_refused(function: VoiLutFunction, width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        Window(100.0, width, function)


def test_only_a_linear_window_needs_a_width_of_one() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Window(100.0, 0.5, VoiLutFunction.LINEAR)
    assert Window(100.0, 0.5, VoiLutFunction.LINEAR_EXACT).width == 0.5
    assert Window(100.0, 0.5, VoiLutFunction.SIGMOID).width == 0.5
    with pytest.raises(ValueError, match="finite"):
        Window(float("nan"), 10.0)


def test_the_real_voi_lut_file_equals_pydicoms(real_data: Path) -> None:
    assert_equals_pydicom(real_data / "tricky_dicom/pydicom_data/vlut_04.dcm")


def test_real_mammograms_equal_pydicoms(real_data: Path) -> None:
    """One of each kind, at a quarter of the size: MONOCHROME1 with a sigmoid, MONOCHROME2 with a line."""
    for name in ("10006/462822612.dcm", "10011/220375232.dcm"):
        path = real_data / "rsna_dicom/train_images" / name
        frame = read_frame(path, level=2)
        np.testing.assert_allclose(to_display(frame), judge(dcmread(path), frame.pixels), rtol=0, atol=1e-6)


def test_a_real_reference_file_equals_pydicoms(real_data: Path, tmp_path: Path) -> None:
    compressed = (real_data / "codec_wg04/REF/MR4_UNC.zst").read_bytes()
    path = tmp_path / "MR4_UNC"
    path.write_bytes(imagecodecs.zstd_decode(compressed))
    assert dcmread(BytesIO(path.read_bytes())).WindowWidth
    assert_equals_pydicom(path)


SLOPES = [1e-6, 0.000244200244, 0.01, 0.3, 1.0, 3.0, 9.5, 1e3, 1e6]
GREY_LEVEL = 1 / 255


def make_frame(**fields: Any) -> Frame:
    pixels = make_breast(96, 64)
    return Frame(pixels=pixels, rows=96, columns=64, bits_stored=12, **fields)


def rescale(frame: Frame, slope: float, intercept: float, function: VoiLutFunction | None) -> Frame:
    """The same picture in another unit: as a file's header would say it."""
    window = function and make_window(1500 * slope + intercept, 2500 * slope, function, slope)
    return replace(frame, rescale_slope=slope, rescale_intercept=intercept, window=window)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("intercept", [0.0, -1024.0, 1e6])
@pytest.mark.parametrize("function", [None, *VoiLutFunction])
@pytest.mark.parametrize("is_for_processing", [False, True])
def test_the_unit_of_the_values_makes_no_difference(
    slope: float, intercept: float, function: VoiLutFunction | None, is_for_processing: bool
) -> None:
    frame = make_frame(is_for_processing=is_for_processing)
    expected = with_voi(rescale(frame, 1.0, 0.0, function))
    shown = with_voi(rescale(frame, slope, intercept, function))
    np.testing.assert_allclose(to_display(shown), to_display(expected), rtol=0, atol=GREY_LEVEL)
    boxes = {find_breast(to_display(each), rows=96, columns=64).box for each in (shown, expected)}
    assert len(boxes) == 1
    assert 0.2 < to_display(shown).std() < 0.5


@given(
    exponent=st.floats(-6, 6),
    intercept=st.floats(-1e4, 1e4),
    width=st.floats(20, 8000),
    center=st.floats(-1000, 5000),
    function=st.sampled_from(list(VoiLutFunction)),
)
@settings(max_examples=60, deadline=None)
def test_any_window_is_the_same_in_any_unit(
    exponent: float, intercept: float, width: float, center: float, function: VoiLutFunction
) -> None:
    slope, stored = 10.0**exponent, np.arange(4096)
    frame = make_frame(window=make_window(center, width, function, 1.0))
    window = make_window(center * slope + intercept, width * slope, function, slope)
    other = replace(frame, rescale_slope=slope, rescale_intercept=intercept, window=window)
    difference = display_curve(other, stored) - display_curve(frame, stored)
    assert abs(difference).max() <= GREY_LEVEL + 1e-6


def test_one_picture_stored_in_several_ways_has_one_window_of_its_own() -> None:
    """With an offset, signed, or upside down: the modality values are the same."""
    plain = make_frame()
    others = {
        "offset": replace(plain, pixels=plain.pixels + 1000, rescale_intercept=-1000.0),
        "signed": replace(
            plain, pixels=plain.pixels.astype(np.int16) - 2048, is_signed=True, rescale_intercept=2048.0
        ),
        "inverted": replace(plain, pixels=4095 - plain.pixels, rescale_slope=-1.0, rescale_intercept=4095.0),
    }
    for is_for_processing in (False, True):
        expected = to_display(with_voi(replace(plain, is_for_processing=is_for_processing)))
        for name, other in others.items():
            shown = to_display(with_voi(replace(other, is_for_processing=is_for_processing)))
            np.testing.assert_allclose(shown, expected, rtol=0, atol=GREY_LEVEL, err_msg=name)


def test_a_linear_window_below_1_wide_is_of_steps(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1 is of whole numbers: to its letter, this one would be all black and white."""
    pixels = make_breast(24, 16)
    path = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        BitsStored=12,
        RescaleSlope="0.0001",
        RescaleIntercept="0",
        WindowCenter="0.2048",
        WindowWidth="0.4096",
    )
    frame = read_frame(path)
    assert frame.warnings == ("window_width",)
    np.testing.assert_allclose(to_display(frame), pixels / 4095, atol=1e-4)
