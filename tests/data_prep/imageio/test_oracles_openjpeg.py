"""JPEG 2000 from OpenJPEG's encoder with all its options: every level is what its decoder reduces to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from data_prep.imageio import codecs
from data_prep.imageio.dicom import open_dicom
from data_prep.imageio.frame import Pixels
from tests.data_prep.dicom_files import make_dataset
from tests.data_prep.outside_tools import call, need
from tests.data_prep.pictures import make_picture

pytestmark = need("libopenjp2-tools", "opj_compress", "opj_decompress")

NUM_LEVELS = 5  # OpenJPEG's default of 6 resolutions
EASY, UNEVEN = (95, 63), (61, 47)  # rows and columns; Pillow can halve only the first as often as that
DEPTHS = {
    "8 bits": (8, False, EASY),
    "10 bits": (10, False, UNEVEN),
    "12 bits": (12, False, EASY),
    "14 bits": (14, False, UNEVEN),
    "16 bits": (16, False, EASY),
    "12 bits, signed": (12, True, EASY),
}
LAYERS = "-r 20,8,1"
OPTIONS = {
    "no options": "",
    "RLCP": "-p RLCP",
    "RPCL": "-p RPCL",
    "PCRL": "-p PCRL",
    "CPRL": "-p CPRL",
    "one resolution": "-n 1",
    "two resolutions": "-n 2",
    "a tile beyond the image, more resolutions than its size has": "-t 256,256 -n 8",
    "layers": LAYERS,
    "layers, RLCP": f"{LAYERS} -p RLCP",
    "layers, PCRL": f"{LAYERS} -p PCRL",
    "layers by quality": "-q 30,40,50 -p RPCL",
    "irreversible": "-I",
    "irreversible, layers": "-I -r 40,20,10 -p RPCL",
    "lossy, reversible": "-r 6",
    "small code-blocks": "-b 4,16",
    "precincts": "-c [32,32] -p RPCL",
    "precincts of every resolution": "-c [64,32],[32,32],[16,16] -p PCRL",
    "SOP": "-SOP",
    "EPH": "-EPH -p RLCP",
    "SOP, EPH, layers": f"-SOP -EPH {LAYERS}",
    "lengths of packets and tile-parts": "-PLT -TLM",
    "bypass": "-M 1",
    "all modes": "-M 63 -b 32,32",
    "region of interest": "-ROI c=0,U=3",
    "tiles": "-t 32,32",
    "tiles of odd sizes": "-t 37,41 -p RPCL",
    "tile-parts by resolution": "-TP R -p RLCP",
    "tile-parts by layer, tiles": f"-TP L {LAYERS} -t 50,40",
    "image offset": "-d 5,7",
    "image and tile offset": "-d 13,6 -T 3,2 -t 32,32",
}


def compress(folder: Path, pixels: Pixels, bits: int, options: str) -> Path:
    """Encodes raw samples, which may be signed."""
    raw, encoded = folder / "a.rawl", folder / "a.j2k"
    raw.write_bytes(pixels.tobytes())
    rows, columns = pixels.shape
    layout = f"{columns},{rows},1,{bits},{'s' if pixels.dtype.kind == 'i' else 'u'}"
    call("opj_compress", "-i", raw, "-o", encoded, "-F", layout, *options.split())
    return encoded


def decompress(encoded: Path, level: int, bits: int, dtype: np.dtype[Any]) -> Pixels:
    """Returns OpenJPEG's samples in one row; it leaves the bits above the sign away."""
    raw = encoded.with_suffix(".rawl")
    call("opj_decompress", "-i", encoded, "-o", raw, "-r", level)
    unused = dtype.itemsize * 8 - bits
    return (np.fromfile(raw, dtype) << unused) >> unused


def write_codestream(path: Path, encoded: Path, pixels: Pixels, bits: int) -> Path:
    """Writes the file of a codestream that `pixels` were compressed to."""
    dataset = make_dataset(pixels, BitsStored=bits, PixelData=encapsulate([encoded.read_bytes()]))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = codecs.JPEG_2000
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("bits", "signed", "shape"), DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_level_is_openjpegs(
    tmp_path: Path, options: str, bits: int, signed: bool, shape: tuple[int, int]
) -> None:
    pixels = make_picture(bits, signed=signed, shape=shape)
    encoded = compress(tmp_path, pixels, bits, options)
    file = open_dicom(write_codestream(tmp_path / "a.dcm", encoded, pixels, bits))
    if shape == EASY and not {"-n", "-t", "-d"} & set(options.split()):
        assert file.num_levels == NUM_LEVELS
    for level in range(file.num_levels + 1):
        found = file.read_frame(level).pixels
        assert found.dtype == pixels.dtype
        np.testing.assert_array_equal(
            found.ravel(), decompress(encoded, level, bits, found.dtype), f"{level}"
        )
