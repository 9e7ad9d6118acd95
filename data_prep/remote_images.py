"""Which image files of some patients are in object storage, in few requests. Knows no exam table."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from data_prep.errors import UserError
from data_prep.storage import RemoteFile, Url, find_each, list_each, list_files

FEW_PATIENTS = 200  # of so many each folder is listed; all of RSNA's files are 55 requests in one listing


def find_remote_images(
    images: Url, pairs: Sequence[tuple[str, str]], suffixes: Sequence[str]
) -> dict[str, list[RemoteFile]]:
    """Returns the files in `<images>/<patient_id>/` by patient, for pairs of patient and image id.

    A store without listings is asked for `<image_id>` with one suffix after the other, as long as needed.

    Raises:
        UserError: if the store cannot be reached or does not tell.
    """
    try:
        if not images.has_listing:
            return _probe(images, pairs, suffixes)
        return _list(images, sorted({patient_id for patient_id, _ in pairs}))
    except OSError as error:
        raise UserError(
            f"cannot look for images in {images} ({error.strerror}): see to it and give the command again"
        ) from error


def _list(images: Url, patient_ids: list[str]) -> dict[str, list[RemoteFile]]:
    is_few = len(patient_ids) <= FEW_PATIENTS
    listings = (
        list_each(images / patient_id for patient_id in patient_ids) if is_few else [list_files(images)]
    )
    depth = (images / "patient" / "image").text.count("/")
    files = defaultdict(list)
    for file in chain.from_iterable(listings):
        if file.url.count("/") == depth:  # none deeper than it should be
            files[file.folder].append(file)
    return files


def _probe(
    images: Url, pairs: Sequence[tuple[str, str]], suffixes: Sequence[str]
) -> dict[str, list[RemoteFile]]:
    files, missing = defaultdict(list), list(pairs)
    for suffix in suffixes:
        urls = [images / patient_id / f"{image_id}{suffix}" for patient_id, image_id in missing]
        found = dict(zip(missing, find_each(urls), strict=True))
        for (patient_id, _), file in found.items():
            if file is not None:
                files[patient_id].append(file)
        missing = [pair for pair, file in found.items() if file is None]
    return files
