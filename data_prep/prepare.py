"""The images of a split to a cache, over many processes. Knows no model and no decoder."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from data_prep.cache import Cache, CacheSettings, is_whole, write_image
from data_prep.engine import Engine, Outcome, map_unordered
from data_prep.errors import ImageError
from data_prep.files import remove_temporaries, require_space
from data_prep.frame import Image
from data_prep.locks import locked
from data_prep.settings import PrepareSettings
from data_prep.stages import Record, Stages, prepare_stages
from data_prep.storage import ImagePath, RemoteFile

LEAST_SHARE = 0.1  # of a PNG's size in that of its pixels: RSNA's images have 0.13 to 0.6


@dataclass(frozen=True)
class Task:
    """One image to prepare.

    Attributes:
        laterality: L or R, as the exam table says.
    """

    patient_id: str
    image_id: str
    laterality: str
    path: ImagePath


@dataclass(frozen=True)
class Summary:
    """What a run of `prepare` did.

    Attributes:
        num_images: images asked for.
        num_prepared: of them, prepared now; the others were in the cache already or failed.
        failures: how many failed, by reason code.
        remote_bytes: what the files that were prepared now from object storage hold.
        received_bytes: of them, what was read.
    """

    num_images: int
    num_prepared: int
    failures: dict[str, int]
    remote_bytes: int = 0
    received_bytes: int = 0

    @property
    def num_failed(self) -> int:
        """Images that have a row in `failures.csv`."""
        return sum(self.failures.values())


def prepare(
    exams: pd.DataFrame,
    paths: "pd.Series[Any]",
    cache: Cache,
    settings: CacheSettings,
    *,
    workers: int,
    engine: Engine = map_unordered,
    left_out: pd.DataFrame | None = None,
    on_image: Callable[[bool], None] = lambda _: None,
) -> Summary:
    """Prepares the images of an exam table into a cache; what is there and unchanged is left as it is.

    `paths` holds each row's file; `engine` says where it is worked on, and what 0 workers mean (here: this
    process); `left_out` are rows that the cache remembers though their images are not asked for; `on_image`
    hears whether each image failed.

    Raises:
        UserError: if the cache was made with other settings, is in use, or cannot be written.
    """
    with locked(cache.folder):
        cache.open_for(settings)
        remove_temporaries(cache.folder)
        cache.journal.mend()
        known = cache.read_records()
        records = {image_id: known[image_id] for image_id in known if is_whole(known[image_id])}
        columns = (exams["patient_id"], exams["image_id"], exams["laterality"], paths)
        tasks = [Task(*row) for row in zip(*columns, strict=True)]
        waiting = [task for task in tasks if not _is_done(task, cache, records)]
        pixel_bytes = settings.prepare.side**2 * settings.prepare.bit_depth // 8
        num_bytes = int(LEAST_SHARE * len(waiting) * pixel_bytes)
        require_space(cache.folder, num_bytes, f"a cache of {len(waiting)} images more")
        prepare_one = partial(_prepare_into, cache, settings.prepare)
        for outcome in engine(prepare_one, waiting, workers=min(workers, len(waiting))):
            if outcome.result is None:  # its worker died, maybe after it had written the image
                cache.image_path(outcome.item.patient_id, outcome.item.image_id).unlink(missing_ok=True)
            record = _to_record(outcome)
            cache.journal.append(record)
            records[outcome.item.image_id] = record
            on_image("reason" in record)
        remove_temporaries(cache.folder)  # of processes and machines that were lost meanwhile
        cache.write_exams(exams, left_out)
        cache.write_tables(records)
    asked = [records[task.image_id] for task in tasks]
    failures = Counter(str(record["reason"]) for record in asked if record.get("reason"))
    remote = [records[task.image_id] for task in waiting if "source_etag" in records[task.image_id]]
    return Summary(
        num_images=len(tasks),
        num_prepared=len(waiting) - failures.total(),
        failures=dict(sorted(failures.items())),
        remote_bytes=sum(record["source_bytes"] for record in remote),
        received_bytes=sum(record["bytes_read"] for record in remote),
    )


def _is_done(task: Task, cache: Cache, records: dict[str, Record]) -> bool:
    """An image is done when its file and its side are those of last time and its PNG is there."""
    record = records.get(task.image_id)
    if record is None or record.get("reason"):
        return False
    try:
        asked = identify_source(task.path) | {"laterality": task.laterality}
    except OSError:
        return False
    same = all(str(record.get(name)) == str(value) for name, value in asked.items())
    return same and cache.image_path(task.patient_id, task.image_id).is_file()


def identify_source(path: ImagePath) -> Record:
    """Returns what changes with a file, as far as can be told without reading it.

    Raises:
        OSError: if the file is gone.
    """
    if isinstance(path, RemoteFile):
        return {"source_bytes": path.size, "source_etag": path.etag}
    status = path.stat()
    return {"source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns}


def _prepare_into(cache: Cache, settings: PrepareSettings, task: Task) -> Record | ImageError:
    """Prepares one image, in a worker; what is wrong with the image is returned, not raised."""
    start = time.perf_counter()
    target = cache.image_path(task.patient_id, task.image_id)
    try:
        identity = identify_source(task.path)
    except OSError as error:
        return ImageError("io_error", f"the file cannot be read: {error.strerror}")
    stages = _try_stages(task.path, settings, task.laterality)
    if isinstance(stages, ImageError):
        target.unlink(missing_ok=True)  # an image of what the file held before
        return stages
    image_sha256 = write_image(target, stages.image)
    return (
        identity
        | stages.record
        | {
            "source_sha256": stages.source.sha256(),
            "image_sha256": image_sha256,
            "laterality": task.laterality,
            "seconds": round(time.perf_counter() - start, 4),
        }
    )


def _try_stages(
    path: ImagePath, settings: PrepareSettings, laterality: str | None = None
) -> Stages | ImageError:
    """Returns what is made of a file, or what is wrong with it: no file stops the others."""
    try:
        return prepare_stages(path, settings, laterality=laterality)
    except ImageError as error:
        return error
    except Exception as error:  # whatever a hostile file brings about; its text may quote the file
        return ImageError("error", f"the file brought about an unforeseen {type(error).__name__}")


def _to_record(outcome: Outcome[Task, Record | ImageError]) -> Record:
    ids = {"patient_id": outcome.item.patient_id, "image_id": outcome.item.image_id}
    if isinstance(outcome.result, ImageError):
        return ids | {"reason": outcome.result.reason, "message": str(outcome.result)}
    if outcome.result is None:
        return ids | {"reason": outcome.reason, "message": outcome.message}
    return ids | outcome.result


def stream_images(
    paths: Sequence[ImagePath],
    settings: PrepareSettings,
    *,
    workers: int,
    ahead: int = 0,
    engine: Engine = map_unordered,
) -> Iterator[tuple[int, Image | ImageError]]:
    """Yields (index in `paths`, image or what is wrong with it) as they get ready, without a cache.

    Not in order: while one file hangs, those behind it would fill the memory. `ahead` is as `map_unordered`
    takes it, which may stand for another engine.
    """
    prepare_at = partial(_prepare_at, settings)
    workers = min(workers, len(paths))
    for outcome in engine(prepare_at, enumerate(paths), workers=workers, ahead=ahead):
        lost = ImageError(outcome.reason, outcome.message)
        yield outcome.item[0], lost if outcome.result is None else outcome.result


def _prepare_at(settings: PrepareSettings, numbered_path: tuple[int, ImagePath]) -> Image | ImageError:
    stages = _try_stages(numbered_path[1], settings)
    return stages if isinstance(stages, ImageError) else stages.image
