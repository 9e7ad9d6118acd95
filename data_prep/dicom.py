"""DICOM files to frames: the only reader that knows pydicom. Reads no element that identifies a patient."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError

from data_prep import codecs
from data_prep.errors import ImageError
from data_prep.frame import Frame, LookupTable, PhotometricInterpretation, VoiLutFunction, Window

TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ImageLaterality",
    "Laterality",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelData",
]


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file whose header is read and checked, and whose pixels are not decoded yet."""

    header: Frame
    layout: codecs.Layout
    encoded: bytes = field(repr=False)
    max_level: int

    @property
    def rows(self) -> int:
        """Rows of the full matrix."""
        return self.header.rows

    @property
    def columns(self) -> int:
        """Columns of the full matrix."""
        return self.header.columns

    def read_frame(self, level: int = 0) -> Frame:
        """Decodes at 1 / 2**level of the full size.

        Raises:
            ImageError: if the frame cannot be decoded.
        """
        pixels = codecs.decode(self.encoded, self.header.transfer_syntax, self.layout, level)
        return replace(self.header, pixels=pixels, level=level)


def read_frame(path: Path, level: int = 0) -> Frame:
    """Reads and decodes a file, at 1 / 2**level of its full size.

    Raises:
        ImageError: if the file is no DICOM image that can be used; the reason code says why.
    """
    return open_dicom(path).read_frame(level)


def open_dicom(path: Path) -> DicomFile:
    """Reads a file's header and its encoded frame.

    Raises:
        ImageError: if the file is no DICOM image that can be used; the reason code says why.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError("io_error", f"the file cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values of the header
            return _open(dcmread(BytesIO(content), specific_tags=TAGS))
    except InvalidDicomError as error:
        raise ImageError("not_dicom", "the file is not DICOM: it has no DICM prefix") from error
    except ImageError:
        raise
    except Exception as error:  # pydicom raises eight different types on damaged files
        raise ImageError("parse_error", f"the DICOM header cannot be read: {type(error).__name__}") from error


def _open(dataset: Dataset) -> DicomFile:
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:
        raise ImageError("not_dicom", "the file is not DICOM: it names no transfer syntax")
    if syntax not in codecs.SUPPORTED:
        raise ImageError("unsupported", f"transfer syntax {syntax} has no decoder here")
    layout = _read_layout(dataset)
    encoded = _read_encoded(dataset, syntax)
    header = Frame(
        pixels=np.zeros((0, 0), np.uint16),
        rows=layout.rows,
        columns=layout.columns,
        bits_stored=layout.bits_stored,
        is_signed=layout.is_signed,
        photometric_interpretation=_read_photometric_interpretation(dataset),
        rescale_slope=_first_number(dataset, "RescaleSlope", 1.0),
        rescale_intercept=_first_number(dataset, "RescaleIntercept", 0.0),
        modality_lut=_read_lookup_table(dataset.get("ModalityLUTSequence")),
        window=_read_window(dataset),
        voi_lut=_read_lookup_table(dataset.get("VOILUTSequence")),
        laterality=_read_laterality(dataset),
        transfer_syntax=syntax,
    )
    return DicomFile(header, layout, encoded, codecs.find_max_level(encoded, syntax))


def _read_layout(dataset: Dataset) -> codecs.Layout:
    missing = [name for name in ("Rows", "Columns", "BitsAllocated") if not dataset.get(name)]
    if missing:
        raise ImageError("bad_value", f"{', '.join(missing)} missing or zero: the file holds no image")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError("unsupported", f"SamplesPerPixel is {dataset.SamplesPerPixel}; a mammogram has 1")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ImageError(
            "multi_frame", f"NumberOfFrames is {dataset.NumberOfFrames}; only single frames are taken"
        )
    if int(dataset.BitsAllocated) not in {8, 16}:
        raise ImageError("unsupported", f"BitsAllocated is {dataset.BitsAllocated}; 8 and 16 are taken")
    bits_stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    if not 1 <= bits_stored <= int(dataset.BitsAllocated):
        raise ImageError("bad_value", f"BitsStored is {bits_stored}; it is 1 to {dataset.BitsAllocated}")
    return codecs.Layout(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=bits_stored,
        is_signed=int(dataset.get("PixelRepresentation") or 0) == 1,
    )


def _read_encoded(dataset: Dataset, syntax: str) -> bytes:
    pixel_data = dataset.get("PixelData")
    if not pixel_data:
        raise ImageError("no_pixels", "the file has no PixelData")
    if syntax in codecs.NATIVE:
        return bytes(pixel_data)
    return next(generate_frames(pixel_data, number_of_frames=1))


def _read_photometric_interpretation(dataset: Dataset) -> PhotometricInterpretation:
    value = str(dataset.get("PhotometricInterpretation") or "")
    if value not in set(PhotometricInterpretation):
        raise ImageError(
            "unsupported", f"PhotometricInterpretation is '{value}'; MONOCHROME1 and 2 are taken"
        )
    return PhotometricInterpretation(value)


def _read_window(dataset: Dataset) -> Window | None:
    """Returns the first of the file's windows; None where it has none."""
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in set(VoiLutFunction):
        raise ImageError(
            "bad_value", f"VOILUTFunction is '{function}'; PS3.3 knows {', '.join(VoiLutFunction)}"
        )
    center = _first_number(dataset, "WindowCenter", 0.0)
    width = _first_number(dataset, "WindowWidth", 0.0)
    try:
        return Window(center, width, VoiLutFunction(function))
    except ValueError as error:
        raise ImageError("bad_value", str(error)) from error


def _first_number(dataset: Dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = next(iter(value), None)
    if value is None or value == "":
        return default
    number = float(value)
    if not np.isfinite(number):
        raise ImageError("bad_value", f"{keyword} is {number}; a finite number is needed")
    return number


def _read_lookup_table(sequence: Any) -> LookupTable | None:
    """Reads the first item of a modality or VOI LUT sequence, PS3.3 C.11.1.1."""
    if not sequence:
        return None
    item = sequence[0]
    count, first_mapped, bits = (int(value) for value in item.LUTDescriptor)
    entries = item.LUTData
    values = np.frombuffer(entries, "<u2") if isinstance(entries, bytes) else np.asarray(entries, np.uint16)
    if len(values) < (count or 2**16) or not 8 <= bits <= 16:
        raise ImageError(
            "bad_value", f"a LUT of {count or 2**16} entries of {bits} bits holds {len(values)} entries"
        )
    return LookupTable(values[: count or 2**16], first_mapped, bits)


def _read_laterality(dataset: Dataset) -> str | None:
    value = str(dataset.get("ImageLaterality") or dataset.get("Laterality") or "")
    return value if value in {"L", "R"} else None
