"""Checks that a cache agrees with itself and with the files it was made of; changes nothing."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.cache.images import map_array, pack_path, read_exactly, seal_path
from data_prep.cache.pack import find_pack_problem
from data_prep.cache.shared_pictures import find_shared_pictures
from data_prep.cache.tables import ETAG, FAILED, ID_COLUMNS, NEEDED_COLUMNS, PREPARED, select_prepared
from data_prep.errors import UserError, count
from data_prep.parallel.executor import map_unordered
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import Split, locate_images, read_exams
from data_prep.storage.atomic import find_temporaries, is_temporary
from data_prep.storage.files import open_input
from data_prep.storage.locks import require_unlocked
from data_prep.storage.places import Download, ImagePath, Place, RemoteFile

CHECKSUMS = ["image_sha256", "source_bytes", "bytes_read", "source_sha256"]
CHUNK_BYTES = 1 << 20  # of a file in memory


@dataclass(frozen=True)
class Verification:
    """What a look at all of a cache found.

    Attributes:
        num_images: prepared images that were read.
        num_sources: source files that were read; 0 without a data folder.
        num_partly_read: of them, those of which `prepare` read the start alone: their rest is not known.
        num_unlisted: images of the cache that its exam table leaves out: an earlier command asked for more.
        problems: one sentence for each thing that is wrong.
        shared_pictures: sentences about pictures that stand under several patients, or have two labels: the
            cache is whole, its data set deserves a look.
    """

    num_images: int
    num_sources: int
    num_partly_read: int
    num_unlisted: int
    problems: list[str]
    shared_pictures: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What agrees, in one sentence, if nothing is wrong."""
        agrees = "agrees" if self.num_images == 1 else "agree"
        agree = f"{count(self.num_images, 'image')} {agrees} with the manifest"
        agree += f", and {count(self.num_sources, 'source file')}" if self.num_sources else ""
        if self.num_partly_read:
            agree += f" ({self.num_partly_read:,} of them in part, the rest was never read)"
        agree += f"; in the cache but not in exams.csv: {self.num_unlisted}" if self.num_unlisted else ""
        return agree


class _Item(NamedTuple):
    """A prepared image as the manifest knows it, its place in the pack, and where its files are."""

    row: int
    patient_id: str
    image_id: str
    image_sha256: str
    source_bytes: int
    bytes_read: int
    source_sha256: str
    source_etag: str
    path: Path
    source: ImagePath | None


@dataclass(frozen=True)
class _Check:
    """What each image is compared with, besides the manifest.

    Attributes:
        settings: how the images were made.
        pack: the pack, if it is there and current.
        data: the folder of the source files, if they are to be read.
    """

    settings: PrepareSettings
    pack: Path | None
    data: Place | None


def verify(
    cache: Cache, data: Place | None, *, workers: int, on_image: Callable[[int], None] = lambda _: None
) -> Verification:
    """Compares images, tables and pack of a cache with its manifest, and with `data` where that is given.

    Raises:
        UserError: if the cache is not finished, or a table of cache or data cannot be read.
        FolderInUse: if another process works in the cache, be it from the beginning or meanwhile.
    """
    settings = cache.settings()
    require_unlocked(cache.folder)
    manifest, exams = cache.read_manifest(), cache.read_exams(prepared_only=False)
    problems = [
        *_find_remains(cache),
        *_compare_tables(cache, manifest, exams),
        *_find_strays(cache, manifest),
    ]
    pack_problem = find_pack_problem(cache)
    problems += [pack_problem] if pack_problem else []
    if data is not None:
        problems += _compare_exams(exams, data, settings.split)
    pack = pack_path(cache) if seal_path(cache).exists() and not pack_problem else None
    checked = _select_complete(manifest)
    items = _list_items(cache, checked, data, settings.split)
    problems += _check_images(items, _Check(settings.prepare, pack, data), workers, on_image)
    require_unlocked(cache.folder)
    return Verification(
        num_images=len(checked),
        num_sources=len(checked) if data else 0,
        num_partly_read=int((checked["bytes_read"] < checked["source_bytes"]).sum()) if data else 0,
        num_unlisted=len(_ids(manifest) - _ids(exams)),
        problems=problems,
        shared_pictures=find_shared_pictures(manifest, exams).describe(),
    )


def _ids(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(table["patient_id"], table["image_id"], strict=True))


# The cache against itself


def _find_remains(cache: Cache) -> Iterator[str]:
    """Looks for what a killed command left."""
    remains = [cache.journal.path] if cache.journal.path.exists() else []
    remains += find_temporaries(cache.folder)
    for path in remains:
        name = path.relative_to(cache.folder)
        yield f"{name} was left by a command that was broken off: run that `mammo prepare` command again"


def _compare_tables(cache: Cache, manifest: pd.DataFrame, exams: pd.DataFrame) -> Iterator[str]:
    """Checks that each image has one row where it belongs."""
    again = "run the `mammo prepare` command of this cache again"
    for patient_id, image_id in sorted(_ids(manifest[manifest["image_id"].duplicated()])):
        yield f"{patient_id}/{image_id}: more than one row in manifest.csv; {again}"
    for patient_id, image_id in sorted(_ids(exams) - _ids(manifest)):
        yield f"{patient_id}/{image_id}: a row in exams.csv and none in manifest.csv; {again}"
    for patient_id, image_id in sorted(_ids(manifest[~manifest["status"].isin([PREPARED, FAILED])])):
        yield f"{patient_id}/{image_id}: neither prepared nor failed in manifest.csv; {again}"
    prepared = select_prepared(manifest)
    for _, row in prepared[prepared[NEEDED_COLUMNS].isna().any(axis="columns")].iterrows():
        empty = ", ".join(name for name in NEEDED_COLUMNS if pd.isna(row[name]))
        yield f"{row['patient_id']}/{row['image_id']}: no {empty} in manifest.csv; {again}"
    failed, failures = _ids(manifest[manifest["status"] == FAILED]), _ids(cache.read_failures())
    for patient_id, image_id in sorted(failed - failures):
        yield f"{patient_id}/{image_id}: failed in manifest.csv and no row in failures.csv; {again}"
    for patient_id, image_id in sorted(failures - failed):
        yield f"{patient_id}/{image_id}: a row in failures.csv and not failed in manifest.csv; {again}"


def _find_strays(cache: Cache, manifest: pd.DataFrame) -> Iterator[str]:
    """Looks for files that are not prepared images; after a broken-off run they may become one."""
    way_out = "" if cache.journal.path.exists() else "; remove it"
    known = set(cache.image_paths(select_prepared(manifest)))
    for folder, _, names in sorted(os.walk(cache.folder / "images")):
        for path in sorted(Path(folder, name) for name in names):
            if path not in known and not is_temporary(path):
                yield f"{path.relative_to(cache.folder)} is not a prepared image of manifest.csv{way_out}"


# The cache against the data folder


def _compare_exams(exams: pd.DataFrame, data: Place, split: Split) -> Iterator[str]:
    """Checks that the rows are those of the data's CSV, which may have more rows and columns."""
    ours, theirs = exams.set_index(ID_COLUMNS), read_exams(data, split).set_index(ID_COLUMNS)
    is_known = ours.index.isin(theirs.index)
    for patient_id, image_id in ours.index[~is_known]:
        yield f"{patient_id}/{image_id}: no row in {data / f'{split}.csv'} any more"
    ours = ours[is_known]
    theirs = theirs.reindex(columns=ours.columns).loc[ours.index]
    differs = ours.astype("str").ne(theirs.astype("str")) & ~(ours.isna() & theirs.isna())
    for (patient_id, image_id), row in differs[differs.any(axis="columns")].iterrows():  # type: ignore[misc]
        names = " and ".join(row.index[row])
        yield f"{patient_id}/{image_id}: another {names} in {data / f'{split}.csv'}; prepare again"


# Each image


def _select_complete(manifest: pd.DataFrame) -> pd.DataFrame:
    """Returns the prepared images that have all checksums, indexed by their row in a pack."""
    prepared = select_prepared(manifest).reset_index(drop=True)
    return prepared[prepared[CHECKSUMS].notna().all(axis="columns")]


def _list_items(cache: Cache, images: pd.DataFrame, data: Place | None, split: Split) -> Iterable[_Item]:
    sources = [None] * len(images) if data is None else list(locate_images(images, data, split))
    names = [*ID_COLUMNS, *CHECKSUMS, ETAG]
    columns = [images.index.tolist(), *(images[name].tolist() for name in names)]
    return map(_Item, *columns, cache.image_paths(images), sources)


def _check_images(
    items: Iterable[_Item], check: _Check, workers: int, on_image: Callable[[int], None]
) -> list[str]:
    """Returns the problems in the manifest's order."""
    problems: dict[int, list[str]] = {}
    for outcome in map_unordered(partial(_find_problems, check), items, workers=workers):
        item, found = outcome.item, outcome.result
        if found is None:
            found = [f"could not be checked, {outcome.message}; use fewer --workers"]
        problems[item.row] = [f"{item.patient_id}/{item.image_id}: {problem}" for problem in found]
        on_image(1)
    return [problem for row in sorted(problems) for problem in problems[row]]


def _find_problems(check: _Check, item: _Item) -> list[str]:
    problems = [] if check.data is None else list(_compare_source(item, check.data))
    try:
        image = read_exactly(item.path, item.image_sha256, check.settings)
    except UserError as error:
        return [*problems, str(error)]
    if check.pack is not None and not np.array_equal(map_array(check.pack)[item.row], image):
        problems.append(f"another image in {check.pack.name}; run the `mammo pack` command again")
    return problems


def _compare_source(item: _Item, data: Place) -> Iterator[str]:
    if item.source is None:
        yield f"no source file in {data} any more"
        return
    way_out = f"put the old one back, or remove {item.path} and prepare again"
    try:
        num_bytes = _count_bytes(item.source)
        if num_bytes != item.source_bytes:
            yield f"{item.source} has {num_bytes} bytes and had {item.source_bytes}; {way_out}"
        elif _hash_start(item.source, item.bytes_read) != item.source_sha256:
            yield f"{item.source} is not the file that was prepared; {way_out}"
        elif _is_maybe_another(item, item.source):
            yield (
                f"{item.source} is another version than was prepared (by its ETag); the {item.bytes_read} "
                f"bytes that were read are the same, the rest was not read; {way_out}"
            )
    except OSError as error:
        yield f"{item.source} cannot be read ({error.strerror}); see to it and verify again"


def _count_bytes(path: ImagePath) -> int:
    return path.size if isinstance(path, RemoteFile) else path.stat().st_size


def _is_maybe_another(item: _Item, source: ImagePath) -> bool:
    """Whether the part that nobody read may have changed, by what the store says."""
    if not isinstance(source, RemoteFile) or item.bytes_read == item.source_bytes:
        return False
    return item.source_etag not in {"", source.etag}


def _hash_start(path: ImagePath, num_bytes: int) -> str:
    """Returns the SHA-256 of a file's first bytes."""
    if isinstance(path, RemoteFile):
        return hashlib.sha256(Download(path).read(0, num_bytes)).hexdigest()
    digest = hashlib.sha256()
    with open_input(path) as stream:
        while num_bytes > 0 and (chunk := stream.read(min(num_bytes, CHUNK_BYTES))):
            digest.update(chunk)
            num_bytes -= len(chunk)
    return digest.hexdigest()
