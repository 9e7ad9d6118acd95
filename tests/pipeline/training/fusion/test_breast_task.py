"""The training of whole breasts: draws, losses, stops and kills without a trace, and several ranks."""

import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import torch

from data_prep.cache.folder import Cache
from data_prep.errors import TrainingStopped
from pipeline.data.loader import BreastInputs, normalise
from pipeline.evaluation.aggregate import to_breasts
from pipeline.models.breast_transformer import BreastLogits
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run, read_oof
from pipeline.runtime.signals import Interrupted
from pipeline.training.cross_validate import begin, cross_validate, make_fold_tasks, train_fold
from pipeline.training.fusion.breast_task import BreastTask
from pipeline.training.losses import binary_loss
from tests import forked
from tests.pipeline.tiny import (
    StopAfter,
    make_fused_recipe,
    quiet,
    results,
    torchrun,
)
from tests.pipeline.training.test_train_killed import PROGRAM

FUSIONS = ["views", "exam"]


def make_task(cache: Cache, recipe: Recipe) -> BreastTask:
    task = next(make_fold_tasks(recipe, cache, reporter=quiet()))
    assert isinstance(task, BreastTask)
    return task


@pytest.fixture(scope="module")
def fused(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that were trained without a break; no test changes them."""
    runs = {}
    for fusion in FUSIONS:
        runs[fusion] = Run(tmp_path_factory.mktemp(fusion) / "run")
        cross_validate(make_fused_recipe(fusion), cache, runs[fusion], reporter=quiet())
    return runs


def test_a_plan_holds_breasts_with_the_samplers_promises(cache: Cache) -> None:
    """Every negative breast once an epoch, a positive in every batch, labels as their images have them."""
    task = make_task(cache, make_fused_recipe())
    training = task.images.training
    expected = training.groupby(["patient_id", "laterality"], sort=False)["cancer"].max()
    assert sorted(task.labels) == sorted(expected)
    assert len(task.labels) == len(expected) == len(training) / 2
    for epoch in range(3):
        plan = task.plan(epoch)
        counts = Counter(np.concatenate(plan).tolist())
        assert all(counts[breast] == 1 for breast in np.flatnonzero(task.labels == 0))
        assert all(task.labels[batch].sum() == 2 for batch in plan)


def test_a_batch_holds_the_drawn_breasts_and_no_image_twice(cache: Cache) -> None:
    task = make_task(cache, make_fused_recipe("exam", drop_view=0.4))
    inputs, rows = task.dataset.collate([task.dataset[draw, row] for draw, row in enumerate([3, 0, 3, 5])])
    places, table = inputs.places, task.images.training
    assert len(rows) == len(inputs) == int(places.images.max()) + 1
    for breast, row in enumerate([3, 0, 3, 5]):
        own = rows[places.images[breast][places.is_own[breast]]].tolist()
        other = rows[places.images[breast][places.is_filled[breast] & ~places.is_own[breast]]].tolist()
        assert own
        assert set(own) <= set(task.table.breasts[row].own)
        assert set(other) <= set(task.table.breasts[row].other)
        assert len({*table["patient_id"].iloc[own + other]}) == 1
        assert not set(table["laterality"].iloc[own]) & set(table["laterality"].iloc[other])


def test_the_loss_is_the_mean_of_the_breasts_and_of_its_images(cache: Cache) -> None:
    task = make_task(cache, make_fused_recipe("exam", positive_weight=2.0))
    inputs, rows = task.dataset.collate([task.dataset[draw, row] for draw, row in enumerate([0, 3])])
    logits = BreastLogits(torch.tensor([0.3, -0.7]), torch.randn(len(rows), 1), inputs.places)
    losses = task.losses(logits, task.targets[rows])
    for breast, row in enumerate([0, 3]):
        label = torch.tensor(float(task.labels[row]))
        own = logits.images[inputs.places.images[breast][inputs.places.is_own[breast]], 0]
        of_breast = binary_loss(logits.breasts[breast], label, positive_weight=2.0)
        of_images = binary_loss(own, label.expand(len(own)), positive_weight=2.0).mean()
        torch.testing.assert_close(losses[breast], (of_breast + of_images) / 2)


@pytest.mark.parametrize("views_per_breast", [0, 1])
def test_the_images_of_a_breast_carry_its_probability(
    cache: Cache, tmp_path: Path, views_per_breast: int
) -> None:
    run = Run(tmp_path / "run")
    recipe = make_fused_recipe(views_per_breast=views_per_breast, epochs=1)
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    oof = read_oof(run.fold(0).oof)
    by_breast = oof.groupby(["patient_id", "laterality"])["probability"]
    assert (by_breast.nunique() == (2 if views_per_breast else 1)).all()
    assert oof["image_probability"].nunique() == len(oof)
    if not views_per_breast:
        assert set(to_breasts(oof)["probability"]) == set(oof["probability"])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_out_of_fold_predictions_are_the_saved_models(
    cache: Cache, fused: dict[str, Run], fusion: str
) -> None:
    task = make_task(cache, make_fused_recipe(fusion))
    model, shift = load_weights(fused[fusion].fold(0), make_fused_recipe(fusion).model)
    inputs, rows = task.judged.collate([task.judged[0, unit] for unit in range(len(task.judged))])
    with torch.inference_mode():
        logits = model(BreastInputs(normalise(inputs.images), inputs.places)).double()
    expected = torch.sigmoid(logits.by_image + shift).numpy()
    oof = read_oof(fused[fusion].fold(0).oof).iloc[rows.tolist()]
    assert np.abs(oof[["probability", "image_probability"]].to_numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("num_batches", [4, 5])
def test_a_training_that_is_stopped_ends_as_if_it_had_not_been(
    cache: Cache, fused: dict[str, Run], tmp_path: Path, fusion: str, num_batches: int
) -> None:
    run, recipe = Run(tmp_path / "run"), make_fused_recipe(fusion)
    plan = begin(recipe, cache, run, folds=[0])
    for _ in range(40):
        try:
            train_fold(plan, 0, stop=StopAfter(num_batches), reporter=quiet())
            break
        except Interrupted:
            continue
    of_fold = {
        name: content for name, content in results(fused[fusion]).items() if name.startswith("fold_0/")
    }
    assert {name: results(run)[name] for name in of_fold} == of_fold


def test_workers_change_nothing(cache: Cache, fused: dict[str, Run], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_fused_recipe("exam", workers=2), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).weights.read_bytes() == fused["exam"].fold(0).weights.read_bytes()


@pytest.mark.slow
def test_a_killed_process_leaves_no_trace(cache: Cache, fused: dict[str, Run], tmp_path: Path) -> None:
    run, config = Run(tmp_path / "run"), tmp_path / "config.toml"
    config.write_text(tomli_w.dumps(make_fused_recipe("exam", workers=2).model_dump()))
    for moment, code in (("step", -signal.SIGKILL), ("held-out images", -signal.SIGKILL), ("never", 0)):
        ended = forked.run(
            *["-c", PROGRAM, moment, "2", "0", "train", str(config)],
            *["--cache", str(cache.folder), "--run", str(run.folder), "--fold", "0"],
        )
        assert ended.returncode == code, ended.stderr
    assert run.fold(0).weights.read_bytes() == fused["exam"].fold(0).weights.read_bytes()
    assert run.fold(0).oof.read_bytes() == fused["exam"].fold(0).oof.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_two_ranks_split_breasts_as_a_batch_in_two_parts(cache: Cache, tmp_path: Path, fusion: str) -> None:
    pair, parts = Run(tmp_path / "pair"), Run(tmp_path / "parts")
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps(make_fused_recipe(fusion).model_dump()))
    ended = torchrun(
        *["-m", "--", "pipeline", "train", str(config), "--cache", str(cache.folder)],
        *["--run", str(pair.folder), "--fold", "0"],
    )
    assert ended.returncode == 0, ended.stderr
    cross_validate(make_fused_recipe(fusion, accumulation=2), cache, parts, reporter=quiet(), folds=[0])
    of_pair, of_parts = (read_oof(run.fold(0).oof) for run in (pair, parts))
    assert of_pair.drop(columns=["probability", "image_probability"]).equals(
        of_parts.drop(columns=["probability", "image_probability"])
    )
    for name in ("probability", "image_probability"):
        assert np.abs(of_pair[name] - of_parts[name]).max() < 1e-6


def test_throughput_counts_the_images_that_were_drawn(fused: dict[str, Run], cache: Cache) -> None:
    task = make_task(cache, make_fused_recipe("exam"))
    drawn = [
        len(task.dataset[draw, row].rows) for draw, row in enumerate(np.concatenate(task.plan(0)).tolist())
    ]
    table = pd.read_csv(fused["exam"].fold(0).throughput)
    assert table["images"].iloc[0] == sum(drawn)


def test_the_images_of_a_number_that_is_not_finite_are_named(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        BreastTask, "losses", lambda self, logits, targets: logits.breasts * torch.tensor(float("nan"))
    )
    with pytest.raises(TrainingStopped, match="images 1"):
        cross_validate(make_fused_recipe(), cache, Run(tmp_path / "run"), reporter=quiet(), folds=[0])


def test_everything_else_goes_with_breasts(cache: Cache, tmp_path: Path) -> None:
    """Auxiliary targets are each image's own; the file keeps the outputs that predict."""
    recipe = make_fused_recipe(
        "exam",
        epochs=1,
        auxiliaries=("view",),
        positive_label=0.9,
        focal_gamma=1.0,
        sampling="weighted",
        linear_probe=True,
        accumulation=2,
        select="best",
    )
    run = Run(tmp_path / "run")
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    model, _ = load_weights(run.fold(0), recipe.model)
    assert model.encoder.head.weight.shape == (1, 16)
    assert read_oof(run.fold(0).oof)["probability"].between(0, 1).all()


@pytest.mark.parametrize("setting", [{"mixup": 0.4}, {"compile": True}])
def test_what_knows_single_images_alone_is_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(setting))} .* to "):
        Recipe.model_validate({"model": {"fusion": "views"}, "train": setting})
    with pytest.raises(ValueError, match="does not go with fusion"):
        Recipe.model_validate({"model": {"fusion": "exam", "views_per_breast": 1}})
    with pytest.raises(ValueError, match=r"fusion_patches 16 must be at most .* 10"):
        Recipe.model_validate({"model": {"fusion": "exam", "kept_patches": 10}})
