"""A run's predictions of a test set: from files or a cache, a row for every breast, and gone on with."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.cache.images import read_image
from data_prep.cache.pack import write_pack
from data_prep.errors import FolderInUse, UserError
from data_prep.rsna.exam_table import locate_images, read_exams
from data_prep.storage.atomic import Journal
from pipeline.inference import predict_test_set
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.image_sources import CacheSource, FolderSource
from pipeline.inference.predict_test_set import load_ensemble, predict_cache, predict_folder
from pipeline.inference.run_predictions import RunPredictions
from pipeline.inference.submission_file import make_submission
from pipeline.models.normalization import to_tensor
from pipeline.runs.run_folder import Run
from tests.data_prep.reading import prepare_image
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
    build_cache(exams, paths, cache, CacheSettings(split="test", prepare=PREPARE), workers=0)
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
    with pytest.raises(UserError, match="is not finished: fold 1 of 2 still to be trained"):
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
    pd.testing.assert_frame_equal(ours.images.drop(columns="file"), theirs.images.drop(columns="file"))
    pd.testing.assert_frame_equal(ours.failures, theirs.failures)
    pd.testing.assert_frame_equal(ours.breasts(), theirs.breasts())
    write_pack(cache, workers=0)
    pd.testing.assert_frame_equal(from_cache(unbroken, cache).images, ours.images)


def test_workers_and_batches_change_nothing(
    unbroken: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(unbroken, folder)
    monkeypatch.setattr("pipeline.inference.predict_test_set.BATCH_SIZE", 3)
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
    with pytest.raises(UserError, match=r"102\.png is damaged: remove it and run the `mammo prepare`"):
        from_cache(unbroken, cache)


# Rows that a cache leaves out


def test_a_cache_of_some_images_still_gives_every_required_row(
    unbroken: Run, folder: Path, tmp_path: Path
) -> None:
    """As `prepare` with --patients or --present-only makes it: the others get what their breast has."""
    exams, cache = read_exams(folder, "test"), Cache(tmp_path / "cache")
    asked = exams["image_id"].isin(["100", "104", "105"])
    paths, part = locate_images(exams, folder, "test"), CacheSettings(split="test", prepare=PREPARE)
    build_cache(exams[asked], paths[asked], cache, part, workers=0, left_out=exams[~asked])
    predictions, whole = from_cache(unbroken, cache), probabilities(predict(unbroken, folder))
    assert predictions.required_ids == ["1_L", "1_R", "2_L", "2_R"]
    breasts = predictions.breasts().set_index("prediction_id")["probability"]
    assert breasts["1_L"] == pytest.approx(whole["100"])
    assert breasts["1_R"] == breasts["2_R"] == predictions.prior
    assert set(predictions.failures["image_id"]) == {"101", "102", "103", "106", "107"}
    assert set(predictions.failures["reason"]) == {"missing"}
    build_cache(exams, paths, cache, part, workers=0)
    assert len(from_cache(unbroken, cache).failures) == 0


def test_an_image_without_a_row_in_the_manifest_is_a_failure(
    unbroken: Run, tmp_path: Path, exams: pd.DataFrame
) -> None:
    cache = write_cache(tmp_path / "cache", exams)
    lines = cache.manifest_path.read_text().splitlines(keepends=True)
    cache.manifest_path.write_text("".join(line for line in lines if not line.startswith("1,100,")))
    cache.timings_path.unlink()
    predictions = from_cache(unbroken, cache)
    assert predictions.failures[["image_id", "reason"]].to_numpy().tolist() == [["100", "missing"]]
    assert set(predictions.breasts()["prediction_id"]) == {"1_L", "1_R", "2_L", "2_R"}


# Broken off and gone on with


class Stopped(Exception):
    """What breaks a prediction off."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of images in each batch that the models see; batches of two."""
    monkeypatch.setattr(predict_test_set, "BATCH_SIZE", 2)
    seen: list[int] = []
    original = Ensemble.predict_each

    def predict_and_count(self, images_BCHW):
        seen.append(len(images_BCHW))
        return original(self, images_BCHW)

    monkeypatch.setattr(Ensemble, "predict_each", predict_and_count)
    return seen


def stop_after(num_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks off while the next batch is being written down."""
    original, calls = Journal.append, []

    def append(self, record) -> None:
        calls.append(record)
        if len(calls) > 1 + num_batches:  # the first is the header
            raise Stopped
        original(self, record)

    monkeypatch.setattr(Journal, "append", append)


@pytest.mark.parametrize("num_batches", [0, 1, 2])
@pytest.mark.parametrize("kind", ["files", "cache"])
def test_a_prediction_goes_on_where_it_was_broken_off(
    unbroken: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: list[int],
    kind: str,
    num_batches: int,
) -> None:
    (folder / "test_images/1/101.png").unlink()
    (folder / "test_images/2/104.png").write_bytes(b"no image")
    journal = Journal(tmp_path / "out.csv.partial")
    cache = prepared(*without_missing(folder, tmp_path)) if kind == "cache" else None

    def once(journal: Journal | None) -> RunPredictions:
        if cache is None:
            return predict(unbroken, folder, journal=journal)
        return predict_cache(unbroken, cache, workers=0, reporter=quiet(), journal=journal)

    whole = once(None)
    num_images = sum(counted)
    counted.clear()
    with monkeypatch.context() as patch:
        stop_after(num_batches, patch)
        with pytest.raises(Stopped):
            once(journal)
    assert len(journal.read()) == 1 + num_batches
    num_known = sum(counted[:num_batches])
    counted.clear()
    assert_equal(once(journal), whole)
    assert sum(counted) == num_images - num_known
    counted.clear()
    assert_equal(once(journal), whole)
    assert not counted


def without_missing(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The data set without the rows of absent files, which `prepare` would not take, and a cache's place."""
    exams = pd.read_csv(folder / "test.csv", dtype=str)
    exams[exams["image_id"] != "101"].to_csv(folder / "test.csv", index=False)
    return folder, tmp_path / "cache"


def test_a_journal_that_is_torn_anywhere_loses_no_more_than_its_end(
    unbroken: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("torn")
    folder = write_test_data(place / "data", make_exams(2, split="test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_test_set, "BATCH_SIZE", 3)
        journal = Journal(place / "out.csv.partial")
        whole = predict(unbroken, folder, journal=journal)
        content = journal.path.read_bytes()

        @settings(max_examples=25)
        @given(st.integers(0, len(content)))
        def go_on(length: int) -> None:
            journal.path.write_bytes(content[:length])
            assert_equal(predict(unbroken, folder, journal=journal), whole)
            assert journal.path.read_bytes() == content

        go_on()


def test_a_journal_holds_ids_probabilities_and_hashes_alone(
    unbroken: Run, folder: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "out.csv.partial")
    whole = predict(unbroken, folder, journal=journal)
    header, answers = journal.read()
    assert sorted(header) == ["exams", "flip", "run"]
    assert {len(header["exams"]), len(header["run"]), len(answers.pop("batch"))} == {64}
    each = whole.images.set_index("image_id")[["probability_fold_0", "probability_fold_1"]]
    folds = {image_id: row.tolist() for image_id, row in each.iterrows()}
    assert answers == {"probabilities": probabilities(whole), "folds": folds, "failures": {}}


def test_each_folds_probability_is_that_of_its_model_alone(unbroken: Run, folder: Path) -> None:
    """And their mean is the ensemble's; with `flip` each is the mean of both ways to look."""
    for flip in (False, True):
        images = predict(unbroken, folder, flip=flip).images
        each = images[["probability_fold_0", "probability_fold_1"]].to_numpy()
        assert images["probability"].to_numpy() == pytest.approx(each.mean(axis=1), rel=1e-12)
        assert (each[:, 0] != each[:, 1]).all()


def test_a_journal_of_an_older_version_is_asked_again(
    unbroken: Run, folder: Path, tmp_path: Path, counted: list[int]
) -> None:
    """Its lines lack the probabilities of each fold."""
    journal = Journal(tmp_path / "out.csv.partial")
    whole = predict(unbroken, folder, journal=journal)
    header, *records = journal.read()
    journal.remove()
    for record in [header, *records]:
        journal.append({name: value for name, value in record.items() if name != "folds"})
    counted.clear()
    assert_equal(predict(unbroken, folder, journal=journal), whole)
    assert sum(counted) == 8


def other_weights(run: Run, folder: Path) -> dict[str, bool]:
    weights = run.fold(0).weights
    weights.write_bytes(run.fold(1).weights.read_bytes())
    return {}


def other_settings(run: Run, folder: Path) -> dict[str, bool]:
    run.settings.write_text(run.settings.read_text().replace("seed = 0", "seed = 1"))
    return {}


def other_table(run: Run, folder: Path) -> dict[str, bool]:
    table = pd.read_csv(folder / "test.csv", dtype=str)
    table[1:].to_csv(folder / "test.csv", index=False)
    return {}


def another_flip(run: Run, folder: Path) -> dict[str, bool]:
    return {"flip": True}


def test_a_cache_makes_floats_on_the_device_that_asks(unbroken: Run, folder: Path, tmp_path: Path) -> None:
    """Integers travel, a quarter of the bytes."""
    cache = prepared(folder, tmp_path / "cache")
    source = CacheSource(cache, PREPARE, workers=0, config=unbroken.settings)
    (batch,) = source.load([[0, 1]], device="meta")
    assert batch.images_BCHW.device.type == "meta"
    assert batch.images_BCHW.dtype == torch.float32


@pytest.mark.parametrize("change", ["mended", "broken", "come", "gone"])
@pytest.mark.parametrize("kind", ["files", "cache"])
def test_an_image_that_changes_is_asked_for_again_with_its_batch_alone(
    unbroken: Run, folder: Path, tmp_path: Path, counted: list[int], kind: str, change: str
) -> None:
    """Batches of two: 100 and 101, 102 and 103, ...; the result is that of one call, to the last bit."""
    path = folder / "test_images/1/102.png"
    good, journal, source = path.read_bytes(), Journal(tmp_path / "out.csv.partial"), folder
    states = {"mended": (b"no image", good), "broken": (good, b"no image"), "come": (None, good)}
    states["gone"] = (good, None)

    def put(content: bytes | None) -> None:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    def once(journal: Journal | None) -> RunPredictions:
        if kind == "files":
            return predict(unbroken, source, journal=journal)
        exams, cache = read_exams(folder, "test"), Cache(tmp_path / "cache")
        paths, settings = locate_images(exams, folder, "test"), CacheSettings(split="test", prepare=PREPARE)
        there = paths.notna()
        build_cache(exams[there], paths[there], cache, settings, workers=0, left_out=exams[~there])
        return predict_cache(unbroken, cache, workers=0, reporter=quiet(), journal=journal)

    before, after = states[change]
    put(before)
    once(journal)
    put(after)
    counted.clear()
    continued = once(journal)
    keeps = kind == "cache" and change == "gone"  # a cache does not lose what it was made of
    assert counted == ([] if keeps else [2 if after == good else 1])
    assert_equal(continued, once(None))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_weights, "another run"),
        (other_settings, "another run"),
        (other_table, "another test.csv"),
        (another_flip, "another --flip"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_journal_of_something_else_is_refused_and_kept(
    finished: Run, folder: Path, tmp_path: Path, change, what: str
) -> None:
    journal = Journal(tmp_path / "out.csv.partial")
    predict(finished, folder, journal=journal)
    content = journal.path.read_bytes()
    options = change(finished, folder)
    with pytest.raises(UserError, match=f"keeps what was predicted with {what} before .* remove this file"):
        predict(finished, folder, journal=journal, **options)
    assert journal.path.read_bytes() == content


def test_the_order_in_which_images_get_ready_changes_no_bit(
    unbroken: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    """And a batch is predicted as soon as it is complete, while others wait for a slow file."""
    whole = predict(unbroken, folder)
    original = predict_test_set.FolderSource.load.__globals__["stream_images"]
    order = [3, 7, 2, 6, 5, 0, 4, 1]

    def shuffled(paths, settings, **options) -> Iterator[tuple[int, object]]:
        images = dict(original(paths, settings, workers=0))
        return ((index, images[index]) for index in order)

    monkeypatch.setattr("pipeline.inference.image_sources.stream_images", shuffled)
    assert_equal(predict(unbroken, folder), whole)
    source = FolderSource(folder, PREPARE, workers=0)
    batches = source.load([[0, 1], [2, 3], [4, 5], [6, 7]], device="cpu")
    assert [batch.rows for batch in batches] == [[2, 3], [6, 7], [4, 5], [0, 1]]


def test_one_process_holds_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.csv.partial")
    with (
        journal.held(),
        pytest.raises(FolderInUse, match=r"out\.csv\.partial is in use by another process"),
        journal.held(),
    ):
        pass
    assert not journal.path.exists()
    with journal.held():
        journal.append({"run": "1"})
        journal.mend()
        with pytest.raises(FolderInUse), journal.held():
            pass
    assert journal.read() == [{"run": "1"}]


# What is not its own


def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    unbroken: Run, folder: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "out.csv.partial")
    for content in (b"my own notes", b"hello\nworld", b"[1, 2]\n"):
        journal.path.write_bytes(content)
        with pytest.raises(UserError, match="is not a journal of `mammo predict`: move it"):
            predict(unbroken, folder, journal=journal)
        assert journal.path.read_bytes() == content


def test_a_journal_with_a_line_that_is_no_answer_is_damaged(
    unbroken: Run, folder: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "out.csv.partial")
    predict(unbroken, folder, journal=journal)
    journal.append({"x": 1})
    with pytest.raises(UserError, match="is damaged: remove it"):
        predict(unbroken, folder, journal=journal)


def test_models_that_answer_with_no_number_are_one_sentence(
    finished: Run, folder: Path, tmp_path: Path
) -> None:
    weights = load_file(finished.fold(0).weights)
    with safe_open(finished.fold(0).weights, "pt") as stored:
        metadata = stored.metadata()
    weights["head.bias"] *= float("nan")
    save_file(weights, finished.fold(0).weights, metadata)
    with pytest.raises(UserError, match="not a number: their weights have diverged"):
        predict(finished, folder, journal=Journal(tmp_path / "out.csv.partial"))


def test_contradictory_labels_of_the_run_are_told_before_an_image_is_read(
    finished: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oof = pd.read_csv(finished.fold(0).oof, dtype=str)
    oof.loc[0, "cancer"] = "1" if oof.loc[0, "cancer"] == "0" else "0"
    oof.to_csv(finished.fold(0).oof, index=False)
    monkeypatch.setattr(predict_test_set, "load_ensemble", lambda *_, **__: pytest.fail("models were loaded"))
    with pytest.raises(UserError, match="the predictions contradict themselves"):
        predict(finished, folder)
