"""Verification: a sound cache has no problem, and each thing that is planted is named."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import pack_path, seal_path, write_image
from data_prep.cache.pack import write_pack
from data_prep.cache.tables import ADDED_COLUMNS, is_whole
from data_prep.cache.verify import Verification, verify
from data_prep.errors import FolderInUse, UserError
from data_prep.imageio.dicom import open_dicom
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.storage.atomic import TEMPORARY_PREFIX
from data_prep.storage.locks import locked
from tests.data_prep.cache_folder import Made, edit, make_cache, make_image
from tests.data_prep.data_folder import copy_data, find_image, prepare_folder, spoil


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Six images with a pack; 13 failed, and 12 was read at its start alone."""
    made = make_cache(tmp_path)
    write_pack(made.cache, workers=0)
    return made


def check(made: Made, *, workers: int = 0) -> list[str]:
    return verify(made.cache, made.data, workers=workers).problems


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file with its time and content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def drop(image_id: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table[table["image_id"] != image_id]


def put(where: str, /, **cells: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["image_id"] == where, list(cells)] = list(cells.values())
        return table

    return change


def rename_column(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns={"image_sha256": "checksum"})


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


# Sound


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_cache_has_no_problem_and_stays_as_it_is(
    tmp_path: Path, bit_depth: int, workers: int
) -> None:
    made = make_cache(tmp_path, bit_depth=bit_depth)
    write_pack(made.cache, workers=0)
    before, heard = everything(tmp_path), []
    found = verify(made.cache, made.data, workers=workers, on_image=heard.append)
    assert found == Verification(num_images=5, num_sources=5, num_partly_read=1, num_unlisted=0, problems=[])
    assert heard == [1] * 5
    assert everything(tmp_path) == before


def test_neither_pack_nor_data_nor_lock_is_needed(tmp_path: Path) -> None:
    made = make_cache(tmp_path)
    shutil.rmtree(made.data)
    found = verify(made.cache, None, workers=0)
    assert found == Verification(num_images=5, num_sources=0, num_partly_read=0, num_unlisted=0, problems=[])
    assert not (made.cache.folder / ".lock").exists()


def test_a_cache_of_some_of_the_patients_is_sound(made: Made) -> None:
    def add_patients(table: pd.DataFrame) -> pd.DataFrame:
        more = table.assign(patient_id="9" + table["patient_id"], image_id="9" + table["image_id"])
        return pd.concat([more, table])

    edit(made.data / "train.csv", add_patients)
    assert check(made) == []


def test_images_of_an_earlier_command_for_more_patients_are_counted_and_checked(made: Made) -> None:
    edit(made.cache.exams_path, drop("15"))
    found = verify(made.cache, made.data, workers=0)
    assert (found.num_unlisted, found.problems) == (1, [])
    assert "; in the cache but not in exams.csv: 1" in found.summary
    made.png("15").unlink()
    assert len(check(made)) == 1


def test_all_that_failed_is_sound_too(tmp_path: Path) -> None:
    made = make_cache(tmp_path, num_images=1, failed="10")
    assert verify(made.cache, made.data, workers=0).num_images == 0
    assert check(made) == []


def test_the_unread_rest_of_a_source_is_not_known(made: Made) -> None:
    flip_bit(made.source("12"), 39)
    assert len(check(made)) == 1
    flip_bit(made.source("12"), 39)
    flip_bit(made.source("12"), 40)
    assert check(made) == []


def test_the_summary_says_what_was_compared(made: Made) -> None:
    assert verify(made.cache, None, workers=0).summary == "5 images agree with the manifest"
    whole = verify(made.cache, made.data, workers=0).summary
    assert (
        whole
        == "5 images agree with the manifest, and 5 source files (1 of them in part, the rest was never read)"
    )


@pytest.mark.parametrize("read", ["whole", "prefix"])
def test_what_prepare_leaves_is_sound(data: Path, tmp_path: Path, read: Literal["whole", "prefix"]) -> None:
    """With a file that fails; and again after a second command for fewer patients."""
    data = copy_data(data, tmp_path / "data")
    spoil(data, "104")
    settings = CacheSettings(split="train", prepare=PrepareSettings(side=32, codecs=CodecSettings(read=read)))
    prepare_folder(data, tmp_path / "cache", settings=settings)
    cache = Cache(tmp_path / "cache")
    assert verify(cache, data, workers=0).problems == []
    write_pack(cache, workers=0)
    edit(data / "train.csv", drop("90"))
    prepare_folder(data, tmp_path / "cache", settings=settings)
    found = verify(cache, data, workers=0)
    assert (found.num_images, found.num_unlisted, found.problems) == (7, 1, [])


# Each thing that can be wrong

OTHER = np.zeros((16, 16), np.uint8)
DEEP = np.zeros((16, 16), np.uint16)
PLANTED: dict[str, tuple[Callable[[Made], object], list[str]]] = {
    "image gone": (lambda made: made.png("11").unlink(), ["1/11: .*11.png cannot be read"]),
    "image cut": (lambda made: cut(made.png("11"), 30), ["1/11: .*11.png"]),
    "image of another": (
        lambda made: shutil.copy(made.png("10"), made.png("11")),
        ["1/11: .*is not the image"],
    ),
    "image with a bit flipped": (lambda made: flip_bit(made.png("11"), -20), ["1/11: .*11.png"]),
    "bytes after the image": (
        lambda made: lengthen(made.png("11")),
        ["1/11: .*is not the image"],
    ),
    "failed image with a PNG": (
        lambda made: write_image(made.png("13"), OTHER),
        ["images/2/13.png is not a prepared image of manifest.csv; remove it"],
    ),
    "unknown image": (
        lambda made: write_image(made.png("99"), OTHER),
        ["images/45/99.png is not a prepared image"],
    ),
    "other file": (
        lambda made: (made.cache.folder / "images/Thumbs.db").write_text(""),
        ["images/Thumbs.db is not a prepared image of manifest.csv; remove it"],
    ),
    "temporary file": (
        lambda made: (made.cache.folder / f"images/1/{TEMPORARY_PREFIX}7-11.png").write_text(""),
        [f"images/1/{TEMPORARY_PREFIX}7-11.png was left by .* broken off"],
    ),
    "journal": (
        lambda made: made.cache.journal.append({"image_id": "10"}),
        ["journal.jsonl was left by a command that was broken off: run that `mammo prepare` command again"],
    ),
    "row of the manifest gone": (
        lambda made: edit(made.cache.manifest_path, drop("11")),
        [
            "1/11: a row in exams.csv and none in manifest.csv",
            "images/1/11.png is not a prepared",
            "images.npy is no",
        ],
    ),
    "row of the manifest twice": (
        lambda made: edit(made.cache.manifest_path, lambda table: pd.concat([table, table.tail(1)])),
        ["3/15: more than one row in manifest.csv", "images.npy is not a whole pack"],
    ),
    "other patient in the manifest": (
        lambda made: edit(made.cache.manifest_path, put("13", patient_id="3")),
        [
            "2/13: a row in exams.csv and none",
            "3/13: failed in manifest.csv",
            "2/13: a row in failures",
            "npy",
        ],
    ),
    "odd status": (
        lambda made: edit(made.cache.manifest_path, put("13", status="done")),
        [
            "2/13: neither prepared nor failed",
            "2/13: a row in failures.csv and not failed",
            "images.npy is no",
        ],
    ),
    "no checksum": (
        lambda made: edit(made.cache.manifest_path, put("11", source_sha256="")),
        ["1/11: no source_sha256 in manifest.csv; run the `mammo prepare`", "images.npy is not a whole"],
    ),
    "no geometry": (
        lambda made: edit(made.cache.manifest_path, put("11", rows="", level="", box_left="", scale_x="")),
        ["1/11: no rows, level, box_left, scale_x in manifest.csv; run the `mammo pr", "images.npy is no"],
    ),
    "failure without a row": (
        lambda made: edit(made.cache.failures_path, drop("13")),
        ["2/13: failed in manifest.csv and no row in failures.csv"],
    ),
    "failure of a prepared image": (
        lambda made: edit(made.cache.failures_path, put("13", image_id="12")),
        ["2/13: failed in manifest.csv and no row", "2/12: a row in failures.csv and not failed"],
    ),
    "source gone": (lambda made: made.source("14").unlink(), ["3/14: no source file in .*data any more"]),
    "source longer": (
        lambda made: lengthen(made.source("14")),
        ["3/14: .* has 101 bytes and had 100"],
    ),
    "source with a bit flipped": (
        lambda made: flip_bit(made.source("14"), 99),
        ["3/14: .*14.dcm is not the file that was prepared; put the old one back, or remove .*14.png"],
    ),
    "other label": (
        lambda made: edit(made.data / "train.csv", put("14", cancer="0", laterality="R")),
        ["3/14: another laterality and prediction_id and cancer in .*train.csv; prepare again"],
    ),
    "row of the data gone": (
        lambda made: edit(made.data / "train.csv", drop("14")),
        ["3/14: no row in .*train.csv"],
    ),
    "pack without a seal": (lambda made: seal_path(made.cache).unlink(), ["images.npy is not a whole pack"]),
    "seal without a pack": (lambda made: pack_path(made.cache).unlink(), ["images.npy is not a whole pack"]),
    "seal of another manifest": (
        lambda made: seal_path(made.cache).write_text(json.dumps({"manifest_sha256": "0", "num_images": 5})),
        ["images.npy is not a whole pack of this manifest and is not used: run `mammo pack` again"],
    ),
    "pack cut": (lambda made: cut(pack_path(made.cache), 700), ["images.npy is damaged"]),
    "pack of another form": (
        lambda made: np.save(pack_path(made.cache), np.zeros((5, 16, 16), np.uint16)),
        [r"images.npy is uint16 \[5, 16, 16\], not uint8 \[5, 16, 16\]"],
    ),
    "pack with another image": (
        lambda made: flip_bit(pack_path(made.cache), -1),
        ["3/15: another image in images.npy; run the `mammo pack` command again"],
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_each_problem_is_named_and_nothing_else(made: Made, planted: str) -> None:
    plant, expected = PLANTED[planted]
    plant(made)
    problems = check(made)
    assert len(problems) == len(expected), problems
    for problem, pattern in zip(problems, expected, strict=True):
        assert pd.Series([problem]).str.contains(pattern).all(), (problem, pattern)
        assert "\n" not in problem


def test_a_damaged_image_leaves_the_terminal_alone(made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    flip_bit(made.png("11"), 60)
    cut(made.png("10"), 200)
    assert len(check(made)) == 2
    assert capfd.readouterr().err == ""


def test_an_image_of_another_form_is_named(tmp_path: Path) -> None:
    made = make_cache(tmp_path)
    checksum = write_image(made.png("11"), DEEP)
    edit(made.cache.manifest_path, put("11", image_sha256=checksum))
    (problem,) = check(made)
    assert "1/11: " in problem
    assert "is uint16 [16, 16] where settings.toml says 8 bits and side 16" in problem


def test_all_problems_come_in_the_manifests_order_whatever_the_workers(made: Made) -> None:
    for image_id in ("15", "10", "12"):
        made.png(image_id).unlink()
        flip_bit(made.source(image_id), 0)
    problems = check(made)
    assert [problem.split(":")[0] for problem in problems] == ["1/10", "1/10", "2/12", "2/12", "3/15", "3/15"]
    assert check(made, workers=2) == problems


def test_images_of_a_run_that_was_broken_off_are_not_to_be_removed(made: Made) -> None:
    made.cache.journal.append({"image_id": "99"})
    write_image(made.png("99"), make_image("99"))
    problems = check(made)
    assert "broken off: run that `mammo prepare` command again" in problems[0]
    assert problems[1:] == ["images/45/99.png is not a prepared image of manifest.csv"]


# What cannot be verified


def test_somebody_who_works_in_the_cache_is_named(made: Made) -> None:
    with locked(made.cache.folder), pytest.raises(FolderInUse, match=f"process {os.getpid()} on "):
        check(made)


def test_somebody_who_began_meanwhile_is_named(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, num_images=1).cache
    with ExitStack() as held, pytest.raises(FolderInUse):
        verify(cache, None, workers=0, on_image=lambda _: held.enter_context(locked(cache.folder)))


def test_a_cache_that_is_not_finished_is_refused(made: Made) -> None:
    made.cache.manifest_path.unlink()
    with pytest.raises(UserError, match="is not finished: run the same `mammo prepare` command again"):
        check(made)


@pytest.mark.parametrize(
    "change",
    [put("11", rows="many"), put("11", image_id=""), rename_column, lambda table: table.iloc[:, :0]],
    ids=["text", "no id", "no column", "empty"],
)
def test_a_damaged_manifest_is_one_sentence(
    made: Made, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    edit(made.cache.manifest_path, change)
    with pytest.raises(UserError, match=r"manifest\.csv is damaged: remove it and run"):
        check(made)


@pytest.mark.parametrize("name", ["failures.csv", "exams.csv"])
def test_a_table_that_is_gone_is_a_user_error(made: Made, name: str) -> None:
    (made.cache.folder / name).unlink()
    with pytest.raises(UserError):
        check(made)


def test_a_folder_that_is_not_the_data_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train\.csv"):
        verify(made.cache, tmp_path, workers=0)


def test_flipped_bits_within_a_codestream_are_found_though_every_decoder_takes_them(
    data: Path, tmp_path: Path
) -> None:
    data = copy_data(data, tmp_path / "data")
    prepare_folder(data, tmp_path / "cache")
    path = find_image(data, "97")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(len(content) // 2, len(content) - 100, 20):
        content[place] ^= 0x10
    path.write_bytes(content)
    os.utime(path, ns=times)
    assert open_dicom(path).read_frame().pixels.any()  # it decodes, and prepare sees size and time alone
    (problem,) = verify(Cache(tmp_path / "cache"), data, workers=0).problems
    assert "97.dcm" in problem


def test_a_cache_of_an_older_version_opens_verifies_and_goes_on(made: Made) -> None:
    """Its manifest lacks the columns on turned pictures, on pixels that are not square, and on patches."""
    pack_path(made.cache).unlink()  # which is one of this very manifest
    seal_path(made.cache).unlink()
    made_now = made.cache.read_manifest()
    edit(made.cache.manifest_path, lambda table: table.drop(columns=list(ADDED_COLUMNS)))
    made_now["patches"] = pd.Series(pd.NA, made_now.index, dtype="Int64")  # nobody has counted them
    pd.testing.assert_frame_equal(made.cache.read_manifest(), made_now)
    assert check(made) == []
    before = made.cache.manifest_path.read_bytes()
    records = made.cache.read_records()
    prepared = [record for record in records.values() if record["status"] == "prepared"]
    assert all(is_whole(record) and record["turned"] == "0" for record in prepared)
    made.cache.write_tables(records)
    assert made.cache.manifest_path.read_bytes() != before
    pd.testing.assert_frame_equal(made.cache.read_manifest(), made_now)
