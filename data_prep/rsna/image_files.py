"""Which image files some patients have, in a folder or in object storage."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from data_prep.errors import UserError
from data_prep.storage.places import ImagePath, Place, RemoteFile, Url, find_each, list_each, list_files

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
PACKED = ".gz"
IMAGE_SUFFIXES = [
    *DICOM_SUFFIXES,
    *(".png", ".jpg", ".jpeg", ".pgm"),
    *(suffix + PACKED for suffix in DICOM_SUFFIXES),
    "",
]
"""What an image file's name may end with, in letters of any case, the preferred one first."""
FEW_PATIENTS = 200  # of so many each folder is listed; all of RSNA's files are 55 requests in one listing


def find_image_files(images: Place, pairs: Sequence[tuple[str, str]]) -> list[ImagePath | None]:
    """Returns the file `<images>/<patient_id>/<image_id>.*` of each pair of ids; None where there is none.

    Raises:
        UserError: if object storage cannot be reached or does not tell.
    """
    patient_ids = sorted({patient_id for patient_id, _ in pairs})
    if isinstance(images, Url):
        found = _find_remotely(images, pairs, patient_ids)
    else:
        found = {patient_id: _choose(_list_folder(images / patient_id)) for patient_id in patient_ids}
    return [found.get(patient_id, {}).get(image_id) for patient_id, image_id in pairs]


def _list_folder(folder: Path) -> list[Path]:
    """Looks once at a patient's folder; one that cannot be read holds nothing."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_file()]
    except OSError:
        return []


def split_name(name: str) -> tuple[str, str]:
    """Returns a file name without its suffix, and the suffix in small letters: one of `IMAGE_SUFFIXES`.

    What follows the last dot of a UID is none of them, so that it stays in the name.
    """
    small = name.lower()
    suffix = max((suffix for suffix in IMAGE_SUFFIXES if small.endswith(suffix)), key=len)
    return (name.removesuffix(name[len(name) - len(suffix) :]), suffix) if suffix else (name, "")


def _choose(paths: Iterable[ImagePath]) -> dict[str, ImagePath]:
    """Maps image ids to files."""
    ranked = []
    for path in paths:
        stem, suffix = split_name(path.name)
        ranked.append((IMAGE_SUFFIXES.index(suffix), path.name, stem, path))
    ranked.sort(key=lambda entry: entry[:2], reverse=True)
    return {stem: path for _, _, stem, path in ranked}  # the preferred suffix comes last and stays


def _find_remotely(
    images: Url, pairs: Sequence[tuple[str, str]], patient_ids: list[str]
) -> dict[str, dict[str, ImagePath]]:
    try:
        files = _list(images, patient_ids) if images.has_listing else _probe(images, pairs)
    except OSError as error:
        raise UserError(
            f"cannot look for images in {images} ({error.strerror}): see to it and run the command again"
        ) from error
    return {patient_id: _choose(of_patient) for patient_id, of_patient in files.items()}


def _list(images: Url, patient_ids: list[str]) -> dict[str, list[RemoteFile]]:
    is_few, folders = len(patient_ids) <= FEW_PATIENTS, [images / patient_id for patient_id in patient_ids]
    listings = list_each(folders) if is_few else [list_files(images)]
    depth = (images / "patient" / "image").text.count("/")
    files = defaultdict(list)
    for file in chain.from_iterable(listings):
        if file.url.count("/") == depth:  # none deeper than it should be
            files[file.folder].append(file)
    return files


def _probe(images: Url, pairs: Sequence[tuple[str, str]]) -> dict[str, list[RemoteFile]]:
    """Asks a store without listings for one suffix after the other, as long as needed."""
    files, missing = defaultdict(list), list(pairs)
    for suffix in IMAGE_SUFFIXES:
        urls = [images / patient_id / f"{image_id}{suffix}" for patient_id, image_id in missing]
        found = dict(zip(missing, find_each(urls), strict=True))
        for (patient_id, _), file in found.items():
            if file is not None:
                files[patient_id].append(file)
        missing = [pair for pair, file in found.items() if file is None]
    return files
