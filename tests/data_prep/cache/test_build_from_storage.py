"""`prepare` and `verify` with the data in object storage: the same cache, from few bytes and requests."""

import hashlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache
from data_prep.cache.tables import ETAG, MANIFEST_COLUMNS
from data_prep.cache.verify import verify
from data_prep.imageio import codecs
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images
from data_prep.storage.places import Url
from tests.data_prep.data_folder import SETTINGS, find_image, prepare_folder, snapshot
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image
from tests.object_store import BUCKET, Store

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
OF_THE_SOURCE = ["bytes_read", "source_sha256", ETAG]


@pytest.fixture
def url(store: Store, data: Path) -> Url:
    """The folder of eight images in the store."""
    store.upload(data)
    return Url(store.s3)


def read_manifest(cache: Path) -> pd.DataFrame:
    return pd.read_csv(cache / "manifest.csv", dtype=str)


def key_of(data: Path, image_id: str) -> str:
    return f"data/{find_image(data, image_id).relative_to(data)}"


def assert_equal(ours: Path, theirs: Path) -> None:
    """All files but what the manifest says of the sources."""
    ours_files, theirs_files = snapshot(ours), snapshot(theirs)
    assert ours_files.pop("manifest.csv") != theirs_files.pop("manifest.csv")
    assert ours_files == theirs_files
    tables = [read_manifest(cache).drop(columns=OF_THE_SOURCE, errors="ignore") for cache in (ours, theirs)]
    pd.testing.assert_frame_equal(*tables)


@cache
def encode_large(syntax: str) -> bytes:
    """The file of an image of 2000 x 1400 pixels."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        return write_dicom(path, make_breast(2000, 1400), transfer_syntax=syntax, **WINDOW).read_bytes()


def write_large(data: Path, **syntaxes: str) -> Path:
    """A folder with one image of 2000 x 1400 pixels per transfer syntax, named so."""
    lines = ["patient_id,image_id,laterality,cancer"]
    for image_id, syntax in syntaxes.items():
        path = data / f"train_images/1/{image_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_large(syntax))
        lines.append(f"1,{image_id},L,0")
    (data / "train.csv").write_text("\n".join(lines) + "\n")
    return data


# The same cache


@pytest.mark.parametrize(("protocol", "workers"), [("s3", 0), ("s3", 1), ("http", 0)])
def test_the_cache_is_that_of_the_folder(
    store: Store, url: Url, prepared: Path, tmp_path: Path, protocol: str, workers: int
) -> None:
    summary = prepare_folder(Url(getattr(store, protocol)), tmp_path / "cache", workers=workers)
    assert (summary.num_prepared, summary.num_failed) == (8, 0)
    assert_equal(tmp_path / "cache", prepared)
    assert list(read_manifest(tmp_path / "cache")) == [*MANIFEST_COLUMNS, ETAG]
    assert read_manifest(tmp_path / "cache")[ETAG].notna().all()


def test_the_manifest_tells_the_version_that_was_prepared(
    store: Store, url: Url, data: Path, tmp_path: Path
) -> None:
    prepare_folder(url, tmp_path / "cache")
    for row in read_manifest(tmp_path / "cache").itertuples():
        head = store.client.head_object(Bucket=BUCKET, Key=key_of(data, row.image_id))
        assert (row.source_bytes, row.source_etag) == (str(head["ContentLength"]), head["ETag"].strip('"'))


def test_nothing_but_the_table_the_listings_and_the_images_is_asked_for(
    store: Store, url: Url, tmp_path: Path
) -> None:
    store.put("data/train_images/5/unasked.dcm", b"12")
    store.forget()
    prepare_folder(url, tmp_path / "cache")
    assert store.count("GET", ".dcm") + store.count("GET", ".png") == 8
    assert store.count("GET", f"/{BUCKET}") == 4, "one listing per patient"
    assert store.count("GET", "unasked.dcm") == 0
    assert store.count("GET", "train.csv") == 1


def test_of_jpeg_2000_no_more_is_read_than_is_decoded(store: Store, tmp_path: Path) -> None:
    syntaxes = {"j2k": codecs.JPEG_2000_LOSSLESS, "htj2k": codecs.HTJ2K_LOSSLESS_RPCL}
    syntaxes |= {"jpeg": codecs.JPEG_LOSSLESS_SV1, "raw": codecs.EXPLICIT_VR_LITTLE_ENDIAN}
    data = write_large(tmp_path / "data", **syntaxes)
    store.upload(data)
    summary = prepare_folder(Url(store.s3), tmp_path / "cache")
    prepare_folder(data, tmp_path / "local")
    assert_equal(tmp_path / "cache", tmp_path / "local")
    manifest = Cache(tmp_path / "cache").read_manifest().set_index("image_id")
    for image_id, row in manifest.iterrows():
        content = find_image(data, str(image_id)).read_bytes()
        assert row["source_sha256"] == hashlib.sha256(content[: row["bytes_read"]]).hexdigest()
        assert row["source_bytes"] == len(content)
        is_part = image_id in {"j2k", "htj2k"}
        assert row["bytes_read"] < 0.25 * len(content) if is_part else row["bytes_read"] == len(content)
        assert store.count("GET", f"/{image_id}.dcm") == (1 if is_part else 2)
    assert summary.remote_bytes == manifest["source_bytes"].sum()
    assert summary.received_bytes == manifest["bytes_read"].sum()
    sent = store.num_bytes - store.count("GET", f"/{BUCKET}") * 10_000
    assert sent < summary.received_bytes + 10_000, "no byte came twice"


def test_a_level_that_needs_more_is_read_on(store: Store, tmp_path: Path) -> None:
    """Full width at half size: more than the first request brings."""
    data = write_large(tmp_path / "data", a=codecs.JPEG_2000_LOSSLESS)
    store.upload(data)
    file = (Url(store.s3) / "train_images" / "1" / "a.dcm").find()
    store.forget()
    image, record = prepare_image(file, PrepareSettings(side=600))
    expected, _ = prepare_image(find_image(data, "a"), PrepareSettings(side=600))
    np.testing.assert_array_equal(image, expected)
    assert record["level"] == 1
    assert 2 <= store.count("GET") <= 3
    assert record["bytes_read"] < record["source_bytes"]


# Once and again


def test_doing_it_again_reads_no_image(store: Store, url: Url, tmp_path: Path) -> None:
    prepare_folder(url, tmp_path / "cache")
    before = snapshot(tmp_path / "cache")
    store.forget()
    summary = prepare_folder(url, tmp_path / "cache")
    assert (summary.num_prepared, summary.remote_bytes) == (0, 0)
    assert snapshot(tmp_path / "cache") == before
    assert store.count("GET", ".dcm") == 0


def test_an_object_that_was_replaced_is_prepared_again(
    store: Store, url: Url, data: Path, tmp_path: Path
) -> None:
    """Be it by one of the same size: the ETag tells."""
    prepare_folder(url, tmp_path / "cache")
    content = find_image(data, "90").read_bytes()
    store.put(key_of(data, "90"), content[:-1] + bytes([content[-1] ^ 1]))
    assert prepare_folder(url, tmp_path / "cache").num_prepared == 1


def test_a_run_that_is_broken_off_goes_on(store: Store, url: Url, prepared: Path, tmp_path: Path) -> None:
    located = require_images(read_exams(url, "train"), url, "train")
    seen = []

    def stop(is_failure: bool) -> None:
        seen.append(is_failure)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(
            located.exams, located.paths, Cache(tmp_path / "cache"), SETTINGS, workers=0, on_image=stop
        )
    store.forget()
    assert prepare_folder(url, tmp_path / "cache").num_prepared == 5
    assert store.count("GET", ".dcm") + store.count("GET", ".png") == 5
    assert_equal(tmp_path / "cache", prepared)


def test_a_cache_of_a_folder_is_not_taken_for_one_of_the_store(
    store: Store, url: Url, data: Path, prepared: Path, tmp_path: Path
) -> None:
    prepare_folder(data, tmp_path / "cache")
    assert prepare_folder(url, tmp_path / "cache").num_prepared == 8
    assert prepare_folder(data, tmp_path / "cache").num_prepared == 8
    assert snapshot(tmp_path / "cache") == snapshot(prepared)


# What goes wrong


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (["403"], "the file cannot be read: the store denies access"),
        (["404"], "the file cannot be read: it is not there"),
        (["503"] * 4, "the file cannot be read: the store answered 503, 4 times"),
    ],
)
def test_an_image_that_cannot_be_had_fails_alone(
    store: Store, url: Url, tmp_path: Path, faults: list[str], sentence: str
) -> None:
    located = require_images(read_exams(url, "train"), url, "train")
    store.faults = list(faults)
    cache = Cache(tmp_path / "cache")
    summary = build_cache(located.exams, located.paths, cache, SETTINGS, workers=0)
    assert (summary.num_prepared, summary.failures) == (7, {"io_error": 1})
    assert cache.read_failures()["message"].tolist() == [sentence]
    assert prepare_folder(url, cache.folder).num_prepared == 1


def test_an_object_that_changes_while_it_is_read_gives_no_mixed_image(store: Store, tmp_path: Path) -> None:
    data = write_large(tmp_path / "data", a=codecs.EXPLICIT_VR_LITTLE_ENDIAN)
    content = find_image(data, "a").read_bytes()
    store.upload(data)
    store.faults = ["", "", "", lambda: store.put("data/train_images/1/a.dcm", content[::-1])]
    summary = prepare_folder(Url(store.s3), tmp_path / "cache")
    assert store.faults == []
    assert summary.failures == {"io_error": 1}
    (message,) = Cache(tmp_path / "cache").read_failures()["message"]
    assert message == "the file cannot be read: it changed while it was read"


# verify


def check(cache: Path, data: Path | Url) -> list[str]:
    return verify(Cache(cache), data, workers=0).problems


def test_verify_compares_what_was_read_and_says_that_it_was_not_all(store: Store, tmp_path: Path) -> None:
    data = write_large(tmp_path / "data", a=codecs.JPEG_2000_LOSSLESS, b=codecs.JPEG_LOSSLESS_SV1)
    store.upload(data)
    prepare_folder(Url(store.s3), tmp_path / "cache")
    store.forget()
    found = verify(Cache(tmp_path / "cache"), Url(store.s3), workers=0)
    assert found.problems == []
    assert "2 source files (1 of them in part, the rest was never read)" in found.summary
    assert store.count("GET", ".dcm") == 2
    assert check(tmp_path / "cache", data) == [], "the folder holds the same files"


def test_verify_sees_what_changed_in_the_store(store: Store, tmp_path: Path) -> None:
    names = dict.fromkeys(["begins", "ends", "longer", "gone"], codecs.JPEG_2000_LOSSLESS)
    data = write_large(tmp_path / "data", **names)
    store.upload(data)
    prepare_folder(Url(store.s3), tmp_path / "cache")
    content = find_image(data, "ends").read_bytes()
    store.put("data/train_images/1/begins.dcm", content[:5000] + b"\0\1\2\3" + content[5004:])
    store.put("data/train_images/1/ends.dcm", content[:-100] + bytes(100))
    store.put("data/train_images/1/longer.dcm", content + bytes(2))
    store.remove("data/train_images/1/gone.dcm")
    problems = {line.split(": ")[0]: line for line in check(tmp_path / "cache", Url(store.s3))}
    assert set(problems) == {f"1/{name}" for name in names}
    assert "is not the file that was prepared" in problems["1/begins"]
    assert "another version than was prepared (by its ETag)" in problems["1/ends"]
    assert "the rest was not read" in problems["1/ends"]
    assert f"{len(content) + 2} bytes and had {len(content)}" in problems["1/longer"]
    assert f"no source file in {store.s3} any more" in problems["1/gone"]
