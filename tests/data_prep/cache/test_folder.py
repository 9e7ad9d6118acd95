"""The cache folder: images, tables, and the outcomes that a killed run leaves in its journal."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pytest

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import read_image, write_image
from data_prep.cache.tables import FAILURE_COLUMNS, MANIFEST_COLUMNS, TIMING_COLUMNS, is_whole
from data_prep.errors import UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.atomic import TEMPORARY_PREFIX

SETTINGS = CacheSettings(split="train", prepare=PrepareSettings(side=32))


def success(image_id: str, patient_id: str = "7") -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS, 1) | {
        "source_mtime_ns": 2**62 + 1,
        "seconds": 0.25,
    }
    return values | {"patient_id": patient_id, "image_id": image_id, "scale_x": 1 / 3, "flipped": True}


def failure(image_id: str, patient_id: str = "7") -> dict[str, Any]:
    message = 'a "quoted" word, and a comma'
    return {"patient_id": patient_id, "image_id": image_id, "reason": "truncated", "message": message}


def by_id(*records: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {record["image_id"]: record for record in records}


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str, "image_id": str})


def test_an_image_comes_back_as_it_was_written(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    path = tmp_path / "new" / "70.png"
    write_image(path, image)
    np.testing.assert_array_equal(read_image(path), image)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_a_missing_or_damaged_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "70.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"70\.png .*mammo prepare"):
        read_image(path)


def jpeg_2000() -> bytes:
    return imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), codecformat="jp2")


def colour_png() -> bytes:
    return cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def huge_png() -> bytes:
    """Says that it is 32,000 pixels wide and high, in 70 bytes."""
    content = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    header = b"IHDR" + struct.pack(">2I", 32_000, 32_000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize(
    "content", [".bmp", ".jpg", ".tiff", ".webp", jpeg_2000(), colour_png(), huge_png()], ids=range(7)
)
def test_what_prepare_does_not_write_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    path = tmp_path / "70.png"
    path.write_bytes(
        cv2.imencode(content, np.zeros((8, 8), np.uint8))[1] if isinstance(content, str) else content
    )
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"70\.png is damaged"):
        read_image(path)


def test_tables_hold_every_outcome_in_id_order(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    records = [success("100"), failure("9"), success("20", "12"), success("3", "12"), failure("11", "a")]
    cache.write_tables(by_id(*records))
    manifest, failures = table(cache.manifest_path), table(cache.failures_path)
    assert list(manifest) == MANIFEST_COLUMNS
    assert list(failures) == FAILURE_COLUMNS
    assert list(table(cache.timings_path)) == TIMING_COLUMNS
    assert manifest["image_id"].tolist() == table(cache.timings_path)["image_id"].tolist()
    assert dict(zip(manifest["image_id"], manifest["status"], strict=True)) == {
        "100": "prepared",
        "9": "failed",
        "3": "prepared",
        "20": "prepared",
        "11": "failed",
    }
    assert failures["image_id"].tolist() == ["9", "11"] or failures["image_id"].tolist() == ["11", "9"]
    assert failures["message"].unique().tolist() == ['a "quoted" word, and a comma']
    prepared = manifest[manifest["status"] == "prepared"]
    assert not prepared.isna().any().any()
    assert prepared["scale_x"].tolist() == [1 / 3] * 3


def test_tables_that_are_read_and_written_again_keep_every_byte(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write_tables(by_id(success("100"), failure("9"), success("20")))
    paths = (cache.manifest_path, cache.failures_path, cache.timings_path)
    before = [path.read_bytes() for path in paths]
    cache.write_tables(cache.read_records())
    assert [path.read_bytes() for path in paths] == before


def test_the_journal_overrules_the_tables_until_they_are_written(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write_tables(by_id(success("1"), failure("2"), success("3")))
    cache.journal.append(failure("1"))
    cache.journal.append(success("2"))
    records = cache.read_records()
    assert "reason" in records["1"]
    assert "reason" not in records["2"]
    cache.write_tables(records)
    assert not cache.journal.path.exists()
    assert table(cache.manifest_path)["status"].tolist() == ["failed", "prepared", "prepared"]
    assert table(cache.failures_path)["image_id"].tolist() == ["1"]


def test_no_images_make_empty_tables(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write_tables({})
    assert cache.read_records() == {}
    assert list(table(cache.manifest_path)) == MANIFEST_COLUMNS


def test_a_folder_keeps_its_settings_and_refuses_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.open_for(SETTINGS)
    cache.open_for(SETTINGS)
    assert cache.settings() == SETTINGS
    other = CacheSettings(split="test", prepare=PrepareSettings(side=64))
    with pytest.raises(UserError) as error:
        cache.open_for(other)
    for part in ("split is train, not test", "prepare.side is 32, not 64", "--cache"):
        assert part in str(error.value)
    assert cache.settings() == SETTINGS


def test_only_prepared_images_are_exams_to_train_on(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.open_for(SETTINGS)
    exams = pd.DataFrame(
        {"patient_id": ["7", "7"], "image_id": ["70", "71"], "laterality": ["L", "R"], "cancer": [0, 1]}
    )
    cache.write_exams(exams)
    with pytest.raises(UserError, match="not finished"):
        cache.read_exams()
    cache.write_tables(by_id(success("70"), failure("71")))
    assert cache.read_exams()["image_id"].tolist() == ["70"]
    assert cache.read_exams(prepared_only=False)["image_id"].tolist() == ["70", "71"]
    assert cache.image_paths(cache.read_exams()) == [tmp_path / "images/7/70.png"]


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a cache.*mammo prepare"):
        Cache(tmp_path / "absent").read_exams()


@pytest.mark.parametrize("name", ["notes.txt", "train.csv", ".tmp-12-notes.txt", "images"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "images" else (tmp_path / name).write_text("mine")
    with pytest.raises(
        UserError, match=rf"is not a cache and holds {name}: name an empty or new folder as --cache"
    ):
        Cache(tmp_path).open_for(SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_first_command_leaves_that_is_broken_off_at_once_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 7 on here")
    (tmp_path / f"{TEMPORARY_PREFIX}7-settings.toml").write_text("[prep")
    Cache(tmp_path).open_for(SETTINGS)
    assert Cache(tmp_path).settings() == SETTINGS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "setting split is missing; setting prepare is missing"), ("split = = 2", "cannot be read as TOML")],
)
def test_damaged_settings_are_one_sentence_with_a_way_out(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(
        UserError, match=rf"{sentence}.*; remove .* and run its `mammo prepare` command again"
    ):
        Cache(tmp_path).settings()


def finished(folder: Path) -> Cache:
    """A cache of one prepared and one failed image."""
    cache = Cache(folder)
    cache.open_for(SETTINGS)
    rows = {"patient_id": ["7", "7"], "image_id": ["70", "71"], "laterality": ["L", "R"], "cancer": [0, 1]}
    cache.write_exams(pd.DataFrame(rows))
    cache.write_tables(by_id(success("70"), failure("71")))
    return cache


def cut_a_column_off(content: bytes) -> bytes:
    return b"\n".join(line.partition(b",")[2] for line in content.splitlines())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "binary": lambda _: bytes(range(256)),
    "empty": lambda _: b"",
    "no column": cut_a_column_off,
    "cut": lambda content: content[: content.rstrip().rfind(b"7")],
    "open quote": lambda content: content + b'7,"72',
}
READERS: dict[str, Callable[[Cache], object]] = {
    "manifest.csv": lambda cache: cache.read_manifest(),
    "failures.csv": lambda cache: cache.read_failures(),
    "exams.csv": lambda cache: cache.read_exams(),
    "timings.csv": lambda cache: cache.read_records(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_table_is_one_sentence_with_a_way_out(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    cache = finished(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    readers = [READERS[name]] if name == "exams.csv" else [READERS[name], READERS["timings.csv"]]
    for read in readers:
        with pytest.raises(UserError, match=rf"{name} is damaged: remove it and run the `mammo prepare`"):
            read(cache)


def test_a_cell_that_is_no_number_is_found_before_the_work(tmp_path: Path) -> None:
    cache = finished(tmp_path)
    text = cache.manifest_path.read_text()
    cache.manifest_path.write_text(text.replace(str(1 / 3), "a third"))
    with pytest.raises(UserError, match=r"manifest\.csv is damaged"):
        cache.read_records()


@pytest.mark.parametrize("record", [{}, {"image_id": "70"}, {"image_id": [], "patient_id": "7"}])
def test_a_journal_of_something_else_is_one_sentence(tmp_path: Path, record: dict[str, Any]) -> None:
    cache = finished(tmp_path)
    cache.journal.append(record)
    with pytest.raises(UserError, match=r"journal\.jsonl is damaged"):
        cache.read_records()


@pytest.mark.parametrize("column", ["level", "box_left", "scale_x", "image_sha256", "laterality"])
def test_an_image_whose_row_lost_a_cell_is_not_whole(tmp_path: Path, column: str) -> None:
    cache = finished(tmp_path)
    rows = pd.read_csv(cache.manifest_path, dtype=str, keep_default_na=False)
    rows.loc[rows["image_id"] == "70", column] = ""
    rows.to_csv(cache.manifest_path, index=False)
    records = cache.read_records()
    assert (is_whole(records["70"]), is_whole(records["71"])) == (False, True)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "No such file"), "cannot be read, it is missing: run the `mammo prepare`"),
        (
            PermissionError(13, "Permission denied"),
            r"cannot be read \(Permission denied\): remove it and run",
        ),
    ],
)
def test_an_image_that_cannot_be_read_has_a_way_out_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, sentence: str
) -> None:
    def refuse(_: Path) -> NoReturn:
        raise error

    monkeypatch.setattr("data_prep.cache.images.read_own", refuse)
    with pytest.raises(UserError, match=sentence):
        read_image(tmp_path / "70.png")
