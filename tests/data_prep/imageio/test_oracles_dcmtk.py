"""Files that dcmtk's encoders wrote, against its decoders, and display values against its renderer's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from data_prep.imageio.frame import Pixels
from data_prep.preprocessing.windowing import to_display
from tests.data_prep.dicom_files import write_dicom
from tests.data_prep.outside_tools import call, need
from tests.data_prep.pictures import make_picture
from tests.data_prep.reading import read_frame

pytestmark = need(
    "dcmtk",
    *("dcmcjpeg", "dcmcjpls", "dcmconv", "dcmcrle", "dcmdjpeg", "dcmdjpls", "dcmdrle", "dcmj2pnm"),
)

LOSSLESS = {
    "implicit": "dcmconv +ti",
    "big-endian": "dcmconv +tb",
    "deflated": "dcmconv +td",
    "undefined lengths, group lengths": "dcmconv +te -e +g",
    "padding behind the pixels": "dcmconv +te +p 512 4",
    "RLE": "dcmcrle",
    "RLE in fragments": "dcmcrle +fs 1",
    "JPEG lossless, first-order prediction": "dcmcjpeg +e1",
    **{f"JPEG lossless, predictor {number}": f"dcmcjpeg +el +sv {number}" for number in range(1, 8)},
    "JPEG lossless in fragments": "dcmcjpeg +e1 +fs 1",
    "JPEG lossless, no offset table": "dcmcjpeg +e1 -ot",
    "JPEG-LS": "dcmcjpls",
    "JPEG-LS in fragments": "dcmcjpls +fs 1",
    "JPEG-LS, other thresholds": "dcmcjpls +t1 5 +t2 11 +t3 30 +rs 32",
    "JPEG-LS, padded by a zero": "dcmcjpls +pz",
}
UP_TO_12_BITS = {
    "JPEG extended": "dcmcjpeg +ee",
    "JPEG extended, coarse": "dcmcjpeg +ee +q 40",
    "JPEG extended, standard tables": "dcmcjpeg +ee -ho",
    "JPEG extended in fragments": "dcmcjpeg +ee +fs 1",
    "JPEG-LS of the stored bits": "dcmcjpls +pc",
    "JPEG-LS near-lossless": "dcmcjpls +en",
    "JPEG-LS far from lossless": "dcmcjpls +en +md 9",
}
BASELINE = {
    "JPEG baseline": "dcmcjpeg +eb",
    "JPEG baseline, coarse": "dcmcjpeg +eb +q 30",
    "JPEG baseline in fragments": "dcmcjpeg +eb +fs 1",
}
DECODERS = {"dcmcjpeg": "dcmdjpeg", "dcmcjpls": "dcmdjpls", "dcmcrle": "dcmdrle", "dcmconv": "dcmconv"}
LAYOUTS = {
    "8 bits": (8, False),
    "10 bits": (10, False),
    "12 bits": (12, False),
    "16 bits": (16, False),
    "12 bits, signed": (12, True),
    "16 bits, signed": (16, True),
}
each_layout = pytest.mark.parametrize(("bits", "signed"), LAYOUTS.values(), ids=LAYOUTS)


def encode(folder: Path, command: str, bits: int, *, signed: bool) -> Path:
    path = write_dicom(folder / "plain.dcm", make_picture(bits, signed=signed), BitsStored=bits)
    tool, *options = command.split()
    call(tool, *options, path, folder / "encoded.dcm")
    return folder / "encoded.dcm"


def decode(path: Path, command: str) -> Pixels:
    """dcmtk's stored values, uncompressed."""
    plain = path.with_name("decoded.dcm")
    call(DECODERS[command.split(maxsplit=1)[0]], "+te", path, plain)
    return dcmread(plain).pixel_array


@each_layout
@pytest.mark.parametrize("command", LOSSLESS.values(), ids=LOSSLESS)
def test_lossless_files_give_the_values_that_were_written(
    tmp_path: Path, command: str, bits: int, signed: bool
) -> None:
    path = encode(tmp_path, command, bits, signed=signed)
    pixels = read_frame(path).pixels
    np.testing.assert_array_equal(pixels, make_picture(bits, signed=signed))
    np.testing.assert_array_equal(pixels, decode(path, command))


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("command", UP_TO_12_BITS.values(), ids=UP_TO_12_BITS)
def test_files_of_up_to_12_bits_give_dcmtks_values(tmp_path: Path, command: str, bits: int) -> None:
    path = encode(tmp_path, command, bits, signed=False)
    assert_near(read_frame(path).pixels, decode(path, command), exact="dcmcjpls" in command)


@pytest.mark.parametrize("command", BASELINE.values(), ids=BASELINE)
def test_baseline_files_give_dcmtks_values(tmp_path: Path, command: str) -> None:
    path = encode(tmp_path, command, 8, signed=False)
    assert_near(read_frame(path).pixels, decode(path, command))


def assert_near(pixels: Pixels, expected: Pixels, *, exact: bool = False) -> None:
    """Two decoders' cosine transforms may round differently."""
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(np.int32) - expected.astype(np.int32)).max() <= (0 if exact else 1)


WINDOWS = {
    "linear": {"WindowCenter": 2000, "WindowWidth": 3000},
    "narrow": {"WindowCenter": 1000.5, "WindowWidth": 20},
    "sigmoid": {"WindowCenter": 1500, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
    "rescaled": {"WindowCenter": 3000, "WindowWidth": 8000, "RescaleSlope": 3, "RescaleIntercept": -100},
}


def render(path: Path, *options: str) -> Pixels:
    """dcmtk's picture, 0..65535, rounded down."""
    call("dcmj2pnm", *options, "+on2", path, path.with_suffix(".png"))
    with Image.open(path.with_suffix(".png")) as image:
        return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_show_what_dcmtk_shows(
    tmp_path: Path, window: dict[str, Any], signed: bool, photometric: str
) -> None:
    path = write_dicom(
        tmp_path / "a.dcm",
        make_picture(12, signed=signed),
        BitsStored=12,
        PhotometricInterpretation=photometric,
        **window,
    )
    shown = to_display(read_frame(path)) * 65535
    np.testing.assert_allclose(shown, render(path, "+Wi", "1"), rtol=0, atol=1.01)


def make_table(bits: int, first_mapped: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [3000, first_mapped, bits])
    entries = np.rint(np.linspace(0, 1, 3000) ** 0.7 * (2**bits - 1)).astype("<u2")
    item.add_new("LUTData", "OW", entries.tobytes())
    item.ModalityLUTType = "US"
    return item


each_table = pytest.mark.parametrize(("bits", "first_mapped"), [(8, 0), (12, 0), (12, 700), (16, 700)])


@each_table
def test_voi_luts_show_what_dcmtk_shows(tmp_path: Path, bits: int, first_mapped: int) -> None:
    """Within a step of the table's entries, whose largest dcmtk takes for 2**bits."""
    table = make_table(bits, first_mapped)
    path = write_dicom(tmp_path / "a.dcm", make_picture(12), BitsStored=12, VOILUTSequence=[table])
    shown = to_display(read_frame(path)) * 65535
    np.testing.assert_allclose(shown, render(path, "+Wl", "1"), rtol=0, atol=2 ** (16 - bits))


@each_table
def test_modality_luts_show_what_dcmtk_shows(tmp_path: Path, bits: int, first_mapped: int) -> None:
    window = {"WindowCenter": 0.45 * 2**bits, "WindowWidth": 0.7 * 2**bits}
    table = make_table(bits, first_mapped)
    path = write_dicom(
        tmp_path / "a.dcm", make_picture(12), BitsStored=12, ModalityLUTSequence=[table], **window
    )
    shown = to_display(read_frame(path)) * 65535
    np.testing.assert_allclose(shown, render(path, "+Wi", "1"), rtol=0, atol=1.01)
