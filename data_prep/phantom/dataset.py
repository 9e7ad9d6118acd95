"""A synthetic data set in RSNA layout: a DICOM file per image and the three CSV files.

How a file is encoded, and what stands in the CSV beside the outcome, is drawn by a generator that never sees
the label.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.errors import UserError
from data_prep.parallel.executor import map_unordered
from data_prep.phantom.anatomy import Laterality, Phantom, View, draw_anatomy, make_phantom
from data_prep.phantom.dicom_writer import Encoding, draw_encoding, make_dicom
from data_prep.phantom.findings import draw_findings
from data_prep.storage import atomic
from data_prep.storage.files import real_folder

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
LATERALITIES: tuple[Laterality, ...] = ("L", "R")
VIEWS: tuple[View, ...] = ("CC", "MLO")
MACHINES = {1: (49, 48, 170, 93), 2: (29, 21, 216)}
GOLDEN_RATIO = 0.6180339887498949
PATIENTS_OF_A_SEED = 1_000_000
"""Numbers that each seed has for its patients."""


@dataclass(frozen=True)
class PhantomImage:
    """One image of the data set, before it is written.

    Attributes:
        row: the columns of both CSV files.
    """

    row: dict[str, Any]
    phantom: Phantom
    encoding: Encoding


def write_phantoms(
    folder: Path,
    *,
    num_patients: int,
    seed: int = 0,
    rows: int = 640,
    columns: int = 512,
    cancer_share: float = 0.3,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a data set that `mammo prepare` reads like RSNA's.

    A training patient's files depend on the seed and the patient's number only, so that a larger set contains
    a smaller one. A tenth as many test patients, at least two, come on top. `sample_submission.csv` is the
    last file to be written.

    Args:
        folder: is made if absent.
        num_patients: patients in `train.csv`, each with two breasts in two views.
        seed: of all that is drawn.
        rows: of every frame.
        columns: of every frame; four fifths of the rows hold the whole breast.
        cancer_share: share of the breasts with cancer.
        workers: processes that draw; 0 draws in this one. The files do not depend on it.
        progress: is called with 1 after each training patient.

    Raises:
        UserError: if the folder holds a data set already.
    """
    for name in ("train.csv", "test.csv"):
        if (folder / name).exists():
            raise UserError(f"{folder} holds a data set already ({name}): choose another folder")
    make = partial(make_patient, seed=seed, rows=rows, columns=columns, cancer_share=cancer_share)
    write = partial(write_patient, folder, num_patients, make)
    numbers = range(num_patients + max(2, num_patients // 10))
    written: dict[int, list[dict[str, Any]]] = {}
    for outcome in map_unordered(write, numbers, workers=workers):
        if outcome.result is None:
            raise UserError(f"patient {outcome.item} could not be written: {outcome.message}")
        written[outcome.item] = outcome.result
        if progress is not None and outcome.item < num_patients:
            progress(1)
    train = [row for number in numbers[:num_patients] for row in written[number]]
    test = [row for number in numbers[num_patients:] for row in written[number]]
    atomic.write_csv(folder / "train.csv", pd.DataFrame(train)[TRAIN_COLUMNS])
    atomic.write_csv(folder / "test.csv", pd.DataFrame(test)[TEST_COLUMNS])
    submission = pd.DataFrame(test)[["prediction_id"]].drop_duplicates().assign(cancer=0.5)
    atomic.write_csv(folder / "sample_submission.csv", submission)


def make_train_images(
    *, num_patients: int, seed: int = 0, rows: int = 640, columns: int = 512, cancer_share: float = 0.3
) -> Iterator[PhantomImage]:
    """Makes the training images of `write_phantoms` once more, with the truth that no file tells.

    With the same arguments they are the same images, in the order of `train.csv`.
    """
    for number in range(num_patients):
        yield from make_patient(number, seed=seed, rows=rows, columns=columns, cancer_share=cancer_share)


def write_patient(
    folder: Path, num_train: int, make: Callable[[int], Iterator[PhantomImage]], number: int
) -> list[dict[str, Any]]:
    """Writes one patient's images and returns their rows; the first `num_train` patients are for training."""
    images = folder / ("train_images" if number < num_train else "test_images")
    rows = []
    for image in make(number):
        write_phantom_image(images, image)
        rows.append(image.row)
    return rows


def write_phantom_image(images: Path, image: PhantomImage) -> None:
    """Writes `<patient_id>/<image_id>.dcm`."""
    patient_id, image_id = image.row["patient_id"], image.row["image_id"]
    payload = make_dicom(
        image.phantom.image,
        image.encoding,
        patient_id=patient_id,
        image_id=image_id,
        laterality=image.row["laterality"],
    )
    patient = real_folder(real_folder(images) / patient_id)
    atomic.make_folder(patient)
    atomic.write_bytes(patient / f"{image_id}.dcm", payload)


def make_patient(
    number: int, *, seed: int, rows: int, columns: int, cancer_share: float
) -> Iterator[PhantomImage]:
    """Makes one patient's four images."""
    blind = np.random.default_rng([seed, number, 0])  # never sees the label
    pictures = np.random.default_rng([seed, number, 1])
    anatomy = draw_anatomy(blind)
    name = number + seed * PATIENTS_OF_A_SEED  # two seeds have no id in common
    circumstances = draw_circumstances(blind, number=name, density=anatomy.density)
    image_ids = draw_image_ids(blind, number=name)
    for side_number, side in enumerate(LATERALITIES):
        is_cancer = has_cancer(len(LATERALITIES) * number + side_number, seed=seed, cancer_share=cancer_share)
        findings = draw_findings(pictures, is_cancer=is_cancer)
        breast = {"laterality": side, "prediction_id": f"{circumstances['patient_id']}_{side}"}
        breast |= draw_outcome(pictures, is_cancer=is_cancer, site=circumstances["site_id"])
        for view in VIEWS:
            phantom = make_phantom(
                pictures,
                anatomy=anatomy,
                findings=findings,
                view=view,
                laterality=side,
                rows=rows,
                columns=columns,
            )
            row = circumstances | breast | {"view": view, "image_id": next(image_ids)}
            yield PhantomImage(row, phantom, draw_encoding(blind))


def has_cancer(breast: int, *, seed: int, cancer_share: float) -> bool:
    """Whether a breast has cancer; multiples of the golden ratio keep any run of breasts near the share."""
    first = np.random.default_rng(seed).random()
    return bool((first + breast * GOLDEN_RATIO) % 1 < cancer_share)


def draw_image_ids(generator: np.random.Generator, *, number: int) -> Iterator[str]:
    """Draws image ids from a block of numbers that is the patient's own, so that no two images share one."""
    return (str(number * 100_000 + 1 + offset) for offset in generator.permutation(100_000))


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
    is_invasive, is_difficult, birads = (
        generator.random() < 0.7,
        generator.random() < 0.14,
        generator.integers(1, 3),
    )
    is_recalled = is_cancer or is_difficult
    return {
        "cancer": int(is_cancer),
        "biopsy": int(is_cancer),
        "invasive": int(is_cancer and is_invasive),
        "BIRADS": str(0 if is_recalled else birads) if site == 1 else None,
        "difficult_negative_case": bool(is_difficult and not is_cancer),
    }
