"""From image files to the cache: one image, or all images of a split over many processes. Knows no model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_prep.cache import Cache, CacheSettings, Image, write_image
from data_prep.dicom import open_dicom
from data_prep.engine import Outcome, map_unordered
from data_prep.errors import ImageError
from data_prep.files import locked, remove_temporaries
from data_prep.frame import Box, Frame, ImageFile
from data_prep.geometry import Breast, Placement, find_breast, find_level, fit_to_square, place
from data_prep.intensity import describe_window, to_display
from data_prep.raster import SUFFIXES, open_raster
from data_prep.settings import PrepareSettings

SEARCH_OVERSAMPLING = 0.5  # half the image's side is plenty to find the breast in

Record = dict[str, Any]
"""A row of the manifest, without ids."""


@dataclass(frozen=True)
class Task:
    """One image to prepare."""

    patient_id: str
    image_id: str
    path: Path


@dataclass(frozen=True)
class Summary:
    """What a run of `prepare` did.

    Attributes:
        num_images: images asked for.
        num_prepared: of them, prepared now; the others were in the cache already or failed.
        failures: how many failed, by reason code.
    """

    num_images: int
    num_prepared: int
    failures: dict[str, int]

    @property
    def num_failed(self) -> int:
        """Images that have a row in `failures.csv`."""
        return sum(self.failures.values())


def open_image(path: Path) -> ImageFile:
    """Opens a raster file by its suffix, anything else as DICOM.

    Raises:
        ImageError: if the file cannot be used.
    """
    return open_raster(path) if path.suffix.lower() in SUFFIXES else open_dicom(path)


def prepare_image(path: Path, settings: PrepareSettings) -> tuple[Image, Record]:
    """Returns a file's square image and the record of how it was made.

    Raises:
        ImageError: if the file cannot be used; the reason code says why.
    """
    file = open_image(path)
    level = partial(find_level, side=settings.side, max_level=file.max_level)
    whole = Box(0, 0, file.columns, file.rows)
    frame = file.read_frame(level(whole, oversampling=SEARCH_OVERSAMPLING))
    display = to_display(frame)
    breast = find_breast(display, rows=frame.rows, columns=frame.columns, level=frame.level)
    codecs = settings.codecs
    needed = 0 if codecs.exact else level(breast.box, oversampling=codecs.oversampling)
    if needed < frame.level:
        frame = file.read_frame(needed)
        display = to_display(frame)
    placement = place(breast, settings.side)
    image = fit_to_square(display, placement, side=settings.side, level=frame.level)
    return np.rint(image * 255).astype(np.uint8), _describe(frame, breast, placement)


def _describe(frame: Frame, breast: Breast, placement: Placement) -> Record:
    return {
        "transfer_syntax": frame.transfer_syntax,
        "photometric_interpretation": str(frame.photometric_interpretation),
        "window": describe_window(frame),
        "rows": frame.rows,
        "columns": frame.columns,
        "level": frame.level,
        "box_left": breast.box.left,
        "box_top": breast.box.top,
        "box_right": breast.box.right,
        "box_bottom": breast.box.bottom,
        "box_found": breast.is_found,
        "flipped": placement.is_flipped,
        "scale": placement.scale,
        "top": placement.top,
    }


def try_prepare(path: Path, settings: PrepareSettings) -> tuple[Image, Record] | ImageError:
    """Returns what `prepare_image` does, or what is wrong with the file: no file stops the others."""
    try:
        return prepare_image(path, settings)
    except ImageError as error:
        return error
    except Exception as error:  # whatever a hostile file brings about; its text may quote the file
        return ImageError("error", f"the file brought about an unforeseen {type(error).__name__}")


def prepare(
    exams: pd.DataFrame,
    paths: "pd.Series[Any]",
    cache: Cache,
    settings: CacheSettings,
    *,
    workers: int,
    on_image: Callable[[bool], None] = lambda _: None,
) -> Summary:
    """Prepares the images of an exam table into a cache; what is there and unchanged is left as it is.

    `paths` holds each row's file; 0 workers means this process; `on_image` hears whether each image failed.

    Raises:
        UserError: if the cache was made with other settings, is in use, or cannot be written.
    """
    with locked(cache.folder):
        cache.open_for(settings)
        remove_temporaries(cache.folder)
        cache.journal.mend()
        records = cache.read_records()
        named = zip(exams["patient_id"], exams["image_id"], paths, strict=True)
        tasks = [Task(patient_id, image_id, path) for patient_id, image_id, path in named]
        waiting = [task for task in tasks if not _is_done(task, cache, records)]
        for outcome in map_unordered(
            partial(_prepare_into, cache, settings.prepare), waiting, workers=workers
        ):
            record = _to_record(outcome)
            cache.journal.append(record)
            records[outcome.item.image_id] = record
            on_image("reason" in record)
        cache.write_exams(exams)
        cache.write_tables(records)
    asked = [records[task.image_id] for task in tasks]
    failures = Counter(str(record["reason"]) for record in asked if record.get("reason"))
    return Summary(len(tasks), len(waiting) - failures.total(), dict(sorted(failures.items())))


def _is_done(task: Task, cache: Cache, records: dict[str, Record]) -> bool:
    """An image is done when its file has the size and time of last time and its PNG is there."""
    record = records.get(task.image_id)
    if record is None or record.get("reason"):
        return False
    try:
        status = task.path.stat()
    except OSError:
        return False
    known = (str(record.get("source_bytes")), str(record.get("source_mtime_ns")))
    same = known == (str(status.st_size), str(status.st_mtime_ns))
    return same and cache.image_path(task.patient_id, task.image_id).exists()


def _prepare_into(cache: Cache, settings: PrepareSettings, task: Task) -> Record | ImageError:
    """Prepares one image, in a worker; what is wrong with the image is returned, not raised."""
    start = time.perf_counter()
    target = cache.image_path(task.patient_id, task.image_id)
    try:
        status = task.path.stat()
    except OSError as error:
        return ImageError("io_error", f"the file cannot be read: {error.strerror}")
    prepared = try_prepare(task.path, settings)
    if isinstance(prepared, ImageError):
        target.unlink(missing_ok=True)  # an image of what the file held before
        return prepared
    image, record = prepared
    write_image(target, image)
    seconds = round(time.perf_counter() - start, 4)
    return record | {
        "source_bytes": status.st_size,
        "source_mtime_ns": status.st_mtime_ns,
        "seconds": seconds,
    }


def _to_record(outcome: Outcome[Task, Record | ImageError]) -> Record:
    ids = {"patient_id": outcome.item.patient_id, "image_id": outcome.item.image_id}
    if isinstance(outcome.result, ImageError):
        return ids | {"reason": outcome.result.reason, "message": str(outcome.result)}
    if outcome.result is None:
        return ids | {"reason": outcome.reason, "message": outcome.message}
    return ids | outcome.result


def stream_images(
    paths: list[Path], settings: PrepareSettings, *, workers: int
) -> Iterator[tuple[int, Image | ImageError]]:
    """Yields (index, image or what is wrong with it) in the order of `paths`, without a cache."""
    held: dict[int, Image | ImageError] = {}
    following = 0
    for outcome in map_unordered(partial(_prepare_at, settings), list(enumerate(paths)), workers=workers):
        lost = ImageError(outcome.reason, outcome.message)
        held[outcome.item[0]] = lost if outcome.result is None else outcome.result
        while following in held:
            yield following, held.pop(following)
            following += 1


def _prepare_at(settings: PrepareSettings, numbered_path: tuple[int, Path]) -> Image | ImageError:
    prepared = try_prepare(numbered_path[1], settings)
    return prepared if isinstance(prepared, ImageError) else prepared[0]
