"""`prepare`: images and tables as promised, bad files put aside, work that is done once."""

import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.build import prepare_dataset
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import read_image
from data_prep.cache.tables import FAILURE_COLUMNS, MANIFEST_COLUMNS, TIMING_COLUMNS
from data_prep.errors import ImageError, UserError
from data_prep.imageio import codecs
from data_prep.imageio.frame import Box
from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.preprocessing.stream import stream_images
from data_prep.rsna.exam_table import read_exams, require_images, select_patients
from tests.data_prep.data_folder import (
    SETTINGS,
    copy_data,
    find_image,
    make_data,
    prepare_folder,
    snapshot,
    spoil,
    write_image,
)
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image

ROOT = Path(__file__).parents[3]


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str, "image_id": str})


def times_of_images(cache: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in cache.rglob("[!.]*.png")}


# One image


def test_the_breast_fills_the_square_with_its_chest_wall_at_the_left(prepared: Path) -> None:
    for path in prepared.rglob("*.png"):
        image = read_image(path)
        assert image.shape == (32, 32)
        assert image.dtype == np.uint8
        brightness = image.mean(axis=0)
        assert brightness[:8].mean() > 2 * brightness[16:].mean()
        assert image.max() > 150


def test_the_record_tells_how_the_image_was_made(tmp_path: Path) -> None:
    pixels = make_breast(400, 300)[:, ::-1].copy()
    syntax = codecs.JPEG_2000_LOSSLESS
    elements = {"WindowCenter": 2000, "WindowWidth": 4000, "PhotometricInterpretation": "MONOCHROME2"}
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, BitsStored=12, **elements)
    _, record = prepare_image(path, PrepareSettings(side=64))
    assert (record["rows"], record["columns"], record["transfer_syntax"]) == (400, 300, syntax)
    assert record["window"] == "LINEAR 2000/4000"
    assert record["level"] >= 1
    assert record["flipped"] is True
    assert record["warnings"] == "laterality_picture", "the header says L"
    box = Box(*(record[f"box_{edge}"] for edge in ("left", "top", "right", "bottom")))
    assert box.right == 300
    assert record["scale_y"] == 64 / max(box.width, box.height)


def test_monochrome1_looks_like_monochrome2(tmp_path: Path) -> None:
    pixels = make_breast(200, 150)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    plain = write_dicom(tmp_path / "a.dcm", pixels, **window)
    other = write_dicom(tmp_path / "b.dcm", (4095 - pixels).astype(np.uint16), **window, **inverted)
    images = [prepare_image(path, PrepareSettings(side=64))[0].astype(int) for path in (plain, other)]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_a_blank_image_is_shown_whole_and_that_is_recorded(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full((60, 40), 900, np.uint16))
    image, record = prepare_image(path, PrepareSettings(side=32))
    assert record["warnings"].split() == ["no_window", "breast_not_found", "low_contrast"]
    assert image.shape == (32, 32)


def test_damaged_bytes_give_an_image_or_an_image_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(5):
        path = write_image(tmp_path / str(number), number)
        content = path.read_bytes()
        for place in generator.integers(132, len(content), 50):
            path.write_bytes(content[:place] + generator.bytes(2) + content[place + 2 :])
            with suppress(ImageError):
                assert prepare_image(path, PrepareSettings(side=16))[0].shape == (16, 16)


# A folder


def test_tables_are_complete_and_in_id_order(data: Path, prepared: Path) -> None:
    exams = read_exams(data, "train")
    manifest, timings = table(prepared / "manifest.csv"), table(prepared / "timings.csv")
    assert list(manifest) == MANIFEST_COLUMNS
    assert list(timings) == TIMING_COLUMNS
    assert list(table(prepared / "failures.csv")) == FAILURE_COLUMNS
    for rows in (manifest, timings, Cache(prepared).read_exams()):
        assert rows["image_id"].tolist() == exams["image_id"].tolist()
    assert manifest["source_bytes"].tolist() == [
        find_image(data, image_id).stat().st_size for image_id in manifest["image_id"]
    ]
    assert not (prepared / "journal.jsonl").exists()


def test_nothing_of_a_header_that_identifies_is_in_the_cache(prepared: Path) -> None:
    for name, content in snapshot(prepared).items():
        assert b"Weiherer" not in content, name


def test_doing_it_again_does_nothing(data: Path, prepared: Path) -> None:
    before, times = snapshot(prepared), times_of_images(prepared)
    timings = (prepared / "timings.csv").read_bytes()
    summary = prepare_folder(data, prepared)
    assert (summary.num_images, summary.num_prepared, summary.num_failed) == (8, 0, 0)
    assert snapshot(prepared) == before
    assert times_of_images(prepared) == times
    assert (prepared / "timings.csv").read_bytes() == timings


def test_a_finished_cache_counts_as_done_at_once(data: Path, prepared: Path, tmp_path: Path) -> None:
    cache, counts = Cache(Path(shutil.copytree(prepared, tmp_path / "cache"))), []

    @contextmanager
    def track(title: str, total: int, unit: str = "images"):
        assert (title, total, unit) == ("prepare", 8, "images")
        yield lambda count=1, note="": counts.append(count)

    prepare_dataset(data, cache, SETTINGS, workers=0, track=track)
    assert counts == [8]


def test_only_what_changed_or_went_missing_is_done_again(data: Path, tmp_path: Path) -> None:
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    prepare_folder(copy, cache)
    times, before = times_of_images(cache), snapshot(cache)
    find_image(copy, "97").write_bytes(find_image(copy, "90").read_bytes())
    next(cache.rglob("104.png")).unlink()
    assert prepare_folder(copy, cache).num_prepared == 2
    changed = {name for name, when in times_of_images(cache).items() if when != times[name]}
    assert changed == {"97", "104"}
    after = snapshot(cache)
    assert after["images/7/104.png"] == before["images/7/104.png"]
    assert after["images/5/97.png"] == after["images/5/90.png"] != before["images/5/97.png"]


def test_a_changed_side_is_done_again_and_leaves_what_a_fresh_cache_has(data: Path, tmp_path: Path) -> None:
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    prepare_folder(copy, cache)
    sound = snapshot(cache)
    labels = (copy / "train.csv").read_text()
    swapped = labels.replace(",L,", ",?,").replace(",R,", ",L,").replace(",?,", ",R,")
    (copy / "train.csv").write_text(swapped)
    assert prepare_folder(copy, cache).num_prepared == 8
    prepare_folder(copy, tmp_path / "fresh")
    assert snapshot(cache) == snapshot(tmp_path / "fresh") != sound
    assert (cache / "manifest.csv").read_text().count("laterality_picture") == 8


def test_an_image_whose_row_lost_its_geometry_is_done_again(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare_folder(data, cache)
    sound = snapshot(cache)
    rows = pd.read_csv(cache / "manifest.csv", dtype=str, keep_default_na=False)
    rows.loc[rows["image_id"] == "97", ["rows", "level", "box_left", "scale_x"]] = ""
    rows.to_csv(cache / "manifest.csv", index=False)
    assert prepare_folder(data, cache).num_prepared == 1
    assert snapshot(cache) == sound


@pytest.mark.parametrize("name", ["manifest.csv", "failures.csv", "timings.csv"])
def test_a_damaged_table_that_is_removed_comes_back(data: Path, tmp_path: Path, name: str) -> None:
    """As the sentence about it says."""
    cache = tmp_path / "cache"
    prepare_folder(data, cache)
    sound = snapshot(cache)
    (cache / name).unlink()
    prepare_folder(data, cache)
    assert snapshot(cache) == sound
    assert (cache / name).exists()


def test_a_folder_in_the_place_of_an_image_is_named(data: Path, tmp_path: Path) -> None:
    prepare_folder(data, tmp_path / "cache")
    path = next((tmp_path / "cache").rglob("97.png"))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"97\.png: it is a folder; remove it"):
        prepare_folder(data, tmp_path / "cache")
    path.rmdir()
    assert prepare_folder(data, tmp_path / "cache").num_prepared == 1


def test_files_of_the_user_in_the_folder_are_neither_removed_nor_mixed_with(
    data: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "documents/.tmp-12-report.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"is not a cache and holds \.tmp-12-report\.txt"):
        prepare_folder(data, mine.parent)
    assert mine.read_text() == "mine"


def test_manifest_and_failures_name_the_files(data: Path, tmp_path: Path) -> None:
    """As the table's column `file` says, else where they lie below the data."""
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    spoil(copy, "97")
    prepare_folder(copy, cache)
    manifest = table(cache / "manifest.csv")
    assert all((copy / name).is_file() for name in manifest["file"])
    assert table(cache / "failures.csv")["file"].tolist() == ["train_images/5/97.dcm"]
    exams = pd.read_csv(copy / "train.csv", dtype=str)
    exams["file"] = [f"exam 1/IM{number}" for number in range(len(exams))]
    exams.loc[0, "file"] = ""
    exams.to_csv(copy / "train.csv", index=False)
    assert prepare_folder(copy, cache).num_prepared == 0
    named = table(cache / "manifest.csv").set_index("image_id")["file"]
    assert named.tolist() == [manifest["file"][0], *exams["file"][1:]]
    assert table(cache / "failures.csv")["file"].tolist() == ["exam 1/IM1"]


def test_a_cache_that_an_older_mammo_made_gets_the_names_of_its_files(data: Path, tmp_path: Path) -> None:
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    spoil(copy, "97")
    prepare_folder(copy, cache)
    sound = snapshot(cache)
    for name in ("manifest.csv", "failures.csv"):
        rows = pd.read_csv(cache / name, dtype=str, keep_default_na=False)
        rows.drop(columns=["file", "modality"], errors="ignore").to_csv(cache / name, index=False)
    assert Cache(cache).read_manifest()["file"].eq("").all()
    assert Cache(cache).read_failures()["file"].tolist() == [""]
    assert prepare_folder(copy, cache).num_prepared == 0
    assert snapshot(cache) == sound


def test_bad_files_are_quarantined_and_tried_again(data: Path, tmp_path: Path) -> None:
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    whole = find_image(copy, "97").read_bytes()
    spoil(copy, "97")
    find_image(copy, "118").write_text("no picture")
    summary = prepare_folder(copy, cache)
    assert (summary.num_images, summary.num_prepared, summary.num_failed) == (8, 6, 2)
    assert summary.failures == {"not_dicom": 1, "not_image": 1}
    assert table(cache / "failures.csv")["image_id"].tolist() == ["97", "118"]
    assert table(cache / "manifest.csv")["status"].value_counts().to_dict() == {"prepared": 6, "failed": 2}
    assert len(Cache(cache).read_exams()) == 6
    assert len(Cache(cache).read_exams(prepared_only=False)) == 8

    find_image(copy, "97").write_bytes(whole)
    summary = prepare_folder(copy, cache)
    assert (summary.num_prepared, summary.failures) == (1, {"not_image": 1})


def test_an_image_that_goes_bad_leaves_the_cache(data: Path, tmp_path: Path) -> None:
    copy, cache = copy_data(data, tmp_path / "data"), tmp_path / "cache"
    prepare_folder(copy, cache)
    spoil(copy, "97")
    assert prepare_folder(copy, cache).failures == {"not_dicom": 1}
    assert not list(cache.rglob("97.png"))
    manifest = table(cache / "manifest.csv").set_index("image_id")
    assert manifest.loc["97", "status"] == "failed"
    assert manifest.loc["97"].drop(["patient_id", "status", "file"]).isna().all()


def test_a_file_that_vanishes_is_an_io_error(data: Path, tmp_path: Path) -> None:
    copy = copy_data(data, tmp_path / "data")
    located = require_images(read_exams(copy, "train"), copy, "train")
    for image_id in ("97", "118"):  # a DICOM file and a PNG
        find_image(copy, image_id).unlink()
    outcomes = dict(stream_images(located.paths.tolist(), SETTINGS.prepare, workers=0))
    reasons = [outcome.reason for outcome in outcomes.values() if isinstance(outcome, ImageError)]
    assert reasons == ["io_error", "io_error"]


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (CacheSettings(split="train", prepare=PrepareSettings(side=48)), "prepare.side is 32, not 48"),
        (CacheSettings(split="test", prepare=SETTINGS.prepare), "split is train, not test"),
        (
            CacheSettings(split="train", prepare=PrepareSettings(side=32, codecs=CodecSettings(exact=True))),
            "prepare.codecs.exact is False, not True",
        ),
    ],
)
def test_other_settings_are_refused_by_name(
    data: Path, prepared: Path, settings: CacheSettings, difference: str
) -> None:
    before = snapshot(prepared)
    with pytest.raises(UserError, match=difference):
        prepare_folder(data, prepared, settings=settings)
    assert snapshot(prepared) == before


def test_several_processes_write_the_same_bytes(data: Path, prepared: Path, tmp_path: Path) -> None:
    prepare_folder(data, tmp_path / "cache", workers=2)
    assert snapshot(tmp_path / "cache") == snapshot(prepared)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_those_of_the_cache(data: Path, prepared: Path, workers: int) -> None:
    located = require_images(read_exams(data, "train"), data, "train")
    streamed = sorted(stream_images(located.paths.tolist(), SETTINGS.prepare, workers=workers))
    assert [index for index, _ in streamed] == list(range(8))
    for (_, image), path in zip(streamed, Cache(prepared).image_paths(located.exams), strict=True):
        assert not isinstance(image, ImageError)
        np.testing.assert_array_equal(image, read_image(path))


def test_importing_data_prep_imports_no_deep_learning() -> None:
    script = (
        "import importlib, pkgutil, sys, data_prep\n"
        "for _, name, _ in pkgutil.iter_modules(data_prep.__path__):\n"
        "    importlib.import_module(f'data_prep.{name}')\n"
        "print(sorted({'torch', 'timm', 'albumentations', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_rows_whose_file_is_absent_stay_known_until_it_comes(tmp_path: Path) -> None:
    """Of two patients that were drawn; the others were not asked for and are not counted."""
    data, cache = make_data(tmp_path / "data", 8), Cache(tmp_path / "cache")
    every = read_exams(data, "train")
    drawn = select_patients(every, 2, seed=0)
    lost = find_image(data, drawn["image_id"].iloc[0])
    lost.rename(tmp_path / lost.name)
    options = {"workers": 0, "num_patients": 2, "present_only": True}
    assert prepare_dataset(data, cache, SETTINGS, **options).num_absent == 1
    assert cache.read_exams()["image_id"].tolist() == drawn["image_id"].tolist()[1:]
    left_out = cache.read_left_out(cache.read_exams())
    pd.testing.assert_frame_equal(left_out, drawn.iloc[:1])
    pd.testing.assert_frame_equal(cache.read_all_exams(), drawn)
    (tmp_path / lost.name).rename(lost)
    assert prepare_dataset(data, cache, SETTINGS, **options).num_absent == 0
    assert not cache.left_out_path.exists()
