"""A run's predictions of a test set: the same from files and from a cache, a row for every breast, resumable."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.cache import Cache, CacheSettings, read_image
from data_prep.errors import FolderInUse, ImageError, UserError
from data_prep.exams import locate_images, read_exams
from data_prep.files import Journal
from data_prep.pack import write_pack
from data_prep.prepare import prepare
from data_prep.stages import prepare_image
from pipeline import inference
from pipeline.dataset import to_tensor
from pipeline.image_sources import ImageFolder
from pipeline.inference import RunPredictions, load_ensemble, predict_cache, predict_folder
from pipeline.predict import Ensemble
from pipeline.run import Run
from pipeline.submission import make_submission
from tests.pipeline.tiny import PREPARE, make_exams, quiet, write_cache, write_test_data


@pytest.fixture
def exams() -> pd.DataFrame:
    """Four breasts of two patients, two images each: 100 and 101 are of breast 1_L, 102 and 103 of 1_R."""
    return make_exams(2, split="test")


@pytest.fixture
def folder(tmp_path: Path, exams: pd.DataFrame) -> Path:
    """A data set with that test.csv."""
    return write_test_data(tmp_path / "data", exams)


def predict(run: Run, folder: Path, workers: int = 0, **options) -> RunPredictions:
    return predict_folder(run, folder, workers=workers, reporter=quiet(), **options)


def from_cache(run: Run, cache: Cache, workers: int = 0) -> RunPredictions:
    return predict_cache(run, cache, workers=workers, reporter=quiet())


def prepared(folder: Path, target: Path) -> Cache:
    """What `mammo prepare --split test` makes of a data set."""
    exams, cache = read_exams(folder, "test"), Cache(target)
    paths = locate_images(exams, folder, "test")
    prepare(exams, paths, cache, CacheSettings(split="test", prepare=PREPARE), workers=0)
    return cache


def probabilities(predictions: RunPredictions) -> dict[str, float]:
    return dict(zip(predictions.images["image_id"], predictions.images["probability"], strict=True))


def assert_equal(ours: RunPredictions, theirs: RunPredictions) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(ours.images, theirs.images, check_exact=True)
    pd.testing.assert_frame_equal(ours.failures, theirs.failures)
    assert ours.prior == theirs.prior


# The run


def test_an_unfinished_run_predicts_nothing(finished: Run, folder: Path) -> None:
    finished.fold(1).oof.unlink()
    with pytest.raises(UserError, match="is not finished: of 2 folds, 1 still to be trained"):
        predict(finished, folder)


def test_weights_that_are_gone_are_a_user_error(finished: Run, folder: Path) -> None:
    finished.fold(1).weights.unlink()
    with pytest.raises(UserError, match=r"fold_1/model\.safetensors does not hold this run's model"):
        predict(finished, folder)


# The images


def test_images_are_prepared_as_for_training_and_none_is_mixed_up(unbroken: Run, folder: Path) -> None:
    """Each image alone gives what it gives among the others."""
    ensemble, predicted = load_ensemble(unbroken), probabilities(predict(unbroken, folder))
    assert list(predicted) == [str(image_id) for image_id in range(100, 108)]
    assert len(set(predicted.values())) == 8
    for path in (folder / "test_images").rglob("*.png"):
        image, _ = prepare_image(path, PREPARE)
        alone = ensemble.predict(to_tensor(image)[None])
        assert predicted[path.stem] == pytest.approx(alone[0], rel=1e-6)


def test_a_cache_gives_what_the_files_give(unbroken: Run, folder: Path, tmp_path: Path) -> None:
    """The failures and their reasons too."""
    files = sorted((folder / "test_images").rglob("*.png"))
    files[2].write_bytes(files[2].read_bytes()[:100])
    cache = prepared(folder, tmp_path / "cache")
    ours, theirs = from_cache(unbroken, cache), predict(unbroken, folder)
    assert len(ours.failures) == 1
    for name in ("images", "failures"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    pd.testing.assert_frame_equal(ours.breasts(), theirs.breasts())
    write_pack(cache, workers=0)
    pd.testing.assert_frame_equal(from_cache(unbroken, cache).images, ours.images)


def test_workers_and_batches_change_nothing(
    unbroken: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(unbroken, folder)
    monkeypatch.setattr("pipeline.inference.BATCH_SIZE", 3)
    parts = predict(unbroken, folder, workers=1)
    pd.testing.assert_frame_equal(whole.images, parts.images, rtol=1e-6)


def test_a_given_prediction_id_is_kept(unbroken: Run, tmp_path: Path, exams: pd.DataFrame) -> None:
    named = exams.assign(prediction_id="case-" + exams["patient_id"] + exams["laterality"])
    predictions = predict(unbroken, write_test_data(tmp_path / "named", named))
    assert predictions.required_ids == ["case-1L", "case-1R", "case-2L", "case-2R"]
    assert set(predictions.breasts()["prediction_id"]) == set(predictions.required_ids)
    assert len(make_submission(predictions.breasts(), predictions.required_ids)) == 4


# What cannot be used


def test_a_breast_is_the_mean_of_its_usable_images(unbroken: Run, folder: Path) -> None:
    clean = probabilities(predict(unbroken, folder))
    (folder / "test_images/1/100.png").unlink()
    (folder / "test_images/1/102.png").write_bytes(b"no image")
    predictions = predict(unbroken, folder)
    breasts = predictions.breasts().set_index("prediction_id")["probability"]
    assert sorted(breasts.index) == ["1_L", "1_R", "2_L", "2_R"]
    assert breasts["1_L"] == pytest.approx(clean["101"])
    assert breasts["1_R"] == pytest.approx(clean["103"])
    assert breasts["2_L"] == pytest.approx((clean["104"] + clean["105"]) / 2)


def test_every_failure_is_told_with_its_reason(unbroken: Run, folder: Path) -> None:
    (folder / "test_images/1/100.png").unlink()
    (folder / "test_images/1/102.png").write_bytes(b"no image")
    failures = predict(unbroken, folder).failures
    assert list(failures) == ["patient_id", "image_id", "reason", "message"]
    assert failures["image_id"].tolist() == ["100", "102"]
    assert failures["reason"].iloc[0] == "missing"
    assert failures["reason"].iloc[1] != "missing"
    assert failures["message"].str.len().min() > 10
    assert predict(unbroken, folder).images["probability"].isna().sum() == 2


def test_a_breast_without_a_usable_image_gets_the_share_of_cancers_in_training(
    unbroken: Run, folder: Path
) -> None:
    """Four of the twenty breasts that the run was trained on have cancer."""
    for image_id in ("100", "101"):
        (folder / f"test_images/1/{image_id}.png").unlink()
    breasts = predict(unbroken, folder).breasts().set_index("prediction_id")["probability"]
    assert breasts["1_L"] == pytest.approx(0.2)
    assert breasts.notna().all()


def test_a_test_set_without_any_image_is_refused(unbroken: Run, folder: Path) -> None:
    for path in (folder / "test_images").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds none of the 8 images that test\.csv names"):
        predict(unbroken, folder)


def test_a_test_set_whose_images_all_fail_still_has_all_its_rows(unbroken: Run, folder: Path) -> None:
    for path in (folder / "test_images").rglob("*.png"):
        path.write_bytes(b"")
    predictions = predict(unbroken, folder)
    assert len(predictions.failures) == 8
    assert predictions.breasts()["probability"].tolist() == pytest.approx(4 * [0.2])


def test_a_cache_of_the_train_split_or_other_settings_is_refused(
    cache: Cache, unbroken: Run, tmp_path: Path, exams: pd.DataFrame
) -> None:
    way_out = r"make one with `mammo prepare --split test --config .*settings\.toml`"
    with pytest.raises(UserError, match=rf"does not fit .* \(split is train, not test\): {way_out}"):
        from_cache(unbroken, cache)
    other = write_cache(tmp_path / "other", exams, prepare=PREPARE.model_copy(update={"side": 48}))
    with pytest.raises(UserError, match=rf"\(prepare.side is 48, not 32\): {way_out}"):
        from_cache(unbroken, other)


def test_a_damaged_image_of_a_cache_is_a_user_error(
    unbroken: Run, tmp_path: Path, exams: pd.DataFrame
) -> None:
    cache = write_cache(tmp_path / "cache", exams, failed={"101"})
    assert read_image(cache.image_path("1", "100")).shape == (32, 32)
    cache.image_path("1", "102").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"102\.png is damaged: remove it and give the `mammo prepare`"):
        from_cache(unbroken, cache)
