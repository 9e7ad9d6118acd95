"""DICOM files to frames: the only reader that knows pydicom. Reads no element that identifies a patient."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.downsample import find_max_reduction, reduce_pixels
from data_prep.imageio.elements import Element, Elements
from data_prep.imageio.encapsulation import find_frame, inflate
from data_prep.imageio.file_format import gunzip, name_kind
from data_prep.imageio.frame import Frame, Grid, PhotometricInterpretation, Pixels
from data_prep.imageio.header import (
    MAMMOGRAPHY,
    find_stored_range,
    read_grey_scale,
    read_laterality,
    read_layout,
    read_modality,
    read_padding,
    read_photometric_interpretation,
)
from data_prep.imageio.pose import SHAPE_ELEMENTS, read_directions, read_pixel_shape
from data_prep.storage.byte_source import ByteSource, Span
from data_prep.storage.places import ImagePath

TAGS = [
    "Modality",
    "PresentationIntentType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PatientOrientation",
    *SHAPE_ELEMENTS,
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
SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
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

    @property
    def pixel_aspect(self) -> float:
        """A pixel's height over its width."""
        return self.header.pixel_aspect

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
        pixels, share_cut = codecs.cut_to_value(samples, self.layout)
        return self._keep_padding(samples, pixels, share_cut)

    def _keep_padding(self, samples: Pixels, pixels: Pixels, share_cut: float) -> tuple[Pixels, float]:
        """Puts padding values beyond BitsStored back: cut, they would be those of tissue."""
        padding, (lowest, highest) = self.header.padding, find_stored_range(self.layout)
        is_within = padding is None or (padding[0] >= lowest and padding[1] <= highest)
        if padding is None or is_within or self.layout.low_bits:
            return pixels, share_cut
        is_padding = (samples >= padding[0]) & (samples <= padding[1])
        num_beyond = 0 if self.layout.is_signed else (is_padding & (samples > highest)).mean()
        return np.where(is_padding, samples, pixels), share_cut - float(num_beyond)


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
        raise ImageError("not_dicom", f"the file is not DICOM: {_say_what_it_is(source)}") from error
    except ImageError:
        raise
    except Exception as error:  # pydicom raises eight different types on damaged files
        raise ImageError(
            "parse_error",
            "the DICOM header cannot be read: its elements' lengths or VRs do not fit together, so the file "
            "is damaged; export it again",
        ) from error


def _open(source: ByteSource) -> DicomFile:
    unpacked = gunzip(source) or source
    inflated = inflate(unpacked)
    stream = inflated or unpacked
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
    elements = _read_elements(dataset, set(TAGS) - set(SEQUENCES))
    layout = read_layout(elements, syntax)
    encoded = find_frame(stream, syntax, layout.bits_allocated)
    header = _read_header(dataset, elements, layout, syntax)
    return DicomFile(source, header, layout, encoded, codecs.find_max_level(encoded, syntax, layout))


def _say_what_it_is(source: ByteSource) -> str:
    kind = name_kind(source.content)
    if kind is None or kind.suffix is None:
        return f"it is {kind.name}" if kind else "it has no DICM prefix"
    return f"it is {kind.name}, so its name should end with {kind.suffix}"


def _read_header(dataset: Dataset, elements: Elements, layout: codecs.Layout, syntax: str) -> Frame:
    photometric_interpretation, modality = read_photometric_interpretation(elements), read_modality(elements)
    shape = elements.code("PresentationLUTShape")
    is_for_processing = elements.code("PresentationIntentType") == "FOR PROCESSING"
    tables = {keyword: _read_items(dataset, keyword) for keyword in SEQUENCES}
    grey_scale = read_grey_scale(elements, tables, layout)
    padding, padding_is_bad = read_padding(elements, layout)
    orientation = elements.texts("PatientOrientation") or []
    directions = read_directions(orientation)
    shapes = {name: texts for name in SHAPE_ELEMENTS if any(texts := elements.texts(name) or [])}
    pixel_shape = read_pixel_shape(shapes)
    found = {
        "not_mammography": modality not in {"", MAMMOGRAPHY},
        "pixel_shape": pixel_shape.is_doubtful,
        "orientation_unknown": directions is None and len(orientation) > 1,  # one value is a view's name
        "for_processing": is_for_processing,
        "lut_shape": shape not in {"", USUAL_LUT_SHAPES[photometric_interpretation]},
        **dict.fromkeys(grey_scale.warnings, True),
        "padding_unusable": padding_is_bad,
    }
    return Frame(
        pixels=np.zeros((0, 0), np.uint16),
        rows=layout.rows,
        columns=layout.columns,
        bits_stored=layout.bits_stored,
        is_signed=layout.is_signed,
        padding=padding,
        photometric_interpretation=photometric_interpretation,
        rescale_slope=grey_scale.rescale_slope,
        rescale_intercept=grey_scale.rescale_intercept,
        modality_lut=grey_scale.modality_lut,
        window=grey_scale.window,
        voi_lut=grey_scale.voi_lut,
        modality=modality,
        laterality=read_laterality(elements),
        pixel_aspect=pixel_shape.aspect,
        directions=directions,
        is_for_processing=is_for_processing,
        transfer_syntax=syntax,
        warnings=tuple(code for code, applies in found.items() if applies),
    )


# From pydicom


def _read_elements(dataset: Dataset, keywords: Iterable[str]) -> Elements:
    """Returns what a dataset has of some elements, as bytes."""
    found = {}
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        raw = dataset.get_item(tag) if tag in dataset else None
        if isinstance(raw, RawDataElement):
            known = dictionary_VR(keyword)[:2]  # of "US or SS" the first
            vr = known if raw.VR in {None, "UN"} else raw.VR
            found[keyword] = Element(keyword, vr, raw.value or b"", not raw.is_little_endian)
        elif raw is not None and not raw.value:  # a blank one, which pydicom has read already
            found[keyword] = Element(keyword, raw.VR, b"")
    return Elements(found)


def _read_items(dataset: Dataset, keyword: str) -> list[Elements] | None:
    """Returns the items of a sequence of tables; None where pydicom cannot read it."""
    try:
        sequence = dataset.get(keyword) or []
        return [_read_elements(item, ("LUTDescriptor", "LUTData")) for item in sequence]
    except Exception:  # it raises eight different types
        return None
