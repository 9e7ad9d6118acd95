"""Tiny DICOM files for tests, with any element and in any encoding that can be written."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import RLELossless, generate_uid

from data_prep.imageio import codecs
from data_prep.imageio.frame import Pixels


def make_dataset(pixels: Pixels, **elements: Any) -> Dataset:
    """Returns an uncompressed monochrome image; an element that is set to None is left out."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = generate_uid()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.BitsStored = elements.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.ImageLaterality = "L"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_dicom(
    path: Path,
    pixels: Pixels,
    *,
    transfer_syntax: str = codecs.EXPLICIT_VR_LITTLE_ENDIAN,
    jp2: bool = False,
    **elements: Any,
) -> Path:
    """Writes an image, compressed as the transfer syntax says, and returns its path."""
    dataset = make_dataset(pixels, **elements)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = codecs.EXPLICIT_VR_LITTLE_ENDIAN
    if transfer_syntax == codecs.RLE_LOSSLESS:
        dataset.compress(RLELossless, pixels, generate_instance_uid=False)
    elif transfer_syntax in codecs.SUPPORTED - codecs.NATIVE:
        encoded = codecs.encode(pixels, transfer_syntax, bits_stored=dataset.BitsStored, jp2=jp2)
        dataset.PixelData = encapsulate([encoded])
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def put_bytes(path: Path, keyword: str, vr: str, content: bytes) -> Path:
    """Replaces an element of a little-endian file by bytes that pydicom might refuse to write."""
    dataset = dcmread(path)
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)
    dataset.save_as(path)
    return path


def make_breast(rows: int = 96, columns: int = 64, *, seed: int = 0, maximum: int = 4095) -> Pixels:
    """Returns a bright half-ellipse with some texture on black, chest wall at the left, uint16."""
    y, x = np.mgrid[:rows, :columns]
    inside = (x / (0.7 * columns)) ** 2 + ((y - rows / 2) / (0.4 * rows)) ** 2 < 1
    texture = 0.6 + 0.3 * np.random.default_rng(seed).random((rows, columns))
    return np.where(inside, maximum * texture, 0).astype(np.uint16)
