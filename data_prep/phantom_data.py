"""A synthetic data set in RSNA layout: DICOM files in many encodings and the three CSV files. Knows no model.

How a file is encoded, and what stands in its header and in the CSV beside the outcome, is drawn by generators that never
see the label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from data_prep import codecs, files
from data_prep.frame import Display, PhotometricInterpretation, Pixels, VoiLutFunction
from data_prep.phantom import Laterality, View, draw_anatomy, draw_finding, make_phantom

TRAIN_COLUMNS = [
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "cancer",
    "biopsy",
    "invasive",
    "BIRADS",
    "implant",
    "density",
    "machine_id",
    "difficult_negative_case",
]
TEST_COLUMNS = [
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "implant",
    "machine_id",
    "prediction_id",
]
SIDES: tuple[Laterality, ...] = ("L", "R")
VIEWS: tuple[View, ...] = ("CC", "MLO")
MACHINES = {1: (49, 48, 170, 93), 2: (29, 21, 216)}
FOR_PRESENTATION = UID("1.2.840.10008.5.1.4.1.1.1.1")  # Digital X-Ray Image Storage, as in RSNA's files
UID_ROOT = "1.2.826.0.1.3680043.10.1338"
CONTAINERS = [
    (codecs.JPEG_2000_LOSSLESS, False),
    (codecs.JPEG_2000_LOSSLESS, True),
    (codecs.JPEG_LOSSLESS_SV1, False),
    (codecs.RLE_LOSSLESS, False),
    (codecs.EXPLICIT_VR_LITTLE_ENDIAN, False),
]
CONTAINER_SHARES = [0.25, 0.25, 0.25, 0.1, 0.15]  # pydicom encodes RLE slowly
GOLDEN_RATIO = 0.6180339887498949


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


def write_phantoms(
    folder: Path,
    *,
    num_patients: int,
    seed: int = 0,
    rows: int = 640,
    columns: int = 512,
    cancer_share: float = 0.3,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a data set that `mammo prepare` reads like RSNA's.

    A training patient's files depend on the seed and the patient's number only, so that a larger set contains a smaller
    one. A tenth as many test patients, at least two, come on top. `sample_submission.csv` is the last file to be
    written.

    Args:
        folder: is made if absent.
        num_patients: patients in `train.csv`, each with two breasts in two views.
        seed: of all that is drawn.
        rows: of every frame.
        columns: of every frame.
        cancer_share: share of the breasts with cancer.
        progress: is called with 1 after each training patient.
    """
    num_test = max(2, num_patients // 10)
    train: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    for number in range(num_patients + num_test):
        is_train = number < num_patients
        images = folder / ("train_images" if is_train else "test_images")
        images_of = write_patient(
            images, number=number, seed=seed, cancer_share=cancer_share, rows=rows, columns=columns
        )
        (train if is_train else test).extend(images_of)
        if progress is not None and is_train:
            progress(1)
    files.write_csv(folder / "train.csv", pd.DataFrame(train)[TRAIN_COLUMNS])
    tests = pd.DataFrame(test)
    files.write_csv(folder / "test.csv", tests[TEST_COLUMNS])
    submission = tests[["prediction_id"]].drop_duplicates().assign(cancer=0.5)
    files.write_csv(folder / "sample_submission.csv", submission)


def write_patient(
    images: Path, *, number: int, seed: int, cancer_share: float, rows: int, columns: int
) -> list[dict[str, Any]]:
    """Writes one patient's four files and returns their rows, with the columns of both CSV files."""
    blind = np.random.default_rng([seed, number, 0])  # never sees the label
    pictures = np.random.default_rng([seed, number, 1])
    anatomy = draw_anatomy(blind)
    circumstances = draw_circumstances(blind, number=number, density=anatomy.density)
    image_numbers = iter(number * 100_000 + 1 + blind.permutation(100_000)[: len(SIDES) * len(VIEWS)])
    folder = images / circumstances["patient_id"]
    files.make_folder(folder)
    image_rows = []
    for breast, side in enumerate(SIDES, start=len(SIDES) * number):
        finding = draw_finding(pictures, is_cancer=has_cancer(breast, seed=seed, cancer_share=cancer_share))
        outcome = draw_outcome(pictures, is_cancer=finding.is_cancer, site=circumstances["site_id"])
        for view in VIEWS:
            phantom = make_phantom(
                pictures, anatomy=anatomy, finding=finding, view=view, laterality=side, rows=rows, columns=columns
            )
            row = circumstances | outcome | {"image_id": str(next(image_numbers)), "laterality": side, "view": view}
            row["prediction_id"] = f"{row['patient_id']}_{side}"
            payload = write_dicom(phantom.image, draw_encoding(blind), row)
            files.write_bytes(folder / f"{row['image_id']}.dcm", payload)
            image_rows.append(row)
    return image_rows


def has_cancer(breast: int, *, seed: int, cancer_share: float) -> bool:
    """Whether a breast has cancer: multiples of the golden ratio keep any run of breasts close to the share."""
    first = np.random.default_rng(seed).random()
    return bool((first + breast * GOLDEN_RATIO) % 1 < cancer_share)


def draw_circumstances(generator: np.random.Generator, *, number: int, density: float) -> dict[str, Any]:
    """Draws the columns that do not depend on the outcome; site 2 records no density, as in RSNA."""
    site = int(generator.integers(1, 3))
    return {
        "site_id": site,
        "patient_id": str(10_000 + 7 * number + int(generator.integers(7))),
        "age": int(generator.integers(40, 86)),
        "implant": int(generator.random() < 0.03),
        "density": "ABCD"[int(4 * density)] if site == 1 else None,
        "machine_id": int(generator.choice(MACHINES[site])),
    }


def draw_outcome(generator: np.random.Generator, *, is_cancer: bool, site: int) -> dict[str, Any]:
    """Draws the columns that exist for training only; site 2 records no BIRADS, as in RSNA."""
    is_difficult = not is_cancer and bool(generator.random() < 0.14)
    birads = 0 if is_cancer or is_difficult else int(generator.integers(1, 3))
    return {
        "cancer": int(is_cancer),
        "biopsy": int(is_cancer),
        "invasive": int(is_cancer and generator.random() < 0.7),
        "BIRADS": str(birads) if site == 1 else None,
        "difficult_negative_case": is_difficult,
    }


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
    """Returns the stored values that the first window and the photometric interpretation show as `display`."""
    is_inverted = encoding.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    shown = 1 - display if is_inverted else display
    center, width = encoding.window_center, encoding.window_width
    if encoding.window_function is VoiLutFunction.SIGMOID:  # PS3.3 C.11.2.1.3.1, solved for x
        stored = center + sigmoid_width(width) / 4 * np.log(shown / (1 - shown))
    else:  # PS3.3 C.11.2.1.2.1, solved for x
        stored = center - 0.5 + (shown - 0.5) * (width - 1)
    return np.clip(np.rint(stored), 0, 2**encoding.bits_stored - 1).astype(np.uint16)


def sigmoid_width(width: int) -> float:
    """Returns the width of a sigmoid that shows 0.01..0.99 on as many values as a linear window of `width`."""
    return round(width / (np.log(99) / 2), 1)


def write_dicom(display: Display, encoding: Encoding, row: dict[str, Any]) -> bytes:
    """Returns a DICOM file with a header like RSNA's: no Modality, no names, no dates."""
    pixels = to_stored_values(display, encoding)
    dataset = Dataset()
    dataset.SOPClassUID = FOR_PRESENTATION
    dataset.StudyInstanceUID = UID(f"{UID_ROOT}.{row['patient_id']}")
    dataset.SeriesInstanceUID = UID(f"{dataset.StudyInstanceUID}.1")
    dataset.SOPInstanceUID = UID(f"{dataset.SeriesInstanceUID}.{row['image_id']}")
    dataset.PatientID = row["patient_id"]
    dataset.InstanceNumber = row["image_id"]
    dataset.ImageLaterality = row["laterality"]
    dataset.PartialView = "NO"
    dataset.LossyImageCompression = "00"
    describe_pixels(dataset, encoding, shape=pixels.shape)
    describe_windows(dataset, encoding)
    dataset.PixelData = encode_pixels(pixels, encoding)
    dataset["PixelData"].VR = "OW" if encoding.transfer_syntax == codecs.EXPLICIT_VR_LITTLE_ENDIAN else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(encoding.transfer_syntax)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def describe_pixels(dataset: Dataset, encoding: Encoding, *, shape: tuple[int, ...]) -> None:
    """Adds the elements that say how pixels are stored, PS3.3 C.7.6.3."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = str(encoding.photometric_interpretation)
    dataset.Rows, dataset.Columns = shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = encoding.bits_stored
    dataset.HighBit = encoding.bits_stored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelIntensityRelationship = "LOG"
    is_inverted = encoding.photometric_interpretation is PhotometricInterpretation.MONOCHROME1
    dataset.PixelIntensityRelationshipSign = 1 if is_inverted else -1


def describe_windows(dataset: Dataset, encoding: Encoding) -> None:
    """Adds the rescale and the windows; those after the first are offered by vendors as harder and softer views."""
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
    """Returns the value of Pixel Data."""
    if encoding.transfer_syntax == codecs.EXPLICIT_VR_LITTLE_ENDIAN:
        return codecs.encode(pixels, encoding.transfer_syntax, bits_stored=encoding.bits_stored)
    if encoding.transfer_syntax == codecs.RLE_LOSSLESS:
        frame = rle_encode(pixels, bits_stored=encoding.bits_stored)
    else:
        bits = 16 if encoding.has_jp2_box else encoding.bits_stored
        frame = codecs.encode(pixels, encoding.transfer_syntax, bits_stored=bits, jp2=encoding.has_jp2_box)
    return encapsulate([frame])


def rle_encode(pixels: Pixels, *, bits_stored: int) -> bytes:
    """Returns one RLE frame, PS3.5 annex G."""
    frame: bytes = RLELosslessEncoder.encode(
        pixels,
        encoding_plugin="pydicom",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=bits_stored,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    return frame
