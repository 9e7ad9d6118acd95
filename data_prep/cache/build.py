"""A data set to a cache, over many processes."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import write_image
from data_prep.cache.qc_report import write_qc_report
from data_prep.cache.shared_pictures import find_shared_pictures, mark_shared_pictures
from data_prep.cache.tables import is_whole
from data_prep.errors import ImageError, count
from data_prep.parallel.executor import Executor, Outcome, map_unordered
from data_prep.parallel.track import Track, untracked
from data_prep.preprocessing.preprocess import ManifestRow, identify_source, try_preprocess
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import Split, read_exams, require_images, select_patients
from data_prep.storage.atomic import remove_temporaries, require_space
from data_prep.storage.locks import locked
from data_prep.storage.places import ImagePath, Place

LEAST_SHARE = 0.1  # of a PNG's size in that of its pixels: RSNA's images have 0.13 to 0.6


@dataclass(frozen=True)
class ImageJob:
    """One image to prepare.

    Attributes:
        laterality: L or R, as the exam table says.
        file: the user's own name for the file, or else its path below the data folder.
    """

    patient_id: str
    image_id: str
    laterality: str
    path: ImagePath
    file: str


@dataclass(frozen=True)
class Summary:
    """What a run of `prepare` did.

    Attributes:
        num_images: images asked for.
        num_prepared: of them, prepared now; the others were in the cache already or failed.
        failures: how many failed, by reason code.
        remote_bytes: what the files that were prepared now from object storage hold.
        received_bytes: of them, what was read.
        num_absent: rows that were left out because their files are absent.
        shared_pictures: sentences about pictures that stand under several patients, or have two labels.
    """

    num_images: int
    num_prepared: int
    failures: dict[str, int]
    remote_bytes: int = 0
    received_bytes: int = 0
    num_absent: int = 0
    shared_pictures: list[str] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        """Images that have a row in `failures.csv`."""
        return sum(self.failures.values())


def prepare_dataset(
    data: Place,
    cache: Cache,
    settings: CacheSettings,
    *,
    workers: int,
    executor: Executor = map_unordered,
    num_patients: int | None = None,
    seed: int = 0,
    present_only: bool = False,
    track: Track = untracked,
) -> Summary:
    """Prepares a split of a data set in RSNA layout into a cache, and writes its `qc.html`.

    What is there and unchanged is left as it is, so that a call that was broken off goes on.

    Args:
        data: folder or URL with `<split>.csv` and `<split>_images/`.
        cache: is made if absent.
        settings: the split, and how its images are made.
        workers: processes, or what `executor` takes them for; 0 works in this one.
        executor: where it is worked on.
        num_patients: only so many, stratified by label and drawn by `seed`; None takes all.
        seed: of that draw.
        present_only: leaves out rows whose file is absent.
        track: shows the progress.

    Raises:
        UserError: if table, files and cache do not fit together, or the cache is in use or cannot be written.
    """
    listed = read_exams(data, settings.split)
    exams = listed if num_patients is None else select_patients(listed, num_patients, seed)
    located = require_images(exams, data, settings.split, present_only=present_only)
    asked = listed if settings.split == "test" else exams
    left_out = asked[~asked["image_id"].isin(located.exams["image_id"])]
    num_failed = 0
    with track("prepare", len(located.exams)) as advance:

        def on_image(is_failure: bool) -> None:  # noqa: FBT001  a callback
            nonlocal num_failed
            num_failed += is_failure
            advance(note=f"{num_failed} failed" if num_failed else "")

        summary = build_cache(
            located.exams,
            located.paths,
            cache,
            settings,
            workers=workers,
            executor=executor,
            left_out=left_out,
            on_known=advance,
            on_image=on_image,
        )
    write_qc_report(cache)
    return replace(summary, num_absent=located.num_absent)


def build_cache(
    exams: pd.DataFrame,
    paths: "pd.Series[Any]",
    cache: Cache,
    settings: CacheSettings,
    *,
    workers: int,
    executor: Executor = map_unordered,
    left_out: pd.DataFrame | None = None,
    on_known: Callable[[int], None] = lambda _: None,
    on_image: Callable[[bool], None] = lambda _: None,
) -> Summary:
    """Prepares the images of an exam table into a cache; what is there and unchanged is left as it is.

    `paths` holds each row's file; `executor` says where it is worked on, and what 0 workers mean (here: this
    process); `left_out` are rows that the cache remembers though their images are not asked for; `on_known`
    hears how many images are there, `on_image` of each other one whether it failed.

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
        files = name_files(exams, paths, settings.split)
        jobs = [ImageJob(*row) for row in zip(*columns, files, strict=True)]
        waiting = [job for job in jobs if not _is_done(job, cache, records)]
        on_known(len(jobs) - len(waiting))
        pixel_bytes = settings.prepare.side**2 * settings.prepare.bit_depth // 8
        num_bytes = int(LEAST_SHARE * len(waiting) * pixel_bytes)
        require_space(cache.folder, num_bytes, f"a cache of {count(len(waiting), 'more image')}")
        prepare_one = partial(_prepare_into, cache, settings.prepare)
        for outcome in executor(prepare_one, waiting, workers=min(workers, len(waiting))):
            if outcome.result is None:  # its worker died, maybe after it had written the image
                cache.image_path(outcome.item.patient_id, outcome.item.image_id).unlink(missing_ok=True)
            record = _to_record(outcome)
            cache.journal.append(record)
            records[outcome.item.image_id] = record
            on_image("reason" in record)
        remove_temporaries(cache.folder)  # of processes and machines that were lost meanwhile
        cache.write_exams(exams, left_out)
        for job in jobs:  # also of images that an older mammo prepared
            records[job.image_id]["file"] = job.file
        mark_shared_pictures(records)
        cache.write_tables(records)
    asked = [records[job.image_id] for job in jobs]
    failures = Counter(str(record["reason"]) for record in asked if record.get("reason"))
    remote = [records[job.image_id] for job in waiting if "source_etag" in records[job.image_id]]
    return Summary(
        num_images=len(jobs),
        num_prepared=len(waiting) - failures.total(),
        failures=dict(sorted(failures.items())),
        remote_bytes=sum(record["source_bytes"] for record in remote),
        received_bytes=sum(record["bytes_read"] for record in remote),
        shared_pictures=find_shared_pictures(cache.read_manifest(), exams).describe(),
    )


def name_files(exams: pd.DataFrame, paths: "pd.Series[Any]", split: Split) -> list[str]:
    """Returns what each row's file is called: as the table's column `file` says, else where it lies."""
    names = exams["file"].fillna("") if "file" in exams else [""] * len(exams)
    return [
        name or f"{split}_images/{patient_id}/{path.name}"
        for name, patient_id, path in zip(names, exams["patient_id"], paths, strict=True)
    ]


def _is_done(job: ImageJob, cache: Cache, records: dict[str, ManifestRow]) -> bool:
    """An image is done when its file and its side are those of last time and its PNG is there."""
    record = records.get(job.image_id)
    if record is None or record.get("reason"):
        return False
    try:
        asked = identify_source(job.path) | {"laterality": job.laterality}
    except OSError:
        return False
    same = all(str(record.get(name)) == str(value) for name, value in asked.items())
    return same and cache.image_path(job.patient_id, job.image_id).is_file()


def _prepare_into(cache: Cache, settings: PrepareSettings, job: ImageJob) -> ManifestRow | ImageError:
    """Prepares one image, in a worker; what is wrong with the image is returned, not raised."""
    start = time.perf_counter()
    target = cache.image_path(job.patient_id, job.image_id)
    try:
        identity = identify_source(job.path)
    except OSError as error:
        return ImageError("io_error", f"the file cannot be read: {error.strerror}")
    stages = try_preprocess(job.path, settings, job.laterality)
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
            "laterality": job.laterality,
            "seconds": round(time.perf_counter() - start, 4),
        }
    )


def _to_record(outcome: Outcome[ImageJob, ManifestRow | ImageError]) -> ManifestRow:
    ids = {"patient_id": outcome.item.patient_id, "image_id": outcome.item.image_id}
    if isinstance(outcome.result, ImageError):
        return ids | {"reason": outcome.result.reason, "message": str(outcome.result)}
    if outcome.result is None:
        return ids | {"reason": outcome.reason, "message": outcome.message}
    return ids | outcome.result
