"""Every grey image of one frame in pydicom's wheel, against the decoders of pylibjpeg, GDCM and pyjpegls."""

from collections.abc import Iterator
from pathlib import Path
from warnings import catch_warnings

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.frame import Pixels
from tests.data_prep.reading import read_frame

FOLDER = Path(pydicom.__file__).parent / "data"
PLUGINS = ("gdcm", "pylibjpeg", "pyjpegls")
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": {"size_mismatch"},  # written over the width
    "MR_truncated.dcm": {"truncated"},
    "badVR.dcm": {"bad_value", "unsupported"},  # NumberOfFrames 1A, and 32 bits
    "liver_1frame.dcm": {"unsupported"},  # 1 bit
    "liver_expb_1frame.dcm": {"unsupported"},
    "rtdose_1frame.dcm": {"unsupported"},  # 32 bits
    "rtdose_expb_1frame.dcm": {"unsupported"},
    "rtdose_rle_1frame.dcm": {"unsupported"},
}
EXACT = codecs.NATIVE | {
    codecs.RLE_LOSSLESS,
    codecs.JPEG_LS_LOSSLESS,
    codecs.JPEG_LS_NEAR_LOSSLESS,  # what a decoder gives is exact, PS3.5 8.2.3
    codecs.JPEG_2000_LOSSLESS,
}


def read_grey(path: Path) -> Dataset | None:
    """A file with one grey frame; None for everything else in the folder."""
    with catch_warnings(action="ignore"):
        try:
            dataset = dcmread(path)
        except InvalidDicomError:
            return None
        is_grey = str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
        is_single = str(dataset.get("NumberOfFrames") or 1) in {"1", "1A"}  # badVR.dcm has 1A
        return dataset if "PixelData" in dataset and is_grey and is_single else None


PATHS = {
    str(path.relative_to(FOLDER)): path
    for path in sorted(FOLDER.rglob("*"))
    if path.is_file() and path.suffix in {"", ".dcm"} and read_grey(path) is not None
}
READABLE = {name: path for name, path in PATHS.items() if path.name not in REFUSED}


def decode_elsewhere(path: Path) -> Iterator[tuple[str, Pixels]]:
    """What each of the decoders that know a file's encoding makes of it."""
    with catch_warnings(action="ignore"):
        dataset = dcmread(path)
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        for plugin in PLUGINS:
            if plugin in decoder.available_plugins and not is_extended(dataset):
                yield plugin, decoder.as_array(dataset, raw=True, decoding_plugin=plugin)[0]
    if decoder.UID in codecs.NATIVE or is_extended(dataset):
        yield "GDCM's own reader", read_by_gdcm(path)


def is_extended(dataset: Dataset) -> bool:
    """Of 12 bits in JPEG pydicom asks no decoder."""
    return dataset.file_meta.TransferSyntaxUID == codecs.JPEG_EXTENDED


def read_by_gdcm(path: Path) -> Pixels:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    dtype = np.dtype(image.GetPixelFormat().GetScalarTypeAsString().lower())
    content = image.GetBuffer().encode("utf-8", errors="surrogateescape")  # as SWIG hands bytes over
    return np.frombuffer(content, dtype).reshape(image.GetDimension(1), image.GetDimension(0))


def test_the_wheel_holds_files_in_every_kind_of_encoding() -> None:
    """So that the tests below do not look at nothing."""
    found = {str(dcmread(path).file_meta.TransferSyntaxUID) for path in READABLE.values()}
    assert found >= EXACT | {codecs.JPEG_2000, codecs.JPEG_EXTENDED}
    assert len(READABLE) > 50


@pytest.mark.parametrize("path", READABLE.values(), ids=READABLE)
def test_stored_values_are_those_of_every_other_decoder(path: Path) -> None:
    frame = read_frame(path)
    judges = list(decode_elsewhere(path))
    assert judges
    for name, expected in judges:
        assert frame.pixels.dtype.kind == expected.dtype.kind, name
        tolerance = 0 if frame.transfer_syntax in EXACT else 1
        difference = np.abs(frame.pixels.astype(np.int32) - expected.astype(np.int32))
        assert difference.shape == frame.pixels.shape == (frame.rows, frame.columns)
        assert difference.max() <= tolerance, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_mammogram_can_be_is_refused_in_words(name: str) -> None:
    (path,) = [path for path in PATHS.values() if path.name == name]
    with pytest.raises(ImageError) as error:
        read_frame(path)
    assert error.value.reason in REFUSED[name]
    assert "Error" not in str(error.value)
