"""Writes one picture as a DICOM file, in one of many encodings that all show the same. Knows no label.

The header is like those of RSNA's files: few elements, no Modality, no names, no dates.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from data_prep.imageio import codecs
from data_prep.imageio.frame import Display, PhotometricInterpretation, Pixels, VoiLutFunction

FOR_PRESENTATION = UID("1.2.840.10008.5.1.4.1.1.1.1")  # Digital X-Ray Image Storage, as in RSNA's files
UID_ROOT = "1.2.826.0.1.3680043.10.1338"
CONTAINERS = [
    (codecs.JPEG_2000_LOSSLESS, False),
    (codecs.JPEG_2000_LOSSLESS, True),
    (codecs.JPEG_LOSSLESS_SV1, False),
    (codecs.RLE_LOSSLESS, False),
    (codecs.EXPLICIT_VR_LITTLE_ENDIAN, False),
]
CONTAINER_SHARES = [0.2, 0.2, 0.3, 0.05, 0.25]  # pydicom encodes RLE slowly


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How one image is stored.

    Attributes:
        has_jp2_box: a JPEG 2000 codestream lies in a JP2 box and declares 16 bits, as in RSNA's files.
        window_function: None leaves the element out, which means LINEAR.
        num_windows: the first of them shows the picture.
    """

    transfer_syntax: str
    has_jp2_box: bool
    bits_stored: int
    photometric_interpretation: PhotometricInterpretation
    window_function: VoiLutFunction | None
    window_center: int
    window_width: int
    num_windows: int


def draw_encoding(generator: np.random.Generator) -> Encoding:
    """Draws how one image is stored, among the forms that RSNA's and other vendors' files have."""
    transfer_syntax, has_jp2_box = CONTAINERS[generator.choice(len(CONTAINERS), p=CONTAINER_SHARES)]
    bits_stored = int(generator.choice([12, 16]))
    window_width = int(generator.integers(1000, 2000))
    margin = (window_width + 1) // 2
    return Encoding(
        transfer_syntax=transfer_syntax,
        has_jp2_box=has_jp2_box,
        bits_stored=bits_stored,
        photometric_interpretation=list(PhotometricInterpretation)[generator.integers(2)],
        window_function=[None, VoiLutFunction.LINEAR, VoiLutFunction.SIGMOID][generator.integers(3)],
        window_center=int(generator.integers(margin, 4097 - margin)),
        window_width=window_width,
        num_windows=int(generator.choice([1, 2, 4])),
    )


def to_stored_values(display: Display, encoding: Encoding) -> Pixels:
    """Returns the stored values that the window and photometric interpretation show as `display`."""
    is_inverted = encoding.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    shown = 1 - display if is_inverted else display
    center, width = encoding.window_center, encoding.window_width
    if encoding.window_function is VoiLutFunction.SIGMOID:  # PS3.3 C.11.2.1.3.1, solved for x
        stored = center + sigmoid_width(width) / 4 * np.log(shown / (1 - shown))
    else:  # PS3.3 C.11.2.1.2.1, solved for x
        stored = center - 0.5 + (shown - 0.5) * (width - 1)
    return np.clip(np.rint(stored), 0, 2**encoding.bits_stored - 1).astype(np.uint16)


def sigmoid_width(width: int) -> float:
    """Returns the width of a sigmoid that shows 0.0015..0.9985 on as many values as a linear window."""
    return round(width / (np.log(0.9985 / 0.0015) / 2), 1)


def make_dicom(
    display: Display, encoding: Encoding, *, patient_id: str, image_id: str, laterality: str
) -> bytes:
    """Returns a whole DICOM file."""
    dataset = Dataset()
    dataset.SOPClassUID = FOR_PRESENTATION
    dataset.StudyInstanceUID = UID(f"{UID_ROOT}.{patient_id}")
    dataset.SeriesInstanceUID = UID(f"{UID_ROOT}.{patient_id}.1")
    dataset.SOPInstanceUID = UID(f"{UID_ROOT}.{patient_id}.1.{image_id}")
    dataset.PatientID = patient_id
    dataset.InstanceNumber = image_id
    dataset.ImageLaterality = laterality
    dataset.PartialView = "NO"
    dataset.LossyImageCompression = "00"
    describe_windows(dataset, encoding)
    add_pixels(dataset, encoding, to_stored_values(display, encoding))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(encoding.transfer_syntax)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def add_pixels(dataset: Dataset, encoding: Encoding, pixels: Pixels) -> None:
    """Adds the pixels and the elements that say how they are stored, PS3.3 C.7.6.3."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = str(encoding.photometric_interpretation)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = encoding.bits_stored
    dataset.HighBit = encoding.bits_stored - 1
    dataset.PixelRepresentation = 0
    is_inverted = encoding.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if is_inverted else -1
    is_native = encoding.transfer_syntax == codecs.EXPLICIT_VR_LITTLE_ENDIAN
    frame = encode_pixels(pixels, encoding)
    dataset.PixelData = frame if is_native else encapsulate([frame])
    dataset["PixelData"].VR = "OW" if is_native else "OB"


def describe_windows(dataset: Dataset, encoding: Encoding) -> None:
    """Adds the rescale and the windows; vendors offer those after the first as brighter and darker views."""
    is_sigmoid = encoding.window_function is VoiLutFunction.SIGMOID
    width = sigmoid_width(encoding.window_width) if is_sigmoid else encoding.window_width
    shifts = [0, 200, -200, 100][: encoding.num_windows]
    dataset.WindowCenter = [encoding.window_center + shift for shift in shifts]
    dataset.WindowWidth = [width] * encoding.num_windows
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    if encoding.window_function is not None:
        dataset.VOILUTFunction = str(encoding.window_function)


def encode_pixels(pixels: Pixels, encoding: Encoding) -> bytes:
    """Returns the encoded frame."""
    if encoding.transfer_syntax == codecs.RLE_LOSSLESS:
        return encode_rle(pixels)
    bits = 16 if encoding.has_jp2_box else encoding.bits_stored
    return codecs.encode(pixels, encoding.transfer_syntax, bits_stored=bits, jp2=encoding.has_jp2_box)


def encode_rle(pixels: Pixels) -> bytes:
    """Returns one RLE frame, PS3.5 annex G."""
    frame: bytes = RLELosslessEncoder.encode(
        pixels,
        encoding_plugin="pydicom",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=16,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    return frame
