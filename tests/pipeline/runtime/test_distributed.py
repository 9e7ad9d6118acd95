"""Several processes under torchrun: the same training as one process, one writer, one voice."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import tomli_w
import torch
from torch import nn

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.classification.class_run import ClassRun
from pipeline.classification.train_classes import train_classes
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run, TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup, join_process_group, warn_of_restarts
from pipeline.training.cross_validate import cross_validate
from tests.forked import finish, start_torchrun
from tests.pipeline.tiny import (
    heard,
    make_class_recipe,
    make_exams,
    make_recipe,
    quiet,
    results,
    torchrun,
    write_cache,
    write_class_folder,
)

RANDOM = {"mixup": 0.4}
DROPPING = {"dropout": 0.2, "drop_path": 0.2}


def write_recipe(path: Path, recipe: Recipe) -> Path:
    path.write_text(tomli_w.dumps(recipe.model_dump()))
    return path


def train(recipe: Recipe, cache: Cache, run: Run, *, processes=2) -> subprocess.CompletedProcess[str]:
    config = write_recipe(run.folder.parent / f"{run.name}.toml", recipe)
    arguments = ["--cache", str(cache.folder), "--run", str(run.folder), "--fold", "0"]
    return torchrun("-m", "--", "pipeline", "train", str(config), *arguments, processes=processes)


def largest_difference(first: TrainingFolder, second: TrainingFolder) -> float:
    one, two = (safetensors.torch.load_file(folder.weights) for folder in (first, second))
    return max(float((one[name] - two[name]).abs().max()) for name in one)


# Alone


def test_one_process_needs_no_torch_distributed() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.arange(3.0)
    with join_process_group() as group:
        assert group == SINGLE_PROCESS
        assert not torch.distributed.is_initialized()
        assert group.sum([1.5, 2.5]).tolist() == [1.5, 2.5]
        group.sum_gradients([weight])
        with group.main_process_first():
            assert group.is_main
    assert weight.grad.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_shares_of_all_ranks_are_the_rows_in_order(num_rows: int, size: int) -> None:
    shares = [ProcessGroup(rank, size).share(range(num_rows)) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(num_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("restarts", "separate", "warns"),
    [("0", "", False), ("3", "1", False), ("3", "", True), ("3", "0", True)],
)
def test_it_warns_of_restarts_that_would_hang(
    monkeypatch: pytest.MonkeyPatch, restarts: str, separate: str, *, warns: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", separate)
    assert bool(warn_of_restarts()) == warns


def test_more_processes_than_gpus_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match="4 processes here for 2 GPUs: give --nproc-per-node 2"),
        join_process_group(),
    ):
        pass


# Together


def test_two_ranks_end_like_one_process(cache: Cache, unbroken: Run, unbroken_pair: Run) -> None:
    """To rounding: both add up the same losses, in another order."""
    assert 0 < largest_difference(unbroken.fold(0), unbroken_pair.fold(0)) < 1e-4
    one, two = (pd.read_csv(run.fold(0).history) for run in (unbroken, unbroken_pair))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)
    one, two = (pd.read_csv(run.fold(0).oof) for run in (unbroken, unbroken_pair))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_and_parts_are_the_same_thing(cache: Cache, tmp_path: Path, processes: int) -> None:
    """With dropout, stochastic depth and mixup: each is drawn for a part of a batch, whoever takes it."""
    recipe = make_recipe(**RANDOM)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=DROPPING)})
    train_in_parts = recipe.train.model_copy(update={"accumulation": processes})
    in_parts = recipe.model_copy(update={"train": train_in_parts})
    one, several = Run(tmp_path / "one"), Run(tmp_path / "several")
    cross_validate(in_parts, cache, one, reporter=quiet(), folds=[0])
    ended = train(recipe, cache, several, processes=processes)
    assert ended.returncode == 0, ended.stderr
    assert largest_difference(one.fold(0), several.fold(0)) < 1e-6


@pytest.mark.slow
def test_two_ranks_learn_the_classes_of_a_folder_like_one_process(tmp_path: Path) -> None:
    data, recipe = write_class_folder(tmp_path / "data"), make_class_recipe(epochs=1)
    one, two = ClassRun(tmp_path / "one"), ClassRun(tmp_path / "two")
    train_classes(recipe, data, one, reporter=quiet())
    config = write_recipe(tmp_path / "config.toml", recipe)
    arguments = ["train", str(config), "--data", str(data), "--run", str(two.folder)]
    ended = torchrun("-m", "--", "pipeline", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert largest_difference(one.training, two.training) < 1e-4
    assert ended.stdout.count("confusion matrix and report") == 1


@pytest.mark.slow
def test_an_equal_pair_of_ranks_leaves_equal_bytes(cache: Cache, unbroken_pair: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert train(make_recipe(), cache, run).returncode == 0
    assert results(run) == results(unbroken_pair)


@pytest.mark.slow
def test_a_stop_of_torchrun_is_saved_said_once_and_leaves_no_trace(
    cache: Cache, unbroken_pair: Run, tmp_path: Path
) -> None:
    """The stop comes in the midst of the first epoch, to every process at once, loader workers too."""
    run, program = Run(tmp_path / "run"), tmp_path / "program.py"
    program.write_text(
        "import time\nfrom pathlib import Path\n"
        "from pipeline.__main__ import main\nfrom pipeline.training import trainer\n"
        "step = trainer.Trainer.take_step\n"
        "def slow_step(*arguments):\n"
        f"    Path({str(tmp_path / 'began')!r}).touch()\n    time.sleep(0.5)\n    return step(*arguments)\n"
        "trainer.Trainer.take_step = slow_step\nmain()\n"
    )
    recipe = make_recipe(workers=2)
    config = write_recipe(tmp_path / "config.toml", recipe)
    arguments = [str(program), "train", str(config), "--cache", str(cache.folder), "--run", str(run.folder)]
    process = start_torchrun("--standalone", "--nproc-per-node=2", "--", *arguments, "--fold", "0")
    while not (tmp_path / "began").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = finish(process).stderr
    assert errors.count("mammo: stopped by SIGTERM; what was done is kept") == 1, errors
    assert run.fold(0).last.exists()
    assert not run.fold(0).is_finished
    assert train(recipe, cache, run).returncode == 0
    of_fold = {name: content for name, content in results(run).items() if name.startswith("fold_0/")}
    assert len(of_fold) == 3
    assert all(content == results(unbroken_pair)[name] for name, content in of_fold.items())


# Mistakes


def test_a_mistake_is_said_once(cache: Cache, tmp_path: Path) -> None:
    ended = train(make_recipe(batch_size=9, accumulation=4), cache, Run(tmp_path / "run"), processes=3)
    assert ended.returncode != 0
    assert ended.stderr.count("mammo: ") == 1
    assert "too few for 3 processes x 4 parts" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", ["--set=train.epoch=3", '--set=train.auxiliaries=["density"]', "--dry-run"], ids=str
)
def test_a_mistake_in_the_command_is_said_once(cache: Cache, tmp_path: Path, mistake: str) -> None:
    config = write_recipe(tmp_path / "config.toml", make_recipe())
    ended = torchrun("-m", "--", "pipeline", "train", str(config), f"--cache={cache.folder}", mistake)
    assert ended.returncode != 0
    assert ended.stderr.count("mammo: ") == 1


@pytest.mark.slow
def test_another_number_of_processes_is_said(cache: Cache, unbroken_pair: Run, tmp_path: Path) -> None:
    run, reporter = Run(shutil.copytree(unbroken_pair.folder, tmp_path / "run")), quiet()
    run.fold(0).oof.unlink()
    cross_validate(make_recipe(), cache, run, reporter=reporter, folds=[0])
    assert "was begun by 2 processes and goes on with 1" in heard(reporter)


@pytest.mark.slow
def test_an_image_that_one_rank_cannot_read_is_named(tmp_path: Path) -> None:
    exams = make_exams()
    cache = write_cache(tmp_path / "cache", exams)
    for patient_id, image_id in zip(exams["patient_id"], exams["image_id"], strict=True):
        if image_id == "117":
            cache.image_path(patient_id, image_id).write_bytes(b"no image")
    ended = train(make_recipe(), cache, Run(tmp_path / "run"))
    assert ended.returncode != 0
    assert "117.png" in ended.stderr
    assert "Error: " not in ended.stderr.replace("ChildFailedError: ", "")


def test_processes_that_see_different_folders_are_one_sentence(tmp_path: Path) -> None:
    class Elsewhere(ProcessGroup):
        def sum(self, values):
            return np.asarray(values) + 5.0

    cache = write_cache(tmp_path / "cache", make_exams())
    with pytest.raises(UserError, match="must lie on storage that all machines share"):
        cross_validate(make_recipe(), cache, Run(tmp_path / "run"), reporter=quiet(), group=Elsewhere())
