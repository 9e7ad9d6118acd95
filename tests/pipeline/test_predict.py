"""Prediction: the folds' mean, the same from files and from a cache, and a row for every breast."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.cache import Cache, CacheSettings, read_image
from data_prep.errors import UserError
from data_prep.exams import locate_images, read_exams
from data_prep.pack import open_images, write_pack
from data_prep.prepare import prepare
from data_prep.stages import prepare_image
from pipeline.checkpoint import load_weights
from pipeline.dataset import to_tensor
from pipeline.predict import (
    Arithmetic,
    Ensemble,
    RunPredictions,
    predict_cache,
    predict_cached,
    predict_folder,
)
from pipeline.run import Run, read_oof
from pipeline.submission import make_submission
from tests.pipeline.tiny import MODEL, PREPARE, make_exams, noise, quiet, write_cache, write_test_data

CPU = Arithmetic("cpu", "float32")


@pytest.fixture
def exams() -> pd.DataFrame:
    """Four breasts of two patients, two images each: 100 and 101 are of breast 1_L, 102 and 103 of 1_R."""
    return make_exams(2, split="test")


@pytest.fixture
def folder(tmp_path: Path, exams: pd.DataFrame) -> Path:
    """A data set with that test.csv."""
    return write_test_data(tmp_path / "data", exams)


def predict(run: Run, folder: Path, workers: int = 0) -> RunPredictions:
    return predict_folder(run, folder, workers=workers, reporter=quiet())


def prepared(folder: Path, target: Path) -> Cache:
    """What `mammo prepare --split test` makes of a data set."""
    exams, cache = read_exams(folder, "test"), Cache(target)
    paths = locate_images(exams, folder, "test")
    prepare(exams, paths, cache, CacheSettings(split="test", prepare=PREPARE), workers=0)
    return cache


def probabilities(predictions: RunPredictions) -> dict[str, float]:
    return dict(zip(predictions.images["image_id"], predictions.images["probability"], strict=True))


# The models


@torch.inference_mode()
def test_the_ensemble_is_the_mean_of_the_folds_probabilities(unbroken: Run) -> None:
    images_BCHW = torch.stack([to_tensor(noise(seed)) for seed in range(5)])
    each = []
    for fold in (0, 1):
        model, shift = load_weights(unbroken.fold(fold), MODEL)
        each.append(1 / (1 + np.exp(-(model(images_BCHW).double().numpy()[:, 0] + shift))))
    assert not np.allclose(each[0], each[1], rtol=1e-5)
    np.testing.assert_allclose(Ensemble(unbroken).predict(images_BCHW), np.mean(each, axis=0), rtol=1e-6)


def test_out_of_fold_predictions_are_those_of_the_folds_weights(cache: Cache, unbroken: Run) -> None:
    for fold in (0, 1):
        oof = read_oof(unbroken.fold(fold).oof)
        model, shift = load_weights(unbroken.fold(fold), MODEL)
        images = open_images(cache, oof)
        batches = predict_cached(
            model, images, range(len(images)), logit_shift=shift, arithmetic=CPU, workers=0
        )
        np.testing.assert_array_equal(np.concatenate(list(batches)), oof["probability"])


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
    ensemble, predicted = Ensemble(unbroken), probabilities(predict(unbroken, folder))
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
    ours, theirs = predict_cache(unbroken, cache, reporter=quiet()), predict(unbroken, folder)
    assert len(ours.failures) == 1
    for name in ("images", "failures"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name))
    pd.testing.assert_frame_equal(ours.breasts(), theirs.breasts())
    write_pack(cache, workers=0)
    pd.testing.assert_frame_equal(predict_cache(unbroken, cache, reporter=quiet()).images, ours.images)


def test_workers_and_batches_change_nothing(
    unbroken: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(unbroken, folder)
    monkeypatch.setattr("pipeline.predict.BATCH_SIZE", 3)
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
        predict_cache(unbroken, cache, reporter=quiet())
    other = write_cache(tmp_path / "other", exams, prepare=PREPARE.model_copy(update={"side": 48}))
    with pytest.raises(UserError, match=rf"\(prepare.side is 48, not 32\): {way_out}"):
        predict_cache(unbroken, other, reporter=quiet())


def test_a_damaged_image_of_a_cache_is_a_user_error(
    unbroken: Run, tmp_path: Path, exams: pd.DataFrame
) -> None:
    cache = write_cache(tmp_path / "cache", exams, failed={"101"})
    assert read_image(cache.image_path("1", "100")).shape == (32, 32)
    cache.image_path("1", "102").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"102\.png is damaged: remove it and give the `mammo prepare`"):
        predict_cache(unbroken, cache, reporter=quiet())
