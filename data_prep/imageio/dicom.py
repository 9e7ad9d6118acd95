"""DICOM files to frames: the only reader that knows pydicom. Reads no element that identifies a patient."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.downsample import find_max_reduction, reduce_pixels
from data_prep.imageio.encapsulation import find_frame, inflate
from data_prep.imageio.frame import (
    Frame,
    Grid,
    LookupTable,
    PhotometricInterpretation,
    Pixels,
    VoiLutFunction,
    Window,
)
from data_prep.storage.byte_source import ByteSource, Span
from data_prep.storage.places import ImagePath

TAGS = [
    "PresentationIntentType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ImageLaterality",
    "Laterality",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PresentationLUTShape",
]
USUAL_LUT_SHAPES = {  # PS3.3 C.8.11.3.1.2
    PhotometricInterpretation.MONOCHROME1: "INVERSE",
    PhotometricInterpretation.MONOCHROME2: "IDENTITY",
}


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file whose header is read and checked, and whose pixels are not decoded yet."""

    source: ByteSource = field(repr=False)
    header: Frame
    layout: codecs.Layout
    encoded: Span = field(repr=False)
    num_levels: int

    @property
    def max_level(self) -> int:
        """The lowest resolution: the codestream's last level, or what averaging blocks can give."""
        return self.num_levels or find_max_reduction(self.rows, self.columns)

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
        if level == 0 or not self.num_levels:
            pixels, share_cut = self._full_matrix
            return replace(
                self.header, pixels=reduce_pixels(pixels, level), grid=Grid(level), share_cut=share_cut
            )
        pixels = codecs.decode(self.encoded, self.header.transfer_syntax, self.layout, level)
        return replace(self.header, pixels=pixels, grid=Grid(level, is_even=True))

    @cached_property
    def _full_matrix(self) -> tuple[Pixels, float]:
        """The stored values, and the share of them that lost bits."""
        samples = codecs.decode(self.encoded, self.header.transfer_syntax, self.layout)
        if self.header.transfer_syntax not in codecs.SAMPLES_AS_THEY_ARE:
            return samples, 0.0
        return codecs.cut_to_value(samples, self.layout)


def open_dicom(path: ImagePath, *, whole: bool = True) -> DicomFile:
    """Reads a file's header and finds its encoded frame; `whole` reads the frame too, in one go.

    Raises:
        ImageError: if the file is not a DICOM image that can be used; the reason code says why.
    """
    source = ByteSource.open(path, whole=whole)
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values of the header
            return _open(source)
    except InvalidDicomError as error:
        raise ImageError("not_dicom", "the file is not DICOM: it has no DICM prefix") from error
    except ImageError:
        raise
    except Exception as error:  # pydicom raises eight different types on damaged files
        raise ImageError("parse_error", f"the DICOM header cannot be read: {type(error).__name__}") from error


def _open(source: ByteSource) -> DicomFile:
    inflated = inflate(source)
    stream = inflated or source
    dataset = dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if inflated:
        syntax = codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    if not syntax:
        raise ImageError("not_dicom", "the file is not DICOM: it names no transfer syntax")
    if syntax not in codecs.SUPPORTED:
        # A damaged header may hold anything in its place, a name for one.
        known = syntax if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,40}", syntax) else "of no standard"
        raise ImageError("unsupported", f"transfer syntax {known} has no decoder here")
    layout = _read_layout(dataset, syntax)
    encoded = find_frame(stream, syntax)
    header = _read_header(dataset, layout, syntax)
    return DicomFile(source, header, layout, encoded, codecs.find_max_level(encoded, syntax))


def _read_header(dataset: Dataset, layout: codecs.Layout, syntax: str) -> Frame:
    photometric_interpretation = _read_photometric_interpretation(dataset)
    shape = str(dataset.get("PresentationLUTShape") or "")
    is_for_processing = str(dataset.get("PresentationIntentType") or "") == "FOR PROCESSING"
    found = {
        "for_processing": is_for_processing,
        "lut_shape": shape not in {"", USUAL_LUT_SHAPES[photometric_interpretation]},
    }
    return Frame(
        pixels=np.zeros((0, 0), np.uint16),
        rows=layout.rows,
        columns=layout.columns,
        bits_stored=layout.bits_stored,
        is_signed=layout.is_signed,
        padding=_read_padding(dataset),
        photometric_interpretation=photometric_interpretation,
        rescale_slope=_first_number(dataset, "RescaleSlope", 1.0),
        rescale_intercept=_first_number(dataset, "RescaleIntercept", 0.0),
        modality_lut=_read_lookup_table(dataset.get("ModalityLUTSequence")),
        window=_read_window(dataset),
        voi_lut=_read_lookup_table(dataset.get("VOILUTSequence")),
        laterality=_read_laterality(dataset),
        is_for_processing=is_for_processing,
        transfer_syntax=syntax,
        warnings=tuple(code for code, applies in found.items() if applies),
    )


def _read_layout(dataset: Dataset, syntax: str) -> codecs.Layout:
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
        low_bits=_read_low_bits(dataset, bits_stored) if syntax in codecs.SAMPLES_AS_THEY_ARE else 0,
    )


def _read_low_bits(dataset: Dataset, bits_stored: int) -> int:
    """Returns how many unused bits lie below the value, PS3.5 8.1.1."""
    value = dataset.get("HighBit")
    high_bit = bits_stored - 1 if value is None else int(value)
    if not bits_stored - 1 <= high_bit < int(dataset.BitsAllocated):
        allowed = f"{bits_stored - 1} to {int(dataset.BitsAllocated) - 1}"
        raise ImageError(
            "unsupported", f"HighBit is {high_bit}; with BitsStored {bits_stored} it is {allowed}"
        )
    return high_bit + 1 - bits_stored


def _read_photometric_interpretation(dataset: Dataset) -> PhotometricInterpretation:
    value = str(dataset.get("PhotometricInterpretation") or "")
    if value not in set(PhotometricInterpretation):
        raise ImageError("unsupported", "PhotometricInterpretation is missing or not MONOCHROME1 or 2")
    return PhotometricInterpretation(value)


def _read_padding(dataset: Dataset) -> tuple[int, int] | None:
    """Returns the lowest and highest padding value, PS3.3 C.7.5.1.1.2."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return low, high


def _read_window(dataset: Dataset) -> Window | None:
    """Returns the first of the file's windows; None where it has none."""
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in set(VoiLutFunction):
        raise ImageError("bad_value", f"VOILUTFunction is none of {', '.join(VoiLutFunction)}")
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
