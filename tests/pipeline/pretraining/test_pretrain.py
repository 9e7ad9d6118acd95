"""Pretraining by folds: stopped and gone on with, without labels, and what `train` takes of it or refuses."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.settings import dump_settings
from pipeline.classification.class_task import ClassTask
from pipeline.classification.image_folder import read_image_folder
from pipeline.evaluation.external.seen import read_learned
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights, read_about, read_seen
from pipeline.pretraining.images import Sources
from pipeline.pretraining.pretrain import Plan, begin, pretrain
from pipeline.runs.pretrain_run import PretrainRun, hash_ids
from pipeline.runs.pretrain_settings import PretrainSettings
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import Run, read_oof
from pipeline.runtime.signals import Interrupted
from pipeline.training import trainer
from pipeline.training.cross_validate import begin as begin_training
from pipeline.training.cross_validate import cross_validate, draw_folds, make_fold_tasks
from pipeline.training.fold_task import FoldImages, FoldTask, require_unseen_without_labels
from pipeline.training.trainer import Trainer
from tests import forked
from tests.pipeline.tiny import (
    MODEL,
    StopAfter,
    heard,
    make_class_recipe,
    make_exams,
    make_recipe,
    noise,
    quiet,
    results,
    torchrun,
    write_cache,
    write_class_folder,
)

SMALL = PretrainSettings(decoder_width=32, decoder_depth=1)


def make_pretrain_recipe(*, probe_every=0, **train) -> Recipe:
    """The tiny recipe with a tiny decoder; batches of ten."""
    recipe = make_recipe(**{"batch_size": 10, "epochs": 2} | train)
    return recipe.model_copy(update={"pretrain": SMALL.model_copy(update={"probe_every": probe_every})})


def of(*caches: Cache, recipe: Recipe | None = None) -> Sources:
    return Sources(caches, None, (recipe or make_pretrain_recipe()).model)


def run_all(folder: Path, cache: Cache, *, like: Path | None = None, **train) -> PretrainRun:
    run, recipe = PretrainRun(folder), make_pretrain_recipe(**train)
    pretrain(recipe, of(cache), run, reporter=quiet(), like=like)
    return run


@pytest.fixture(scope="module")
def by_folds(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    """An encoder for each fold of a training on the same cache; no test changes it."""
    return run_all(tmp_path_factory.mktemp("by_folds") / "mae", cache, like=cache.folder)


@pytest.fixture(scope="module")
def single(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> PretrainRun:
    """One encoder of the whole cache; no test changes it."""
    return run_all(tmp_path_factory.mktemp("single") / "mae", cache)


def bytes_of(run: PretrainRun) -> dict[str, bytes]:
    return results(run) | {"seen.csv": run.seen.read_bytes()}


# Repeatable


def test_an_equal_run_leaves_equal_bytes(cache: Cache, by_folds: PretrainRun, tmp_path: Path) -> None:
    again = run_all(tmp_path / "again", cache, like=cache.folder)
    assert bytes_of(again) == bytes_of(by_folds)
    assert len(bytes_of(again)) == 8


@pytest.mark.parametrize("num_questions", [1, 3, 4, 5])
def test_a_stop_at_any_moment_leaves_no_trace(
    cache: Cache, by_folds: PretrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_questions: int
) -> None:
    """The masks that are drawn after it are those that an unbroken training draws."""
    run, recipe = PretrainRun(tmp_path / "mae"), make_pretrain_recipe()
    plan = begin(recipe, of(cache), run, like=cache.folder, folds=[0])
    run.training(0).folder.mkdir()
    with pytest.raises(Interrupted):
        Trainer(plan.recipe, plan.make_task(0), run.training(0), reporter=quiet()).run(
            StopAfter(num_questions)
        )
    assert not run.training(0).is_finished
    pretrain(recipe, of(cache), run, reporter=quiet(), like=cache.folder)
    assert bytes_of(run) == bytes_of(by_folds)


def test_a_kill_without_a_last_word_leaves_no_trace(
    cache: Cache, by_folds: PretrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_arguments: object) -> None:
        raise Killed

    run, recipe, take = PretrainRun(tmp_path / "mae"), make_pretrain_recipe(), Trainer.take_step
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_SAVES", 0.0)
    calls: list[int] = []

    def take_or_die(*arguments: object) -> list[bool]:
        calls.append(1)
        return take(*arguments) if len(calls) < 3 else die()  # type: ignore[arg-type, func-returns-value]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", take_or_die)
        with pytest.raises(Killed):
            pretrain(recipe, of(cache), run, reporter=quiet(), like=cache.folder)
    pretrain(recipe, of(cache), run, reporter=quiet(), like=cache.folder)
    assert bytes_of(run) == bytes_of(by_folds)


def test_accumulated_parts_see_every_image_and_other_settings_give_other_weights(
    cache: Cache, by_folds: PretrainRun, tmp_path: Path
) -> None:
    weights = by_folds.training(0).weights.read_bytes()
    for change in ({"seed": 1}, {"accumulation": 2}):
        run = run_all(tmp_path / f"{change}", cache, like=cache.folder, **change)
        assert run.training(0).weights.read_bytes() != weights
        assert np.isfinite(pd.read_csv(run.training(0).history)).all(axis=None)


PROGRAM = """
import sys
from pipeline.__main__ import main
from pipeline.training.trainer import Trainer
from tests.killing import die_in_call

if number := int(sys.argv.pop(1)):
    die_in_call(Trainer, "take_step", number)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_a_process_that_is_killed_leaves_no_trace(
    cache: Cache, by_folds: PretrainRun, tmp_path: Path, number: int
) -> None:
    config, run = tmp_path / "mae.toml", PretrainRun(tmp_path / "mae")
    config.write_text(dump_settings(make_pretrain_recipe()))
    options = ["--cache", cache.folder, "--for", cache.folder, "--run", run.folder]
    codes = [
        forked.run("-c", PROGRAM, str(when), "pretrain", str(config), *map(str, options)).returncode
        for when in (number, 0)
    ]
    assert codes == [-signal.SIGKILL, 0]
    assert bytes_of(run) == bytes_of(by_folds)


@pytest.mark.slow
def test_two_processes_train_one_encoder_together(cache: Cache, tmp_path: Path) -> None:
    config, run = tmp_path / "mae.toml", PretrainRun(tmp_path / "mae")
    config.write_text(dump_settings(make_pretrain_recipe()))
    ended = torchrun(
        *["-m", "--", "pipeline", "pretrain", str(config), "--cache", str(cache.folder)],
        *["--run", str(run.folder)],
    )
    assert ended.returncode == 0, ended.stderr
    assert run.training(None).is_finished
    assert run.report.exists()


# What it learns from


def test_labels_change_nothing(by_folds: PretrainRun, tmp_path: Path) -> None:
    """Neither where they are wrong nor where the split has none."""
    exams = make_exams()
    folds = tmp_path / "folds.csv"
    held_out = by_folds.read_seen().drop_duplicates("patient_id")
    held_out[["patient_id", "fold"]].to_csv(folds, index=False)
    expected = bytes_of(by_folds)
    for name, table in {"wrong": exams.assign(cancer=1), "none": exams.drop(columns="cancer")}.items():
        run = run_all(tmp_path / name, write_cache(tmp_path / f"{name}_cache", table), like=folds)
        assert bytes_of(run) == expected


def test_the_figures_are_the_losses_of_the_held_out_images(cache: Cache, by_folds: PretrainRun) -> None:
    training = by_folds.training(0)
    table = pd.read_csv(training.predictions, dtype={"patient_id": "str", "image_id": "str"})
    history = pd.read_csv(training.history)
    assert history["val_loss"].iloc[-1] == pytest.approx(table["loss"].mean(), rel=1e-12)
    assert list(history) == ["epoch", "step", "learning_rate", "train_loss", "val_loss"]
    folds = by_folds.map_folds()
    assert set(table["patient_id"]) == {patient for patient, fold in folds.items() if fold == 0}


def test_folds_are_those_that_the_training_will_have(
    cache: Cache, by_folds: PretrainRun, unbroken: Run
) -> None:
    table = draw_folds(make_recipe(), cache)
    assert by_folds.map_folds() == dict(zip(table["patient_id"], table["fold"], strict=True))
    plan = begin(make_pretrain_recipe(), of(cache), by_folds, like=unbroken.folder)
    assert plan.folds == [0, 1]


def test_several_caches_are_one_and_a_second_one_may_lack_folds(cache: Cache, tmp_path: Path) -> None:
    others = make_exams(split="test").assign(patient_id=lambda table: "9" + table["patient_id"])
    others["image_id"] = "9" + others["image_id"]
    second = write_cache(tmp_path / "second", others)
    run = PretrainRun(tmp_path / "mae")
    plan = begin(make_pretrain_recipe(), of(cache, second), run, like=cache.folder)
    for fold in (0, 1):
        task = plan.make_task(fold)
        ids = task.name_rows(list(range(len(task.dataset))))
        assert set(others["image_id"]) <= set(ids)
        for row, image_id in enumerate(ids):
            image, _ = task.dataset._images[row], row  # as it is, without augmentation
            assert np.array_equal(image, noise(int(image_id)))
        assert len(task.held_out) == (plan.images["fold"] == fold).sum()


def test_a_held_out_picture_under_another_patient_is_left_out(cache: Cache, tmp_path: Path) -> None:
    plan = begin(make_pretrain_recipe(), of(cache), PretrainRun(tmp_path / "mae"), like=cache.folder)
    images = plan.images.copy()
    held_out, other = (images.index[images["fold"] == fold][0] for fold in (0, 1))
    images.loc[[held_out, other], "source_sha256"] = "a" * 64
    split = Plan(plan.recipe, plan.sources, plan.run, images, [0]).split(0)
    assert images.loc[other, "image_id"] not in set(split.training["image_id"])
    assert len(split.training) == (images["fold"] == 1).sum() - 1


def test_a_single_encoder_is_judged_by_patients_of_whom_it_learns_nothing(single: PretrainRun) -> None:
    table = pd.read_csv(single.training(None).predictions, dtype="str")
    assert len(table) == 4
    assert len(set(table["patient_id"])) == 1
    assert read_about(single.training(None).weights)["seen"]["patients"] == sorted(
        hash_ids(single.read_seen()["patient_id"])
    )


def test_a_folder_of_pictures_will_do(tmp_path: Path) -> None:
    for name in range(8):
        path = tmp_path / f"pictures/{name % 2}/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(name, 40, 48)).save(path)
    run, recipe = PretrainRun(tmp_path / "mae"), make_pretrain_recipe()
    pretrain(recipe, Sources([], tmp_path / "pictures", recipe.model), run, reporter=quiet())
    assert list(run.read_seen()["image_id"])[:2] == ["0/0.png", "0/2.png"]
    assert run.training(None).is_finished


# The weights


def test_the_file_is_an_encoder_that_names_whom_it_has_seen_by_hashes(by_folds: PretrainRun) -> None:
    load_weights(by_folds.training(0), MODEL)
    folds = by_folds.map_folds()
    with safe_open(by_folds.training(0).weights, framework="pt") as file:
        about = json.loads(file.metadata()["mammo"])
    seen = [patient for patient, fold in folds.items() if fold != 0]
    assert about["seen"]["patients"] == sorted(hash_ids(seen))
    assert all(len(each) == 16 for each in about["seen"]["patients"])


def test_training_takes_the_encoder_of_each_fold(cache: Cache, by_folds: PretrainRun, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(init=str(by_folds.folder), epochs=1), cache, run, reporter=quiet())
    for task in make_fold_tasks(make_recipe(init=str(by_folds.folder)), cache, reporter=quiet()):
        assert task.init == str(by_folds.training(task.fold).weights)
        model = trainer.load_state(
            task,
            make_recipe().train,
            PretrainRun(tmp_path).training(None),
            trainer.ComputeSettings.choose("cpu", "float32"),
            reporter=quiet(),
            group=trainer.SINGLE_PROCESS,
        ).model
        encoder, _ = load_weights(by_folds.training(task.fold), MODEL)
        assert torch.equal(model.blocks[1].mlp.fc1.weight, encoder.blocks[1].mlp.fc1.weight)
        assert model.head.weight.abs().sum() == 0
    assert run.unfinished_folds() == []


@pytest.mark.parametrize("what", ["the single one", "that of another fold", "a copy"])
def test_an_encoder_that_has_seen_held_out_patients_is_refused_unless_that_is_said(
    cache: Cache, by_folds: PretrainRun, single: PretrainRun, tmp_path: Path, what: str
) -> None:
    init = {
        "the single one": single.folder,
        "that of another fold": by_folds.training(1).weights,
        "a copy": tmp_path / "copy.safetensors",
    }[what]
    (tmp_path / "copy.safetensors").write_bytes(single.training(None).weights.read_bytes())
    message = r"was pretrained on [1-9]\d* patients? that fold 0 holds out: .*--for.*train.transductive"
    with pytest.raises(UserError, match=message):
        next(make_fold_tasks(make_recipe(init=str(init)), cache, reporter=quiet()))
    allowed = make_recipe(init=str(init), transductive=True)
    assert next(make_fold_tasks(allowed, cache, reporter=quiet())).fold == 0


def test_a_held_out_picture_that_was_seen_under_another_name_is_refused(cache: Cache) -> None:
    recipe = make_recipe()
    images = FoldImages.split(cache.read_exams(), draw_folds(recipe, cache), 0, cache)
    images = replace(images, held_out_pictures=frozenset({"a" * 16}))
    seen = {"patients": sorted(hash_ids(["another"])), "pictures": ["a" * 16]}
    with pytest.raises(UserError, match="was pretrained on 1 picture that fold 0 holds out"):
        require_unseen_without_labels(seen, images, init="mae", fold=0)
    require_unseen_without_labels(seen | {"pictures": ["b" * 16]}, images, init="mae", fold=0)


def test_a_list_of_the_seen_that_is_none_counts_as_none(single: PretrainRun, tmp_path: Path) -> None:
    path, tensors = tmp_path / "strange.safetensors", load_file(single.training(None).weights)
    for seen in ("all", {"patients": 3}, None):
        save_file(tensors, path, {"mammo": json.dumps({"logit_shift": 0.0, "num_heads": 2, "seen": seen})})
        assert read_seen(path) == {}


def test_an_encoder_of_other_patients_starts_any_fold(cache: Cache, tmp_path: Path) -> None:
    others = make_exams(split="test").assign(patient_id=lambda table: "9" + table["patient_id"])
    run = run_all(tmp_path / "mae", write_cache(tmp_path / "others", others), epochs=1)
    tasks = list(make_fold_tasks(make_recipe(init=str(run.folder)), cache, reporter=quiet()))
    assert {task.init for task in tasks} == {str(run.training(None).weights)}


def test_its_patients_keep_their_folds_though_the_seed_is_another(
    cache: Cache, by_folds: PretrainRun
) -> None:
    recipe = make_recipe(init=str(by_folds.folder), seed=5)
    table = draw_folds(recipe, cache)
    assert dict(zip(table["patient_id"], table["fold"], strict=True)) == by_folds.map_folds()
    with pytest.raises(UserError, match="has 2 folds, and this recipe has 3"):
        draw_folds(make_recipe(init=str(by_folds.folder), num_folds=3), cache)


def test_what_came_of_an_encoder_is_refused_by_the_same_rule(cache: Cache, tmp_path: Path) -> None:
    """A patient of no fold, seen by all encoders, later comes into a fold."""
    late = make_exams(1, 1).assign(patient_id="99", image_id=lambda table: "9" + table["image_id"])
    late["prediction_id"] = "99_" + late["laterality"]
    second = write_cache(tmp_path / "second", late.drop(columns="cancer"))
    mae, run = PretrainRun(tmp_path / "mae"), Run(tmp_path / "run")
    pretrain(make_pretrain_recipe(epochs=1), of(cache, second), mae, reporter=quiet(), like=cache.folder)
    cross_validate(make_recipe(init=str(mae.folder), epochs=1), cache, run, reporter=quiet())
    both = write_cache(tmp_path / "both", pd.concat([make_exams(), late], ignore_index=True))
    with pytest.raises(UserError, match="was pretrained on 1 patient that fold"):
        list(make_fold_tasks(make_recipe(init=str(run.folder)), both, reporter=quiet()))
    learned = read_learned(run, read_oof(run.oof) if run.oof.exists() else read_oof(run.fold(0).oof))
    assert learned.patients == sorted({*make_exams()["patient_id"], "99"})
    assert learned.unknown == ""


def test_a_folder_of_classes_starts_from_a_single_encoder(
    single: PretrainRun, by_folds: PretrainRun, tmp_path: Path
) -> None:
    folder = read_image_folder(write_class_folder(tmp_path / "colours"), seed=0)
    recipe = make_class_recipe(in_channels=1, init=str(single.folder))
    assert ClassTask(recipe, folder, name="run").init == str(single.training(None).weights)
    with pytest.raises(UserError, match="has encoders for folds 0, 1 and none for one without folds"):
        ClassTask(make_class_recipe(init=str(by_folds.folder)), folder, name="run")


def test_a_refusal_of_any_fold_comes_before_the_first_epoch(
    cache: Cache, by_folds: PretrainRun, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match="that fold 1 holds out"):
        cross_validate(make_recipe(init=str(by_folds.training(0).weights)), cache, run, reporter=quiet())
    assert not run.folder.exists()


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixup": 0.5}, "train.mixup does nothing in a pretraining"),
        ({"select": "best"}, "train.select does nothing in a pretraining"),
        ({"linear_probe": True}, "train.linear_probe does nothing in a pretraining"),
        ({"init": "runs/fold_{fold}/model.safetensors"}, "nobody would know whom the new encoders have seen"),
    ],
)
def test_settings_that_do_nothing_are_refused(
    cache: Cache, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        begin(make_pretrain_recipe(**change), of(cache), PretrainRun(tmp_path / "mae"))


def test_weights_that_have_seen_mammograms_are_no_start(
    cache: Cache, by_folds: PretrainRun, unbroken: Run, tmp_path: Path
) -> None:
    for init in (by_folds.folder, unbroken.fold(0).weights):
        with pytest.raises(UserError, match="start from public weights"):
            begin(make_pretrain_recipe(init=str(init)), of(cache), PretrainRun(tmp_path / "mae"))


def test_registers_of_public_weights_come_along_to_the_training_in_the_end(
    cache: Cache, tmp_path: Path
) -> None:
    changes = {"register_tokens": 3, "layer_scale": 1e-5}
    path = tmp_path / "public.safetensors"
    safetensors.torch.save_file(VisionTransformer(MODEL.model_copy(update=changes)).state_dict(), path)
    run = run_all(tmp_path / "mae", cache, like=cache.folder, init=str(path), init_normalization="mammo")
    path.unlink()  # it is finished, and needs them no more
    run_all(run.folder, cache, like=cache.folder, init=str(path), init_normalization="mammo")
    training, reporter = Run(tmp_path / "run"), quiet()
    cross_validate(make_recipe(init=str(run.folder), epochs=1), cache, training, reporter=reporter)
    assert "model.register_tokens = 3 and model.layer_scale = 1e-05 follow from" in heard(reporter)
    assert load_recipe(training.settings).model == MODEL.model_copy(update=changes)


def test_another_source_or_another_recipe_does_not_go_on(
    cache: Cache, by_folds: PretrainRun, unbroken: Run, tmp_path: Path
) -> None:
    other = write_cache(tmp_path / "other", make_exams(12))
    with pytest.raises(UserError, match="was begun with other images or folds"):
        begin(make_pretrain_recipe(), of(other), by_folds, like=cache.folder)
    with pytest.raises(UserError, match="was begun with other images or folds"):
        begin(make_pretrain_recipe(), of(cache), by_folds)
    with pytest.raises(UserError, match="was started with other settings"):
        begin(make_pretrain_recipe(epochs=9), of(cache), by_folds, like=cache.folder)
    with pytest.raises(UserError, match="is a run of `mammo train`"):
        begin(make_recipe(), of(cache), PretrainRun(unbroken.folder))


def test_a_cache_of_another_size_is_refused_with_what_to_type(cache: Cache, tmp_path: Path) -> None:
    recipe = make_pretrain_recipe().model_copy(update={"prepare": PrepareSettings(side=64)})
    with pytest.raises(UserError, match=r"`mammo pretrain CONFIG --cache .* --set prepare\.side=32` takes"):
        begin(recipe, of(cache), PretrainRun(tmp_path / "mae"))


def test_folds_must_be_known(cache: Cache, tmp_path: Path) -> None:
    run = PretrainRun(tmp_path / "mae")
    with pytest.raises(UserError, match="tells no folds"):
        begin(make_pretrain_recipe(), of(cache), run, like=tmp_path / "absent")
    with pytest.raises(UserError, match="there is no fold 7: there are 0, 1"):
        begin(make_pretrain_recipe(), of(cache), run, like=cache.folder, folds=[7])
    with pytest.raises(UserError, match="there is no fold 0: it takes --for"):
        begin(make_pretrain_recipe(), of(cache), run, folds=[0])
    assert not run.folder.exists()


def test_a_finished_one_is_left_as_it_is(cache: Cache, by_folds: PretrainRun) -> None:
    before, reporter = bytes_of(by_folds), quiet()
    pretrain(make_pretrain_recipe(), of(cache), by_folds, reporter=reporter, like=cache.folder)
    assert bytes_of(by_folds) == before
    assert heard(reporter).splitlines() == ["fold 0: finished before", "fold 1: finished before"]


# What a review has found


def test_whom_an_encoder_has_seen_stands_in_weights_by_way_of_classes_too(
    single: PretrainRun, cache: Cache, tmp_path: Path
) -> None:
    task = ClassTask(
        make_class_recipe(init=str(single.folder)),
        read_image_folder(write_class_folder(tmp_path / "classes"), seed=0),
        name="classes",
    )
    assert task.about["seen"] == read_seen(single.training(None).weights)


def test_a_training_keeps_whom_its_encoder_has_seen_though_that_is_gone(cache: Cache, tmp_path: Path) -> None:
    """The folds too; and a fold that has not begun says what it lacks."""
    others = write_cache(tmp_path / "others", make_exams().assign(patient_id=lambda t: "o" + t["patient_id"]))
    encoder = run_all(tmp_path / "mae", others)
    seen = read_seen(encoder.training(None).weights)
    run, recipe = Run(tmp_path / "run"), make_recipe(init=str(encoder.folder), epochs=2)
    plan = begin_training(recipe, cache, run, folds=[0])
    run.fold(0).folder.mkdir()
    task = FoldTask(plan.recipe, FoldImages.split(plan.exams, plan.fold_table, 0, cache), fold=0)
    trainer = Trainer(plan.recipe, task, run.fold(0), reporter=quiet())
    with pytest.raises(Interrupted):
        trainer.run(StopAfter(3))
    encoder.folder.rename(tmp_path / "moved")
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    assert read_seen(run.fold(0).weights) == seen
    with pytest.raises(UserError, match="does not exist, and fold 1 is to start from it"):
        cross_validate(recipe, cache, run, reporter=quiet())


def test_folds_of_a_pretraining_that_is_gone_are_those_of_the_run(
    by_folds: PretrainRun, cache: Cache, tmp_path: Path
) -> None:
    moved = PretrainRun(Path(shutil.copytree(by_folds.folder, tmp_path / "mae")))
    run, recipe = Run(tmp_path / "run"), make_recipe(init=str(moved.folder), epochs=1, seed=7)
    cross_validate(recipe, cache, run, reporter=quiet())
    shutil.rmtree(moved.folder)
    cross_validate(recipe, cache, run, reporter=quiet())


def test_a_head_that_had_no_labels_is_not_kept(by_folds: PretrainRun, cache: Cache, tmp_path: Path) -> None:
    recipe = make_recipe(init=str(by_folds.folder), keep_head=True)
    with pytest.raises(UserError, match="pretrained without labels, so its head predicts nothing"):
        cross_validate(recipe, cache, Run(tmp_path / "run"), reporter=quiet())


def test_a_fold_starts_from_its_encoder_before_the_others_are_there(cache: Cache, tmp_path: Path) -> None:
    encoders, run = PretrainRun(tmp_path / "mae"), Run(tmp_path / "run")
    pretrain(make_pretrain_recipe(), of(cache), encoders, reporter=quiet(), like=cache.folder, folds=[0])
    recipe = make_recipe(init=str(encoders.folder), epochs=1)
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).is_finished
    with pytest.raises(UserError, match="fold_1 is not finished: go on with `mammo pretrain"):
        cross_validate(recipe, cache, run, reporter=quiet())
    with pytest.raises(UserError, match=f"is a folder of a pretraining: name {encoders.folder}"):
        cross_validate(
            make_recipe(init=f"{encoders.folder}/fold_0"), cache, Run(tmp_path / "no"), reporter=quiet()
        )


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({1: "1", 2: "2"}, r"has the folds 1, 2: number them from 0 on"),
        ({-1: "1", 0: "2"}, r"has the folds -1, 0: number them from 0 on"),
        ({0: "1", 1: "absent"}, r"none of these images is of a patient in fold 1"),
    ],
)
def test_folds_that_no_training_could_use_are_refused(
    cache: Cache, tmp_path: Path, folds: dict[int, str], message: str
) -> None:
    table = tmp_path / "folds.csv"
    pd.DataFrame({"patient_id": folds.values(), "fold": folds.keys()}).to_csv(table, index=False)
    with pytest.raises(UserError, match=message):
        run_all(tmp_path / "mae", cache, like=table)


def test_a_folder_of_pictures_is_no_cache_and_its_pictures_can_be_read(cache: Cache, tmp_path: Path) -> None:
    recipe = make_pretrain_recipe()
    for folder in (cache.folder, cache.folder / "images", cache.folder.parent):
        with pytest.raises(UserError, match="is a cache, which knows whose images these are"):
            Sources([], folder, recipe.model).tabulate()
    pictures = write_class_folder(tmp_path / "pictures")
    broken = next(pictures.rglob("*.png"))
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"1 of the .* cannot be read: .*{broken.name}"):
        pretrain(recipe, Sources([], pictures, recipe.model), PretrainRun(tmp_path / "mae"), reporter=quiet())


def test_who_has_learned_from_a_folder_of_pictures_says_so_elsewhere(cache: Cache, tmp_path: Path) -> None:
    recipe, encoder, run = make_pretrain_recipe(), PretrainRun(tmp_path / "mae"), Run(tmp_path / "run")
    pictures = write_class_folder(tmp_path / "pictures")
    pretrain(recipe, Sources([], pictures, recipe.model), encoder, reporter=quiet())
    cross_validate(make_recipe(init=str(encoder.folder), epochs=1), cache, run, reporter=quiet())
    oof = pd.concat([read_oof(run.fold(fold).oof) for fold in (0, 1)])
    assert "nobody knows of whom the pictures are" in read_learned(run, oof).unknown


def test_what_counts_twice_or_not_at_all_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is named twice"):
        pretrain(make_pretrain_recipe(), of(cache, cache), PretrainRun(tmp_path / "mae"), reporter=quiet())
    with pytest.raises(UserError, match=r"train\.auxiliary_weight does nothing"):
        run_all(tmp_path / "mae", cache, auxiliary_weight=0.5)
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(epochs=1), cache, run, reporter=quiet(), folds=[0])
    with pytest.raises(UserError, match="is a run of `mammo train`"):
        run_all(run.folder, cache)
