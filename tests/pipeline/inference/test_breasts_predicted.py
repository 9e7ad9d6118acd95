"""Whole breasts predicted: from files and caches, with images that fail, on and on, and as out of fold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.folder import Cache
from data_prep.storage.atomic import Journal
from pipeline.data.breasts import BreastTable
from pipeline.inference import predict_test_set
from pipeline.inference.predict_test_set import predict_cache, predict_folder, predict_labelled
from pipeline.inference.run_predictions import RunPredictions
from pipeline.runs.run_folder import Run, read_oof
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import heard, make_exams, make_fused_recipe, quiet, write_cache, write_test_data

FUSIONS = ["views", "exam"]


@pytest.fixture(scope="module")
def runs(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Trained with a rate at which the fusion has something to say; no test changes them."""
    made = {}
    for fusion in FUSIONS:
        made[fusion] = Run(tmp_path_factory.mktemp(fusion) / "run")
        recipe = make_fused_recipe(fusion, learning_rate=1e-2, ema_decay=0.5)
        cross_validate(recipe, cache, made[fusion], reporter=quiet())
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_test_data(tmp_path / "data", make_exams(6, split="test"))


def predict(run: Run, folder: Path, **options) -> pd.DataFrame:
    found = predict_folder(run, folder, workers=0, reporter=quiet(), **options)
    return by_image(found)


def by_image(found: RunPredictions) -> pd.DataFrame:
    return found.images.set_index("image_id")[["probability", "image_probability"]]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fold_says_of_its_held_out_breasts_what_stands_in_its_predictions(
    cache: Cache, runs: dict[str, Run], tmp_path: Path, fusion: str
) -> None:
    run = runs[fusion]
    found = predict_labelled(
        run, cache, workers=0, reporter=quiet(), journal=Journal(tmp_path / "journal.jsonl")
    ).images.set_index("image_id")
    for fold in (0, 1):
        oof = read_oof(run.fold(fold).oof).set_index("image_id")
        assert np.abs(found.loc[oof.index, f"probability_fold_{fold}"] - oof["probability"]).max() < 1e-6


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_breast_has_one_probability_whatever_batch_it_comes_in(
    runs: dict[str, Run], folder: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_folder(runs[fusion], folder, workers=0, reporter=quiet())
    named = whole.images[["prediction_id", "probability"]].drop_duplicates()
    assert named["prediction_id"].is_unique
    breasts = whole.breasts().set_index("prediction_id")["probability"]
    expected = whole.images.groupby("prediction_id")["probability"].first()
    assert breasts.loc[expected.index].equals(expected)
    monkeypatch.setattr(predict_test_set, "BATCH_SIZE", 3)
    pd.testing.assert_frame_equal(predict(runs[fusion], folder), by_image(whole), rtol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_breast_is_judged_by_the_images_that_are_left(
    runs: dict[str, Run], folder: Path, tmp_path: Path, fusion: str
) -> None:
    """A broken, a missing and an absent image are one and the same."""
    exams = pd.read_csv(folder / "test.csv", dtype=str)
    broken = folder / "test_images" / "1" / "100.png"
    broken.write_bytes(broken.read_bytes()[:100])
    said_broken = predict(runs[fusion], folder)
    assert np.isnan(said_broken.loc["100", "probability"])
    broken.unlink()
    said_missing = predict(runs[fusion], folder)
    without = write_test_data(tmp_path / "without", exams[exams["image_id"] != "100"])
    said_without = predict(runs[fusion], without)
    for said in (said_broken, said_missing):
        pd.testing.assert_frame_equal(said.drop(index="100"), said_without, rtol=1e-6)


def test_the_other_breast_counts_in_an_exam_alone(runs: dict[str, Run], folder: Path, tmp_path: Path) -> None:
    exams = pd.read_csv(folder / "test.csv", dtype=str)
    one_sided = write_test_data(tmp_path / "left", exams[exams["laterality"] == "L"])
    left = exams["image_id"][exams["laterality"] == "L"]
    of_views, of_exam = (
        np.abs(predict(runs[fusion], one_sided) - predict(runs[fusion], folder).loc[left])
        for fusion in FUSIONS
    )
    assert of_views["probability"].max() < 1e-6
    assert of_exam["probability"].min() > 1e-6
    assert of_exam["image_probability"].max() < 1e-6


def test_a_cache_gives_what_files_do_and_an_order_of_rows_changes_nothing(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    exams = make_exams(6, split="test")
    plain = write_cache(tmp_path / "plain", exams)
    mixed = write_cache(tmp_path / "mixed", exams.sample(frac=1, random_state=1))
    first, second = (
        by_image(predict_cache(runs["exam"], each, workers=0, reporter=quiet())) for each in (plain, mixed)
    )
    pd.testing.assert_frame_equal(first, second.loc[first.index], rtol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_journal_goes_on_by_whole_breasts_to_the_same_bits(
    runs: dict[str, Run], folder: Path, tmp_path: Path, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_test_set, "BATCH_SIZE", 4)
    whole = predict(runs[fusion], folder)
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.held():
        predict(runs[fusion], folder, journal=journal)
        lines = journal.path.read_text().splitlines(keepends=True)
        assert len(lines) == 7
        journal.path.write_text("".join(lines[:3]))
        pd.testing.assert_frame_equal(predict(runs[fusion], folder, journal=journal), whole, check_exact=True)


def test_batches_hold_whole_units() -> None:
    exams = make_exams(7)
    for fusion, size in (("views", 2), ("exam", 4)):
        table = BreastTable.of(exams, make_fused_recipe(fusion).model, judges_images=True)
        packs = table.pack_units(6)
        assert sorted(row for pack in packs for row in pack) == [*range(28)]
        assert all(len(pack) % size == 0 for pack in packs)
        keys = ["patient_id", "laterality"][: 3 - size // 2]
        for pack in packs:
            inside = exams.iloc[pack].groupby(keys).size()
            assert (inside == size).all()


def test_a_flip_shows_all_views_upside_down(runs: dict[str, Run], folder: Path) -> None:
    plain, flipped = predict(runs["exam"], folder), predict(runs["exam"], folder, flip=True)
    assert (plain != flipped).all(axis=None)


def test_images_without_views_are_predicted_and_that_is_said(runs: dict[str, Run], tmp_path: Path) -> None:
    folder = write_test_data(tmp_path / "data", make_exams(2, split="test").drop(columns="view"))
    reporter = quiet()
    found = predict_folder(runs["views"], folder, workers=0, reporter=reporter)
    assert found.images["probability"].notna().all()
    assert "no views are recorded here" in heard(reporter)
    reporter = quiet()
    predict_folder(
        runs["views"],
        write_test_data(tmp_path / "with", make_exams(2, split="test")),
        workers=0,
        reporter=reporter,
    )
    assert "no views" not in heard(reporter)
