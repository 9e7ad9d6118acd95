"""A small cache and the data folder that it was made of, without a decoder: the sources are random bytes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams

SIDE = 16
START_BYTES = 40  # of a source that was not read to its end
STAGES = {
    "transfer_syntax": "1.2.840.10008.1.2.1",
    "photometric_interpretation": "MONOCHROME2",
    "window": "LINEAR 2048/4096",
    "rows": 64,
    "columns": 32,
    "pixel_aspect": 1.0,
    "level": 1,
    "box_left": 0,
    "box_top": 0,
    "box_right": 32,
    "box_bottom": 64,
    "turned": 0,
    "flipped": False,
    "scale_x": 0.25,
    "scale_y": 0.25,
    "top": 0,
    "contrast": 0.5,
    "saturated": 0.0,
}
"""What a manifest says of how an image was made."""


@dataclass(frozen=True)
class Made:
    """A cache and its data."""

    cache: Cache
    data: Path

    def png(self, image_id: str) -> Path:
        """An image's PNG."""
        return self.cache.image_path(patient_of(image_id), image_id)

    def source(self, image_id: str) -> Path:
        """An image's source file."""
        return self.data / "train_images" / patient_of(image_id) / f"{image_id}.dcm"


def patient_of(image_id: str) -> str:
    """Two images a patient."""
    return str(1 + (int(image_id) - 10) // 2)


def make_image(image_id: str, *, bit_depth: int = 8) -> np.ndarray:
    """An image that no other id gives."""
    values = np.random.default_rng(int(image_id)).integers(0, 2**bit_depth, (SIDE, SIDE))
    return values.astype(np.uint8 if bit_depth == 8 else np.uint16)


def make_cache(
    folder: Path, *, num_images: int = 6, bit_depth: int = 8, failed: str = "13", read_in_part: str = "12"
) -> Made:
    """Images 10, 11, ... of patients 1, 1, 2, 2, ...; one failed, and one was read at its start alone."""
    made = Made(Cache(folder / "cache"), folder / "data")
    rows = [f"{patient_of(str(i))},{i},{'LR'[i % 2]},{i % 3 // 2}" for i in range(10, 10 + num_images)]
    for row in rows:
        image_id = row.split(",")[1]
        made.source(image_id).parent.mkdir(parents=True, exist_ok=True)
        made.source(image_id).write_bytes(np.random.default_rng(int(image_id)).bytes(100))
    (made.data / "train.csv").write_text("\n".join(["patient_id,image_id,laterality,cancer", *rows]) + "\n")
    settings = PrepareSettings(side=SIDE, bit_depth=bit_depth)
    made.cache.open_for(CacheSettings(split="train", prepare=settings))
    exams = read_exams(made.data, "train")
    num_bytes = {image_id: START_BYTES if image_id == read_in_part else 100 for image_id in exams["image_id"]}
    records = {
        image_id: fail(image_id) if image_id == failed else prepare(made, image_id, num_bytes[image_id])
        for image_id in exams["image_id"]
    }
    made.cache.write_exams(exams)
    made.cache.write_tables(records)
    return made


def prepare(made: Made, image_id: str, bytes_read: int = 100) -> dict[str, Any]:
    """Writes an image and returns its record."""
    content = made.source(image_id).read_bytes()
    image = make_image(image_id, bit_depth=made.cache.settings().prepare.bit_depth)
    return {
        "patient_id": patient_of(image_id),
        "image_id": image_id,
        "laterality": "LR"[int(image_id) % 2],
        **STAGES,
        "source_bytes": len(content),
        "bytes_read": bytes_read,
        "source_sha256": hashlib.sha256(content[:bytes_read]).hexdigest(),
        "image_sha256": write_image(made.png(image_id), image),
    }


def fail(image_id: str) -> dict[str, Any]:
    """Returns the record of an image that could not be prepared."""
    ids = {"patient_id": patient_of(image_id), "image_id": image_id}
    return ids | {"reason": "truncated", "message": "it ends too early"}


def edit(path: Path, change: Any) -> None:
    """Changes a table of text cells."""
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)
