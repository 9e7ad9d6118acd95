"""A small folder in RSNA layout with images in several encodings, and what preparing it leaves."""

import shutil
from pathlib import Path

from PIL import Image

from data_prep.cache.build import Summary, build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.imageio import codecs
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images
from tests.data_prep.dicom_files import make_breast, write_dicom

SETTINGS = CacheSettings(split="train", prepare=PrepareSettings(side=32))
SYNTAXES = [
    codecs.EXPLICIT_VR_LITTLE_ENDIAN,
    codecs.JPEG_2000_LOSSLESS,
    codecs.JPEG_LOSSLESS_SV1,
    codecs.RLE_LOSSLESS,
]


def make_data(folder: Path, num_images: int = 8) -> Path:
    """Writes a patient per two images, left and right; every fifth image is a PNG."""
    lines = ["patient_id,image_id,laterality,cancer"]
    for number in range(num_images):
        patient_id, image_id, side = str(2 * (number // 2) + 5), str(90 + 7 * number), "LR"[number % 2]
        lines.append(f"{patient_id},{image_id},{side},{number % 3 // 2}")
        write_image(folder / "train_images" / patient_id / image_id, number)
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_image(stem: Path, number: int) -> Path:
    """Writes one image, the right breasts with the chest wall at the right."""
    pixels = make_breast(160 + number, 110, seed=number)[:, :: -1 if number % 2 else 1].copy()
    if number % 5 == 4:
        path = stem.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels >> 4).astype("uint8")).save(path)
        return path
    syntax = SYNTAXES[number % len(SYNTAXES)]
    elements = {"PatientName": "Weiherer^Annegret", "WindowCenter": 2048, "WindowWidth": 4096}
    return write_dicom(stem.with_suffix(".dcm"), pixels, transfer_syntax=syntax, BitsStored=12, **elements)


def find_image(folder: Path, image_id: str) -> Path:
    """The file of an image."""
    (path,) = folder.glob(f"train_images/*/{image_id}.*")
    return path


def spoil(folder: Path, image_id: str) -> None:
    """Replaces an image by text."""
    find_image(folder, image_id).write_text("this is not an image")


def prepare_folder(
    data: Path, cache: Path, *, settings: CacheSettings = SETTINGS, workers: int = 0
) -> Summary:
    """Prepares all images of a folder."""
    located = require_images(read_exams(data, "train"), data, "train")
    return build_cache(located.exams, located.paths, Cache(cache), settings, workers=workers)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's content, but for the lock and what differs between two equal runs."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name not in {".lock", "log.txt", "timings.csv"}
    }


def copy_data(source: Path, target: Path) -> Path:
    """A copy to change, with the files' times."""
    return Path(shutil.copytree(source, target))
