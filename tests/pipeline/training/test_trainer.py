"""The training of a fold: repeatable to the byte, stopped and killed without a trace, and it learns."""

import io
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from scipy.special import logit
from sklearn.metrics import average_precision_score, roc_auc_score
from torch._dynamo.testing import CompileCounter

from data_prep.cache.folder import Cache
from data_prep.cache.images import open_images
from data_prep.errors import TrainingStopped, UserError
from pipeline.evaluation.aggregate import to_breasts
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import AugmentSettings, Recipe
from pipeline.runs.run_folder import Run, read_oof
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import Interrupted, StopRequest
from pipeline.training import checkpoint, state, stepper, trainer
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.cross_validate import cross_validate, make_fold_tasks
from pipeline.training.fold_task import FoldImages, FoldTask
from pipeline.training.losses import Mixup, binary_loss
from pipeline.training.task import Judgement
from pipeline.training.trainer import Trainer
from tests.pipeline.tiny import StopAfter, heard, make_exams, make_recipe, noise, quiet, results, write_cache

NUM_BATCHES = 3  # in an epoch of the tiny recipe
QUESTIONS = NUM_BATCHES + 1  # after a stop, in an epoch: the held-out images are one batch
UNCHANGED = AugmentSettings(vertical_flip=0.0, affine=0.0, tone=0.0)


class Killed(BaseException):
    """The process is gone; nothing tidies up."""


# Repeatable


def make_trainer(recipe: Recipe, cache: Cache, folder: Path) -> Trainer:
    """The trainer of fold 0, before its first step."""
    run = Run(folder / "run")
    run.fold(0).folder.mkdir(parents=True)
    return Trainer(
        recipe, next(make_fold_tasks(recipe, cache, reporter=quiet())), run.fold(0), reporter=quiet()
    )


def test_an_equal_run_leaves_equal_bytes(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    again = Run(tmp_path / "again")
    cross_validate(make_recipe(), cache, again, reporter=quiet())
    assert results(again) == results(unbroken)
    assert len(results(again)) == 8


def test_workers_change_no_weight(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(workers=2), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).weights.read_bytes() == unbroken.fold(0).weights.read_bytes()
    assert run.fold(0).oof.read_bytes() == unbroken.fold(0).oof.read_bytes()


def test_the_processes_that_load_live_as_long_as_the_training(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the training's images and those of the held-out ones, from the first step to the last."""
    seen, take_step = [], Trainer.take_step

    def look_and_take(trainer: Trainer, *arguments) -> list[bool]:
        seen.append({process.pid for process in active_children()})
        return take_step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "take_step", look_and_take)
    before = {process.pid for process in active_children()}
    cross_validate(make_recipe(workers=2), cache, Run(tmp_path / "run"), reporter=quiet(), folds=[0])
    assert len(seen) == 3 * NUM_BATCHES
    assert len(seen[0] - before) == 4
    assert all(each == seen[0] for each in seen)
    assert {process.pid for process in active_children()} <= before


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 2e-3}, {"clip_norm": 1e-3}], ids=str)
def test_another_recipe_gives_other_weights(
    cache: Cache, unbroken: Run, tmp_path: Path, change: dict[str, float]
) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(**change), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).weights.read_bytes() != unbroken.fold(0).weights.read_bytes()


# What is said meanwhile


def test_an_epoch_is_one_line_with_its_figures(cache: Cache, tmp_path: Path) -> None:
    reporter, run = quiet(), Run(tmp_path / "run")
    cross_validate(make_recipe(), cache, run, reporter=reporter)
    lines = heard(reporter).splitlines()
    assert len(set(lines)) == len(lines)
    for fold in (0, 1):
        history = pd.read_csv(run.fold(fold).history)
        told = [line for line in lines if line.startswith(f"fold {fold}, ")]
        for epoch, (row, line) in enumerate(zip(history.itertuples(), told, strict=True), start=1):
            figures = f"loss {row.train_loss:.3f}, val {row.val_loss:.3f}, AUC {row.val_auc:.3f}, pF1 "
            assert line.startswith(f"fold {fold}, {epoch}/3: {figures}{row.val_pf1:.3f}, ")
            assert re.search(r", [0-9,.]+/s(, .* left)?$", line)
            assert line.endswith(" left") == (epoch < 3)
        (bar,) = [line for line in lines if line.startswith(f"fold {fold}: ")]
        num_images, total = re.match(r"fold .: ([0-9]+)/([0-9]+) images", bar).groups()
        assert num_images == total


def test_a_terminal_has_one_bar_for_a_fold(cache: Cache, tmp_path: Path) -> None:
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, force_terminal=True, width=80))
    recipe = make_recipe(select="best", epochs=2)
    cross_validate(recipe, cache, Run(tmp_path / "run"), reporter=reporter, folds=[0])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lasting = [line for line in shown.replace("\r", "\n").splitlines() if line.startswith("fold 0 ")]
    assert re.search(r" ([0-9]+)/\1 images ", lasting[-1])
    assert {re.search(r"/([0-9]+) images", line)[1] for line in lasting} == {
        re.search(r"/([0-9]+) images", lasting[-1])[1]
    }
    assert shown.count("fold 0, 1/2: loss") == shown.count("fold 0, 2/2: loss") == 1


# Stopped, killed, and gone on with


@pytest.mark.parametrize("question", [1, 2, NUM_BATCHES, QUESTIONS, QUESTIONS + 2, 3 * QUESTIONS + 1])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: int
) -> None:
    """In the first epoch, on its last batch, in validation, in a later epoch, in the second fold."""
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(question))
        with pytest.raises(Interrupted):
            cross_validate(make_recipe(), cache, run, reporter=quiet())
    epochs_done, place = divmod(question - 1, QUESTIONS)
    fold, epoch = divmod(epochs_done, 3)
    saved = load_checkpoint(run.fold(fold))
    assert saved is not None
    counters = saved["counters"]
    assert (counters["epoch"], counters["batch"]) == (epoch, min(place + 1, NUM_BATCHES))
    reporter = quiet()
    cross_validate(make_recipe(), cache, run, reporter=reporter)
    assert f"fold {fold}: goes on after epoch {counters['epoch']}, batch" in heard(reporter)
    assert results(run) == results(unbroken)


def test_first_weights_are_made_where_there_is_no_checkpoint_and_never_again(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], state._make_first_model
    monkeypatch.setattr(
        state, "_make_first_model", lambda task, *others: (made.append(task), make(task, *others))[1]
    )
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(2))
        for _ in range(3):
            with pytest.raises(Interrupted):
                cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert [task.name for task in made] == ["fold 0", "fold 1"]
    assert results(run) == results(unbroken)


def test_a_training_starts_from_the_weights_it_is_given_and_goes_on_without_them(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(unbroken.fold(1).weights.read_bytes())
    recipe = make_recipe(init=str(start))
    whole, run, reporter = Run(tmp_path / "whole"), Run(tmp_path / "run"), quiet()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(0))
        with pytest.raises(Interrupted):
            cross_validate(recipe, cache, run, reporter=reporter, folds=[0])
    rows = pd.read_csv(run.fold(0).initial_weights)
    assert rows["outcome"].value_counts().to_dict() == {"loaded": 30, "left out": 2, "new": 2}
    assert f"fold 0: starts from {start}: tensors 30 loaded, 2 left out, 2 new" in heard(reporter)
    cross_validate(recipe, cache, whole, reporter=quiet(), folds=[0])
    start.unlink()
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    assert results(run) == results(whole)
    assert run.fold(0).weights.read_bytes() != unbroken.fold(0).weights.read_bytes()


def test_an_earlier_run_goes_on_with_more_patients_who_leave_its_folds_as_they_are(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    """With its head each fold begins at the earlier probabilities, whatever share of cancers batches have."""
    more = write_cache(tmp_path / "more", make_exams(num_patients=14, num_cancers=5))
    run = Run(tmp_path / "run")
    recipe = make_recipe(init=str(unbroken.folder), keep_head=True, learning_rate=1e-12, positive_share=0.4)
    reporter = quiet()
    cross_validate(recipe, more, run, reporter=reporter)
    before, after = (each.read_folds().set_index("patient_id")["fold"] for each in (unbroken, run))
    assert len(after) > len(before)
    assert after[before.index].equals(before)
    for fold in (0, 1):
        earlier, later = (
            pd.read_csv(each.fold(fold).oof).set_index("image_id")["probability"] for each in (unbroken, run)
        )
        assert np.allclose(logit(later[earlier.index]), logit(earlier), atol=1e-4)
        rows = pd.read_csv(run.fold(fold).initial_weights)
        assert rows["outcome"].value_counts().to_dict() == {"loaded": 32}
    with pytest.raises(UserError, match=r"has 2 folds, and this recipe has 3: set train.num_folds to 2"):
        cross_validate(
            make_recipe(init=str(unbroken.folder), num_folds=3), more, Run(tmp_path / "3"), reporter=quiet()
        )


def test_a_head_is_kept_from_mammos_own_weights_alone(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    tensors = safetensors.torch.load_file(unbroken.fold(0).weights)
    safetensors.torch.save_file(tensors, bare)
    with pytest.raises(UserError, match=r"only mammo's own model.safetensors says what its head predicts"):
        cross_validate(
            make_recipe(init=str(bare), init_normalization="mammo", keep_head=True),
            cache,
            Run(tmp_path / "run"),
            reporter=quiet(),
        )


def test_first_weights_that_have_seen_a_folds_held_out_patients_are_refused(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    """Unless it is the same fold of the same folds, which `{fold}` stands for."""
    run = Run(tmp_path / "run")
    of_fold_0 = str(unbroken.fold(0).weights)
    with pytest.raises(
        UserError, match=r"trained on \d+ of the patients that fold 1 holds out: write {fold}"
    ):
        cross_validate(make_recipe(init=of_fold_0), cache, run, reporter=quiet(), folds=[1])
    reporter, same = quiet(), Run(tmp_path / "same")
    of_each = str(unbroken.folder / "fold_{fold}" / "model.safetensors")
    cross_validate(make_recipe(init=of_each, epochs=1), cache, same, reporter=reporter)
    for fold in (0, 1):
        assert f"fold {fold}: starts from {unbroken.fold(fold).weights}" in heard(reporter)
    with pytest.raises(UserError, match="trained on"):  # other folds
        cross_validate(
            make_recipe(init=of_each, seed=5), cache, Run(tmp_path / "other"), reporter=quiet(), folds=[0]
        )


def test_a_stop_every_few_batches_changes_nothing_either(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    monkeypatch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(2))
    for _ in range(20):
        try:
            cross_validate(make_recipe(), cache, run, reporter=quiet())
        except Interrupted:
            continue
        break
    assert results(run) == results(unbroken)


def test_a_run_killed_before_any_of_its_writes_ends_the_same(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file comes to its place by a rename; the process dies before the first, the second, and so on."""
    expected = {name: content for name, content in results(unbroken).items() if "fold_1" not in name}
    rename, renames_left = Path.replace, 0

    def die_or_rename(path: Path, target: Path) -> Path:
        nonlocal renames_left
        if renames_left == 0:
            raise Killed
        renames_left -= 1
        return rename(path, target)

    def train_fold(run: Run) -> None:
        cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])

    for num_renames in range(100):
        run = Run(tmp_path / str(num_renames))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", die_or_rename)
            renames_left = num_renames
            try:
                train_fold(run)
            except Killed:
                pass
            else:
                break
        train_fold(run)
        assert results(run) == expected, f"killed before rename {num_renames + 1}"
    assert num_renames > 10  # three of the run, and for each epoch two tables and a checkpoint


def test_what_a_killed_writer_left_is_removed(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.fold(0).folder.mkdir(parents=True)
    left = run.fold(0).folder / ".tmp-4321-last.pt"
    left.write_bytes(b"half a checkpoint")
    cross_validate(make_recipe(epochs=1), cache, run, reporter=quiet(), folds=[0])
    assert not left.exists()


def test_checkpoints_are_saved_within_long_epochs(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = Run(tmp_path / "run"), []
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_SAVES", -1.0)
    save = checkpoint.save_checkpoint
    monkeypatch.setattr(
        checkpoint, "save_checkpoint", lambda *args: (saved.append(args[1]["counters"]["batch"]), save(*args))
    )
    cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    assert saved == 3 * [1, 2, 3, 0]
    assert run.fold(0).weights.read_bytes() == unbroken.fold(0).weights.read_bytes()


def test_a_damaged_checkpoint_costs_the_time_since_the_one_before_and_nothing_else(
    cache: Cache, unbroken: Run, finished: Run
) -> None:
    finished.fold(0).oof.unlink()
    finished.fold(0).last.write_bytes(b"damaged")
    reporter = quiet()
    cross_validate(make_recipe(), cache, finished, reporter=reporter)
    assert "fold 0: goes on after epoch 2, batch 0" in heard(reporter)
    assert results(finished) == results(unbroken)


# Every way to train


EVERYTHING = {
    "sampling": "weighted",
    "optimizer": "lion",
    "layer_decay": 0.8,
    "accumulation": 2,
    "positive_label": 0.9,
    "positive_weight": 2.0,
    "focal_gamma": 1.0,
    "mixup": 0.4,
    "auxiliaries": ("view",),
}


def test_a_stop_leaves_no_trace_with_everything_on(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole, run = make_recipe(**EVERYTHING), Run(tmp_path / "whole"), Run(tmp_path / "run")
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"dropout": 0.1, "drop_path": 0.2})}
    )
    cross_validate(recipe, cache, whole, reporter=quiet(), folds=[0])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(2))
        for _ in range(30):
            try:
                cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
            except Interrupted:
                continue
            break
    assert results(run) == results(whole)


@pytest.mark.parametrize("change", [{name: value} for name, value in EVERYTHING.items()], ids=str)
def test_every_setting_makes_a_difference(
    cache: Cache, unbroken: Run, tmp_path: Path, change: dict[str, object]
) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(**change), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).weights.read_bytes() != unbroken.fold(0).weights.read_bytes()
    weights, _ = load_weights(run.fold(0), make_recipe().model)
    assert weights.head.weight.shape == (1, 16)  # whatever was learned beside cancer is gone


def test_a_batch_in_parts_takes_the_same_step_to_rounding(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(accumulation=3), cache, run, reporter=quiet(), folds=[0])
    whole, parts = (load_weights(each.fold(0), make_recipe().model)[0] for each in (unbroken, run))
    for expected, actual in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_a_linear_probe_leaves_the_encoder_as_it_was(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    run, start = Run(tmp_path / "run"), unbroken.fold(0).weights
    recipe = make_recipe(init=str(start), linear_probe=True, weight_decay=0.5)
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    before = load_weights(unbroken.fold(0), recipe.model)[0].state_dict()
    after = load_weights(run.fold(0), recipe.model)[0].state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_compiled_model_is_what_is_trained(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_model(model: torch.nn.Module, *, dynamic: bool):
        assert not dynamic
        compiled.append(model)
        return lambda images_BCHW: 2 * model(images_BCHW)

    monkeypatch.setattr(torch, "compile", compile_model)
    plain, run = Run(tmp_path / "plain"), Run(tmp_path / "run")
    cross_validate(make_recipe(), cache, plain, reporter=quiet(), folds=[0])
    assert not compiled
    cross_validate(make_recipe(compile=True), cache, run, reporter=quiet(), folds=[0])
    assert [model.training for model in compiled] == [True, False]  # that which learns, and its average
    assert run.fold(0).weights.read_bytes() != plain.fold(0).weights.read_bytes()


def test_a_compiled_training_is_one_graph_for_each_size_of_batch(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches differ by one image at most, and the last of those held out by more; no epoch brings others."""
    counter, compile_model = CompileCounter(), torch.compile

    def compile_and_count(model: torch.nn.Module, **options: bool):
        return compile_model(model, backend=counter, fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", compile_and_count)
    monkeypatch.setattr("pipeline.training.validation.BATCH_SIZE", 5)
    recipe = make_recipe(compile=True, batch_size=7, accumulation=2)
    cross_validate(recipe, cache, Run(tmp_path / "run"), reporter=quiet(), folds=[0])
    assert counter.frame_count <= 4
    assert counter.frame_count >= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiling_changes_the_weights_by_rounding_alone(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that torch.compile does but the machine code: graphs of both passes, in small parts."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(compile=True), cache, run, reporter=quiet(), folds=[0])
    compiled, plain = (safetensors.torch.load_file(each.fold(0).weights) for each in (run, unbroken))
    assert max(float((compiled[name] - plain[name]).abs().max()) for name in plain) < 1e-5
    assert any(not torch.equal(compiled[name], plain[name]) for name in plain)


# What each step is made of


def test_a_positive_that_comes_again_is_drawn_anew(cache: Cache, tmp_path: Path) -> None:
    """Few cancers come several times per epoch; none of them twice the same."""
    trainer = make_trainer(make_recipe(positive_share=0.5), cache, tmp_path)
    seen: dict[int, set[bytes]] = {}
    counts: dict[int, int] = {}
    for images_BCHW, rows_B in trainer.load_parts(trainer.task.plan(0)):
        for image_CHW, row in zip(images_BCHW, rows_B.tolist(), strict=True):
            seen.setdefault(row, set()).add(image_CHW.numpy().tobytes())
            counts[row] = counts.get(row, 0) + 1
    assert max(counts.values()) >= 3
    # A draw may leave an image as it is: with these probabilities one in ten.
    assert sum(map(len, seen.values())) > 0.8 * sum(counts.values())


def test_a_batch_of_the_second_epoch_is_drawn_as_if_nothing_had_been_stopped(
    cache: Cache, tmp_path: Path
) -> None:
    trainer = make_trainer(make_recipe(), cache, tmp_path)
    plan = trainer.task.plan(1)
    trainer.state.epoch = 1
    whole = list(trainer.load_parts(plan))
    trainer.state.batch = 1
    rest = list(trainer.load_parts(plan[1:]))
    assert len(rest) == len(whole) - 1
    assert all(torch.equal(one[0], two[0]) for one, two in zip(whole[1:], rest, strict=True))
    trainer.state.epoch = 0
    assert not torch.equal(list(trainer.load_parts(plan))[-1][0], whole[-1][0])


def test_the_average_counts_the_steps_of_the_whole_training(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, steps = make_trainer(make_recipe(), cache, tmp_path), []
    update = type(trainer.state.average).update

    def update_and_keep(average, step) -> None:
        steps.append(step)
        update(average, step)

    monkeypatch.setattr(type(trainer.state.average), "update", update_and_keep)
    trainer.run(StopAfter(1000))
    assert steps == list(range(3 * trainer.batches_per_epoch))


def test_mixup_weighs_the_losses_of_both_images(cache: Cache, tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(mixup=0.4), cache, tmp_path)
    torch.nn.init.normal_(trainer.state.model.head.weight)
    images_BCHW, rows_B = next(trainer.load_parts(trainer.task.plan(0)))
    generator = np.random.default_rng([trainer.task.seed, 5, 1])
    generator.integers(2**32)
    mixup = Mixup.draw(len(rows_B), alpha=0.4, generator=generator)
    labels_B = torch.tensor(trainer.task.labels[rows_B.numpy()], dtype=torch.float32)
    share_B = mixup.share
    blended_BCHW = torch.stack(
        [
            share * image + (1 - share) * images_BCHW[partner]
            for share, image, partner in zip(share_B, images_BCHW, mixup.partner, strict=True)
        ]
    )
    with torch.no_grad():
        logits_B = trainer.state.model(blended_BCHW)[:, 0]
        found_B = trainer.stepper.losses(images_BCHW, rows_B, step=5, part=1)
    of_own_B, of_partner_B = (
        F.binary_cross_entropy_with_logits(logits_B, targets_B, reduction="none")
        for targets_B in (labels_B, labels_B[mixup.partner])
    )
    assert len(set(labels_B.tolist())) == 2
    torch.testing.assert_close(found_B, share_B * of_own_B + (1 - share_B) * of_partner_B)


def test_the_learning_rate_of_the_history_is_the_models_whatever_the_layers_have(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(layer_decay=0.5), cache, run, reporter=quiet(), folds=[0])
    expected, found = (pd.read_csv(each.fold(0).history)["learning_rate"] for each in (unbroken, run))
    assert found.tolist() == expected.tolist()


# fp16


def make_gradients_undefined(logits_BK: torch.Tensor) -> torch.Tensor:
    """Zeros, whose gradients are not finite."""
    return (logits_BK[:, 0] - logits_BK[:, 0].detach()).abs().sqrt()


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains with the scaler of fp16, as a GPU without bf16 does, but computes in float32."""
    monkeypatch.setattr(trainer.ComputeSettings, "choose", lambda *_: trainer.ComputeSettings("cpu", "fp16"))
    for module in ("training.stepper", "inference.ensemble"):
        monkeypatch.setattr(f"pipeline.{module}.autocast", lambda *_: nullcontext())


@pytest.mark.usefixtures("scaled")
def test_a_run_with_scaled_losses_goes_on_with_the_scale_that_it_had(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of the first batch are not finite: its step is left out, and the scale is halved."""
    losses, num_calls = FoldTask.losses, 0

    def spoil_the_first(task: FoldTask, logits_BK: torch.Tensor, targets_BN: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        of_images_B = losses(task, logits_BK, targets_BN)
        num_calls += 1
        is_first = num_calls == 2  # after the rehearsal's
        return of_images_B + make_gradients_undefined(logits_BK) if is_first else of_images_B

    scales: list[float] = []
    update = torch.amp.GradScaler.update

    def update_and_keep(scaler: torch.amp.GradScaler) -> None:
        update(scaler)
        scales.append(scaler.get_scale())

    monkeypatch.setattr(FoldTask, "losses", spoil_the_first)
    monkeypatch.setattr(torch.amp.GradScaler, "update", update_and_keep)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    cross_validate(make_recipe(), cache, whole, reporter=quiet(), folds=[0])
    assert scales == 9 * [2.0**15]
    num_calls = 0
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(2))
        with pytest.raises(Interrupted):
            cross_validate(make_recipe(), cache, parts, reporter=quiet(), folds=[0])
    cross_validate(make_recipe(), cache, parts, reporter=quiet(), folds=[0])
    assert scales == 18 * [2.0**15]
    assert results(parts) == results(whole)
    assert results(whole)["fold_0/model.safetensors"] != results(unbroken)["fold_0/model.safetensors"]


@pytest.mark.usefixtures("scaled")
def test_a_checkpoint_of_an_optimizer_that_was_not_fused_is_gone_on_with(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of runs begun before optimizers were."""
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.optim.FUSED", set())
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(2))
        with pytest.raises(Interrupted):
            cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    assert not load_checkpoint(run.fold(0))["optimizer"]["param_groups"][0]["fused"]
    cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).is_finished


@pytest.mark.usefixtures("scaled")
def test_gradients_that_never_are_finite_stop_a_training_that_scales_its_losses(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FoldTask, "losses", lambda _task, logits_BK, _rows: make_gradients_undefined(logits_BK)
    )
    monkeypatch.setattr(stepper, "MOST_OVERFLOWS", 4)
    with pytest.raises(TrainingStopped, match="the gradient's norm is nan in fold 0, epoch 2, images 1"):
        cross_validate(make_recipe(), cache, Run(tmp_path / "run"), reporter=quiet(), folds=[0])


# Which epoch


def test_the_best_epoch_predicts_if_that_is_asked_for(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights and predictions are those of the epoch; a stop between leaves no trace."""
    recipe, run, again = make_recipe(select="best", epochs=4), Run(tmp_path / "run"), Run(tmp_path / "again")
    nan = float("nan")
    values = iter(
        2 * [nan, 0.5, 0.7, nan, 0.6, nan]
    )  # the first is the rehearsal's, the last the chosen one's
    of_epochs, judge = [], FoldTask.judge

    def judge_and_keep(*arguments) -> Judgement:
        of_epochs.append(judge(*arguments).predictions)
        return Judgement(of_epochs[-1], {"val_auc": next(values)})

    monkeypatch.setattr(FoldTask, "judge", judge_and_keep)
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    _, _, second, _, fourth, _ = (table["probability"].tolist() for table in of_epochs)  # after the rehearsal
    assert second != fourth
    assert read_oof(run.fold(0).oof)["probability"].tolist() == second
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.cross_validate.StopRequest", lambda: StopAfter(3 * QUESTIONS + 1))
        with pytest.raises(Interrupted):
            cross_validate(recipe, cache, again, reporter=quiet(), folds=[0])
    cross_validate(recipe, cache, again, reporter=quiet(), folds=[0])
    assert results(again) == results(run)


# A mistake shows at once


def test_a_mistake_in_validation_shows_before_the_first_epoch(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    monkeypatch.setattr(
        "pipeline.evaluation.estimates.to_breasts", lambda _table: pd.DataFrame({"other": []})
    )
    monkeypatch.setattr(Trainer, "take_step", lambda *_: steps.append(1))
    with pytest.raises(KeyError, match="cancer"):
        cross_validate(make_recipe(), cache, Run(tmp_path / "run"), reporter=quiet(), folds=[0])
    assert not steps


# Not finite


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_a_number_that_is_not_finite_stops_the_training_and_names_the_images(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """In the fifth batch, which is the second epoch's second."""
    run, num_calls = Run(tmp_path / "run"), 0

    def spoilt(logits_B: torch.Tensor, labels_B: torch.Tensor, **options: float) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        loss = binary_loss(logits_B, labels_B, **options)
        if num_calls < NUM_BATCHES + 2:
            return loss
        return (
            loss * torch.nan if what == "loss" else loss + (logits_B - logits_B.detach()).abs().sqrt().sum()
        )

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.fold_task.binary_loss", spoilt)
        with pytest.raises(TrainingStopped, match=f"the {what} is nan in fold 0, epoch 2, images 1") as stop:
            cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert stop.value.exit_code == 3
    assert num_calls == NUM_BATCHES + 3  # a step is judged while the next is computed
    training = set(make_exams()["image_id"]) - set(read_oof(unbroken.fold(0).oof)["image_id"])
    named = str(stop.value).split("images ")[1].split(":")[0].split(", ")
    assert 2 <= len(named) <= 8
    assert set(named) <= training
    checkpoint = load_checkpoint(run.fold(0))
    assert checkpoint is not None
    assert checkpoint["counters"]["epoch"] == 1
    cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert results(run) == results(unbroken)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_sentence(tmp_path: Path, workers: int) -> None:
    exams = make_exams()
    cache = write_cache(tmp_path / "cache", exams)
    path = cache.image_path(*exams.loc[0, ["patient_id", "image_id"]])
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"100\.png is damaged: remove it and run") as caught:
        cross_validate(make_recipe(workers=workers), cache, Run(tmp_path / "run"), reporter=quiet())
    assert "\n" not in str(caught.value)


# What is learned, and what is told of it


def overfit(tmp_path: Path, exams: pd.DataFrame, **settings: float) -> Trainer:
    """Trains on a few images that come many times an epoch; validates on them too."""
    cache = write_cache(tmp_path / "cache", exams)
    many = pd.concat(16 * [exams], ignore_index=True)
    images = FoldImages(many, exams, open_images(cache, many), open_images(cache, exams))
    recipe = make_recipe(**settings).model_copy(update={"augment": UNCHANGED})
    run = Run(tmp_path / "run")
    run.fold(0).folder.mkdir(parents=True)
    trainer = Trainer(recipe, FoldTask(recipe, images, fold=0), run.fold(0), reporter=quiet())
    with StopRequest() as stop:
        trainer.run(stop)
    return trainer


def test_it_learns_eight_images_by_heart(tmp_path: Path) -> None:
    exams = make_exams(2, num_cancers=2)
    trainer = overfit(tmp_path, exams, epochs=20, learning_rate=5e-3, positive_share=0.5)
    assert len(exams) == 8
    history = pd.read_csv(trainer.folder.history)
    assert history["train_loss"].iloc[0] > 0.1
    assert history["train_loss"].iloc[-1] < 0.01
    assert history["val_loss"].iloc[-1] < 0.01  # of the averaged weights
    assert history["val_auc"].iloc[-1] == 1.0


@pytest.mark.parametrize("settings", [{"sampling": "balanced"}, {"sampling": "weighted"}])
@pytest.mark.parametrize("positive_weight", [1.0, 20.0])
def test_an_untrained_model_predicts_the_share_of_cancers_in_its_training_images(
    cache: Cache, tmp_path: Path, settings: dict[str, str], positive_weight: float
) -> None:
    """Though the batches hold far more of them, or they weigh more: the logit shift undoes both."""
    run = Run(tmp_path / "run")
    weight = {"positive_weight": positive_weight}
    recipe = make_recipe(learning_rate=1e-12, epochs=1, positive_share=0.5, **settings, **weight)
    cross_validate(recipe, cache, run, reporter=quiet())
    exams = make_exams()
    for fold in (0, 1):
        oof = read_oof(run.fold(fold).oof)
        share = exams.loc[~exams["image_id"].isin(oof["image_id"]), "cancer"].mean()
        assert share < 0.3
        np.testing.assert_allclose(oof["probability"], share, rtol=1e-5)


def test_the_history_tells_what_the_predictions_show(unbroken: Run) -> None:
    for fold in (0, 1):
        history, oof = pd.read_csv(unbroken.fold(fold).history), read_oof(unbroken.fold(fold).oof)
        breasts = to_breasts(oof)
        last = history.iloc[-1]
        assert history["epoch"].tolist() == [1, 2, 3]
        assert history["step"].tolist() == [NUM_BATCHES, 2 * NUM_BATCHES, 3 * NUM_BATCHES]
        assert last["val_auc"] == pytest.approx(roc_auc_score(breasts["cancer"], breasts["probability"]))
        precision = average_precision_score(breasts["cancer"], breasts["probability"])
        assert last["val_average_precision"] == pytest.approx(precision)
        loss = -np.log(np.where(oof["cancer"] == 1, oof["probability"], 1 - oof["probability"])).mean()
        assert last["val_loss"] == pytest.approx(loss)


def test_times_stand_in_a_table_of_their_own(unbroken: Run) -> None:
    throughput = pd.read_csv(unbroken.fold(0).throughput)
    assert list(throughput) == [
        "epoch",
        "images",
        "seconds",
        "images_per_second",
        "loader_wait_share",
        "mfu",
        "peak_memory_mb",
        "epoch_seconds",
    ]
    assert (throughput["seconds"] > 0).all()
    assert (throughput["epoch_seconds"] > throughput["seconds"]).all()
    assert "seconds" not in pd.read_csv(unbroken.fold(0).history)


def test_it_trains_on_the_device_of_its_recipe_though_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = overfit(tmp_path, make_exams(2, num_cancers=2), device="cpu", epochs=1)
    assert trainer.compute.device == "cpu"
    assert next(trainer.state.model.parameters()).device.type == "cpu"


def test_a_folds_images_are_those_of_its_patients(cache: Cache) -> None:
    folds = pd.DataFrame({"patient_id": ["1", "2", "10"], "fold": [0, 1, 0]})
    exams = cache.read_exams()
    images = FoldImages.split(exams, folds, 0, cache)
    assert set(images.validation["patient_id"]) == {"1", "10"}
    assert len(images.training) + len(images.validation) == len(exams)
    for table, opened in [
        (images.training, images.training_images),
        (images.validation, images.validation_images),
    ]:
        assert len(opened) == len(table)
        for image, image_id in zip(opened, table["image_id"], strict=True):
            np.testing.assert_array_equal(image, noise(int(image_id)))


# In processes of their own


def test_the_module_can_be_imported_first() -> None:
    """timm must be imported by way of `torchvision_compat`, whatever the order of the imports."""
    command = [sys.executable, "-W", "error", "-c", "import pipeline.training.trainer"]
    subprocess.run(command, check=True, timeout=600)
