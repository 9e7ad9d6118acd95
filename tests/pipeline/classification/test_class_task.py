"""Training on an image folder: it learns, repeats to the byte, survives a stop, tells what does not fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from data_prep.cache.folder import Cache
from data_prep.errors import FolderInUse, TrainingStopped, UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.storage.locks import locked
from pipeline.classification import class_task
from pipeline.classification.class_run import ClassRun
from pipeline.classification.class_task import ClassTask
from pipeline.classification.image_folder import read_image_folder
from pipeline.classification.train_classes import train_classes
from pipeline.data.square_images import read_square
from pipeline.models.normalization import to_tensor
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.signals import Interrupted
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import (
    COLOURS,
    SIDE,
    StopAfter,
    coloured,
    heard,
    make_class_recipe,
    make_recipe,
    quiet,
    results,
    write_class_folder,
    write_pets,
)

NUM_BATCHES = 3  # in an epoch: 24 training images, 8 a batch
UNIFORM = np.log(3)  # the cross-entropy of three equally likely classes


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of each of three colours; no test changes them."""
    return write_class_folder(tmp_path_factory.mktemp("colours") / "colours")


@pytest.fixture(scope="module")
def unbroken(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassRun:
    """A run trained without a break; no test changes it."""
    run = ClassRun(tmp_path_factory.mktemp("unbroken") / "run")
    train_classes(make_class_recipe(), colours, run, reporter=quiet())
    return run


@pytest.fixture
def finished(unbroken: ClassRun, tmp_path: Path) -> ClassRun:
    """A copy of that run, to do with as a test likes."""
    return ClassRun(Path(shutil.copytree(unbroken.folder, tmp_path / "finished")))


def read_predictions(run: ClassRun) -> pd.DataFrame:
    return run.read_predictions(list(run.read_images()["label"].unique()))


def accuracy(run: ClassRun) -> float:
    predictions = read_predictions(run)
    return accuracy_score(predictions["label"], predictions["predicted"])


# What is learned


def test_it_learns_colours(colours: Path, tmp_path: Path) -> None:
    run = ClassRun(tmp_path / "run")
    train_classes(make_class_recipe(epochs=30), colours, run, reporter=quiet())
    assert accuracy(run) == 1.0
    history = pd.read_csv(run.training.history)
    assert history["train_loss"].iloc[0] > 0.8
    assert history["train_loss"].iloc[-1] < 0.1
    assert history["test_loss"].iloc[-1] < 0.2


def test_it_learns_nothing_of_shuffled_labels(tmp_path: Path) -> None:
    """The control: the same pictures, each in a folder drawn at random."""
    folder, generator = tmp_path / "shuffled", np.random.default_rng(0)
    for label in COLOURS:
        (folder / label).mkdir(parents=True)
    drawn = generator.permutation(np.repeat(sorted(COLOURS), 40))
    for row, label in enumerate(drawn):
        coloured(list(COLOURS.values())[row % 3], row).save(folder / label / f"{row:03d}.png")
    run = ClassRun(tmp_path / "run")
    train_classes(make_class_recipe(epochs=4), folder, run, reporter=quiet())
    assert len(read_predictions(run)) == 24
    assert accuracy(run) < 0.6
    assert pd.read_csv(run.training.history)["test_loss"].iloc[-1] > 0.9 * UNIFORM


def test_grey_versions_can_be_learned_from_too(tmp_path: Path) -> None:
    """Black, grey and white pictures, and a model of one channel."""
    folder = tmp_path / "tones"
    for tone in (30, 128, 220):
        (folder / str(tone)).mkdir(parents=True)
        for row in range(10):
            coloured((tone, tone, tone), 10 * tone + row).save(folder / str(tone) / f"{row}.png")
    run = ClassRun(tmp_path / "run")
    train_classes(make_class_recipe(in_channels=1, epochs=15), folder, run, reporter=quiet())
    assert accuracy(run) == 1.0
    assert read_predictions(run)["label"].tolist() == ["128", "128", "220", "220", "30", "30"]


def test_an_untrained_model_predicts_the_shares_of_the_training_images(tmp_path: Path) -> None:
    folder = write_class_folder(tmp_path / "colours")
    for row in range(4, 10):
        (folder / "red" / f"{row:03d}.png").unlink()
    run = ClassRun(tmp_path / "run")
    train_classes(make_class_recipe(learning_rate=1e-12, epochs=1), folder, run, reporter=quiet())
    predictions = read_predictions(run)
    for label, share in {"blue": 8 / 19, "green": 8 / 19, "red": 3 / 19}.items():
        np.testing.assert_allclose(predictions[f"p_{label}"], share, rtol=1e-5)


# What a run holds


def test_a_run_folder_holds_the_files_that_are_promised(unbroken: ClassRun) -> None:
    assert {path.name for path in unbroken.folder.iterdir()} == {
        ".lock",
        "settings.toml",
        "environment.json",
        "images.csv",
        "last.pt",
        "previous.pt",
        "history.csv",
        "throughput.csv",
        "model.safetensors",
        "attention.csv",
        "predictions.csv",
    }


def test_each_test_image_is_predicted_once_by_the_saved_model(unbroken: ClassRun, colours: Path) -> None:
    """The model of model.safetensors, run by hand on the files themselves, gives predictions.csv."""
    predictions = read_predictions(unbroken)
    images = unbroken.read_images()
    assert list(predictions) == ["image", "label", "predicted", "probability", "p_blue", "p_green", "p_red"]
    assert predictions["image"].tolist() == images["image"][images["split"] == "test"].tolist()
    model, shift = load_weights(unbroken.training, make_class_recipe().model)
    assert shift == 0
    pixels = [
        to_tensor(read_square(colours / image, side=SIDE, channels=3)) for image in predictions["image"]
    ]
    with torch.inference_mode():
        expected = model(torch.stack(pixels)).double().softmax(dim=1).numpy()
    given = predictions[["p_blue", "p_green", "p_red"]].to_numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-5)
    np.testing.assert_allclose(given.sum(axis=1), 1)
    assert predictions["predicted"].tolist() == [sorted(COLOURS)[k] for k in expected.argmax(axis=1)]
    np.testing.assert_array_equal(predictions["probability"], given.max(axis=1))


def test_the_history_tells_what_the_predictions_show(unbroken: ClassRun) -> None:
    history, predictions = pd.read_csv(unbroken.training.history), read_predictions(unbroken)
    assert list(history) == ["epoch", "step", "learning_rate", "train_loss", "test_loss", "test_accuracy"]
    assert history["step"].tolist() == [NUM_BATCHES, 2 * NUM_BATCHES, 3 * NUM_BATCHES]
    last = history.iloc[-1]
    loss = log_loss(predictions["label"], predictions[["p_blue", "p_green", "p_red"]], labels=sorted(COLOURS))
    assert last["test_loss"] == pytest.approx(loss)
    assert last["test_accuracy"] == accuracy(unbroken)


def test_a_run_keeps_its_recipe_its_split_and_its_place(unbroken: ClassRun, colours: Path) -> None:
    assert load_recipe(unbroken.settings) == make_class_recipe()
    environment = json.loads(unbroken.environment.read_text())
    assert environment["data"] == str(colours)
    assert environment["split"] == "20 % of each class, drawn with seed 0"
    pd.testing.assert_frame_equal(unbroken.read_images(), read_image_folder(colours, seed=0).images)


def test_each_epoch_goes_once_through_all_training_images_in_an_order_of_its_own(colours: Path) -> None:
    """31 images in batches of 8 at most: four of nearly equal size."""
    recipe = make_class_recipe()
    task = ClassTask(recipe, read_image_folder(colours, seed=0), name="colours")
    task.training = pd.concat(2 * [task.training]).iloc[:31]
    orders = []
    for epoch in (0, 1, 1):
        plan = task.plan(epoch)
        assert [len(rows) for rows in plan] == [8, 8, 8, 7]
        orders.append(np.concatenate(plan).tolist())
        assert sorted(orders[-1]) == list(range(31))
    assert orders[0] != orders[1]
    assert orders[1] == orders[2]


def test_official_lists_and_other_sizes_train(tmp_path: Path) -> None:
    """The layout of Oxford-IIIT Pet, other image size, patch size and depth."""
    recipe = make_class_recipe(epochs=1)
    model = recipe.model.model_copy(update={"image_size": 48, "patch_size": 12, "depth": 1})
    run, reporter = ClassRun(tmp_path / "run"), quiet()
    recipe = recipe.model_copy(update={"model": model})
    train_classes(recipe, write_pets(tmp_path / "pets"), run, reporter=reporter)
    assert "3 classes, 9 images for training, 6 for the test (the official lists)" in heard(reporter)
    predictions = read_predictions(run)
    assert list(predictions)[4:] == ["p_Abyssinian", "p_american_bulldog", "p_Bengal"]
    assert predictions["image"].iloc[0] == "images/Abyssinian_4.jpg"


# Repeatable, stopped, and gone on with


def test_an_equal_run_leaves_equal_bytes_whatever_the_number_of_workers(
    colours: Path, unbroken: ClassRun, tmp_path: Path
) -> None:
    again = ClassRun(tmp_path / "again")
    train_classes(make_class_recipe(workers=2), colours, again, reporter=quiet())
    expected, found = results(unbroken), results(again)
    assert len(found) == 5
    expected.pop("settings.toml")
    found.pop("settings.toml")
    assert found == expected


@pytest.mark.parametrize(
    ("question", "place"), [(1, (0, 1)), (NUM_BATCHES + 1, (0, NUM_BATCHES)), (NUM_BATCHES + 3, (1, 2))]
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    colours: Path,
    unbroken: ClassRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    question: int,
    place: tuple[int, int],
) -> None:
    run = ClassRun(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.classification.train_classes.StopRequest", lambda: StopAfter(question))
        with pytest.raises(Interrupted):
            train_classes(make_class_recipe(), colours, run, reporter=quiet())
    assert not run.training.is_finished
    checkpoint = load_checkpoint(run.training)
    assert checkpoint is not None
    counters = checkpoint["counters"]
    assert (counters["epoch"], counters["batch"]) == place
    reporter = quiet()
    train_classes(make_class_recipe(), colours, run, reporter=reporter)
    assert f"run: goes on after epoch {counters['epoch']}, batch {counters['batch']}" in heard(reporter)
    assert results(run) == results(unbroken)


def test_a_second_start_of_a_finished_run_does_nothing(colours: Path, finished: ClassRun) -> None:
    before, reporter = {path: path.stat().st_mtime_ns for path in finished.folder.iterdir()}, quiet()
    before.pop(finished.folder / ".lock")
    train_classes(make_class_recipe(), colours, finished, reporter=reporter)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert heard(reporter) == "finished: finished before\n"


def test_deleted_predictions_come_again(colours: Path, finished: ClassRun, unbroken: ClassRun) -> None:
    finished.training.predictions.unlink()
    train_classes(load_recipe(finished.settings), colours, finished, reporter=quiet())
    assert results(finished) == results(unbroken)


# An attempt that failed at its start


def test_an_attempt_that_failed_at_its_start_does_not_stand_in_the_way(
    colours: Path, unbroken: ClassRun, tmp_path: Path
) -> None:
    """It had a misspelt train.init, and fewer images."""
    fewer = Path(shutil.copytree(colours, tmp_path / "fewer"))
    (fewer / "red/000.png").unlink()
    run = ClassRun(tmp_path / "run")
    with pytest.raises(UserError):
        train_classes(make_class_recipe(init="absent.safetensors"), fewer, run, reporter=quiet())
    assert run.settings.exists()
    train_classes(make_class_recipe(), colours, run, reporter=quiet())
    assert results(run) == results(unbroken)
    assert json.loads(run.environment.read_text())["data"] == str(colours)


def test_after_a_failed_cross_validation_the_run_has_no_folds(
    cache: Cache, colours: Path, tmp_path: Path
) -> None:
    run, no_weights = ClassRun(tmp_path / "run"), tmp_path / "no weights.pth"
    torch.save({"weight": torch.ones(1)}, no_weights)
    with pytest.raises(UserError):
        cross_validate(make_recipe(init=str(no_weights)), cache, Run(run.folder), reporter=quiet())
    assert Run(run.folder).folds.exists()
    train_classes(make_class_recipe(epochs=1), colours, run, reporter=quiet())
    assert run.training.is_finished
    assert not Run(run.folder).folds.exists()


@pytest.mark.parametrize("left", ["last.pt", "previous.pt", "model.safetensors", "predictions.csv"])
def test_what_was_computed_keeps_its_settings(colours: Path, finished: ClassRun, left: str) -> None:
    """Whichever file is left of it."""
    for path in finished.folder.iterdir():
        if path.name not in ("settings.toml", "images.csv", left):
            path.unlink()
    before = results(finished)
    with pytest.raises(UserError, match=r"started with other settings \(train.epochs is 3, not 4\): choose"):
        train_classes(make_class_recipe(epochs=4), colours, finished, reporter=quiet())
    assert results(finished) == before


def test_a_run_of_before_keeps_the_size_of_prepare_that_does_not_count(
    colours: Path, unbroken: ClassRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood at its default, whatever the model's; now the two are one."""
    run, recipe = ClassRun(tmp_path / "run"), make_class_recipe()
    old = recipe.model_copy(update={"prepare": PrepareSettings(side=512)})
    monkeypatch.setattr("pipeline.classification.train_classes.StopRequest", lambda: StopAfter(3))
    with pytest.raises(Interrupted):
        train_classes(old, colours, run, reporter=quiet())
    monkeypatch.undo()
    train_classes(recipe, colours, run, reporter=quiet())
    assert load_recipe(run.settings).prepare.side == 512
    assert results(run)["predictions.csv"] == results(unbroken)["predictions.csv"]


# What does not fit


def test_a_run_that_another_process_trains_is_left_to_it(colours: Path, tmp_path: Path) -> None:
    run = ClassRun(tmp_path / "run")
    with locked(run.folder), pytest.raises(FolderInUse, match="run is in use by process"):
        train_classes(make_class_recipe(), colours, run, reporter=quiet())
    assert not run.settings.exists()


def test_the_number_of_classes_must_be_the_models(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"num_classes is 37 and must be 3, .*: add --set model.num_classes=3$"
    ):
        train_classes(make_class_recipe(37), colours, ClassRun(tmp_path / "run"), reporter=quiet())
    assert not (tmp_path / "run").exists()


def test_other_images_or_settings_do_not_go_on(colours: Path, finished: ClassRun, tmp_path: Path) -> None:
    before = results(finished)
    more = Path(shutil.copytree(colours, tmp_path / "more"))
    shutil.copy(more / "red/000.png", more / "red/100.png")
    with pytest.raises(UserError, match=r"has other images or labels than .*/more: choose another --run"):
        train_classes(make_class_recipe(), more, finished, reporter=quiet())
    with pytest.raises(UserError, match=r"started with other settings \(train.epochs is 3, not 4\): choose"):
        train_classes(make_class_recipe(epochs=4), colours, finished, reporter=quiet())
    assert results(finished) == before


@pytest.mark.parametrize("num_damaged", [1, 5, 7])
def test_all_damaged_images_are_told_in_one_sentence_before_the_training(
    colours: Path, unbroken: ClassRun, tmp_path: Path, num_damaged: int
) -> None:
    """Of both splits; once they are replaced, the same command trains."""
    folder = Path(shutil.copytree(colours, tmp_path / "damaged"))
    images = read_image_folder(folder, seed=0).images["image"].tolist()[-num_damaged:]
    for image in images:
        content = (folder / image).read_bytes()
        (folder / image).write_bytes(content[: len(content) // 2])
    run, reporter = ClassRun(tmp_path / "run"), quiet()
    named = ", ".join(images[:5]) + (" and 2 more" if num_damaged == 7 else "")
    with pytest.raises(UserError) as caught:
        train_classes(make_class_recipe(), folder, run, reporter=reporter)
    sentence = f"{num_damaged} of the 30 images in {folder} cannot be read: {named}; replace them, or remove"
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert "epoch" not in heard(reporter)
    for image in images:
        shutil.copy(colours / image, folder / image)
    train_classes(make_class_recipe(), folder, run, reporter=quiet())
    assert results(run) == results(unbroken)


def test_after_damaged_images_are_removed_the_same_command_trains(colours: Path, tmp_path: Path) -> None:
    folder, run = Path(shutil.copytree(colours, tmp_path / "damaged")), ClassRun(tmp_path / "run")
    (folder / "red/009.png").write_bytes(b"damaged")
    recipe = make_class_recipe(epochs=1)
    with pytest.raises(UserError, match=r"1 of the 30 images .* cannot be read: red/009\.png; "):
        train_classes(recipe, folder, run, reporter=quiet())
    (folder / "red/009.png").unlink()
    train_classes(recipe, folder, run, reporter=quiet())
    assert len(run.read_images()) == 29


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_during_the_training_is_one_sentence(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A run that goes on does not read all images first."""
    folder = Path(shutil.copytree(colours, tmp_path / "damaged"))
    run, recipe, reporter = ClassRun(tmp_path / "run"), make_class_recipe(workers=workers), quiet()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.classification.train_classes.StopRequest", lambda: StopAfter(1))
        with pytest.raises(Interrupted):
            train_classes(recipe, folder, run, reporter=quiet())
    image = read_image_folder(folder, seed=0).split("test")["image"].iloc[0]
    (folder / image).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{image} cannot be read as an image") as caught:
        train_classes(recipe, folder, run, reporter=reporter)
    assert "\n" not in str(caught.value)
    assert "reading every image" not in heard(reporter)


def test_the_reading_of_all_images_can_be_stopped(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ClassRun(tmp_path / "run")
    monkeypatch.setattr("pipeline.classification.train_classes.StopRequest", lambda: StopAfter(0))
    with pytest.raises(Interrupted):
        train_classes(make_class_recipe(), colours, run, reporter=quiet())
    assert not run.training.last.exists()


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_images(
    colours: Path, unbroken: ClassRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ClassRun(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoilt = SimpleNamespace(cross_entropy=lambda logits_BK, classes_B, **_: logits_BK[:, 0] * torch.nan)
        patch.setattr(class_task, "F", spoilt)
        with pytest.raises(TrainingStopped, match=r"the loss is nan in run, epoch 1, images \w+/\d+\.png, "):
            train_classes(make_class_recipe(), colours, run, reporter=quiet())
    train_classes(make_class_recipe(), colours, run, reporter=quiet())
    assert results(run) == results(unbroken)


def test_a_class_run_has_no_folds_and_says_where_its_predictions_stand(unbroken: ClassRun) -> None:
    path = unbroken.training.predictions
    with pytest.raises(UserError, match=rf"no folds and no submission: .* are in {path}"):
        Run(unbroken.folder).require_finished()


def test_no_class_run_and_an_unfinished_one_say_so(finished: ClassRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run on an image folder: it has no images\.csv; `mammo"):
        ClassRun(tmp_path).read_images()
    finished.training.predictions.unlink()
    with pytest.raises(UserError, match=r"is not finished: go on with `mammo train .* and the same --data"):
        read_predictions(finished)


def test_classes_may_have_any_name(tmp_path: Path) -> None:
    """Names that a table's reader would take for numbers, for nothing, or for the table's own columns."""
    folder, labels = tmp_path / "odd", ["007", "NA", "a,b", "image", "label", "predicted", "probability"]
    for number, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for row in range(3):
            coloured((30 * number, 90, 90), 10 * number + row).save(folder / label / f"{row}.png")
    run = ClassRun(tmp_path / "run")
    recipe: Recipe = make_class_recipe(len(labels), epochs=1)
    train_classes(recipe, folder, run, reporter=quiet())
    assert list(run.read_images()["label"].unique()) == labels
    predictions = read_predictions(run)
    assert predictions["label"].tolist() == labels
    assert set(predictions["predicted"]) <= set(labels)


def test_the_best_epoch_is_not_chosen_by_the_test_split(colours: Path, tmp_path: Path) -> None:
    run = ClassRun(tmp_path / "run")
    with pytest.raises(UserError, match='"best" would choose the epoch by the test split: set it to "last"'):
        train_classes(make_class_recipe(select="best"), colours, run, reporter=quiet())
