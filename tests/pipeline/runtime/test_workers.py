"""How many processes load images: what the user says, or what the machine has."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.inference.ensemble import BATCH_SIZE
from pipeline.runs.recipe import Recipe, TrainSettings, load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime import workers
from pipeline.runtime.workers import choose_workers
from pipeline.training import ray_folds
from pipeline.training.cross_validate import cross_validate, make_fold_tasks
from pipeline.training.trainer import Trainer
from tests.pipeline.tiny import make_recipe, quiet, results

AUTO = make_recipe(workers="auto")


def pretend(patch: pytest.MonkeyPatch, *, cores: int, free_mb: float = 1e6) -> None:
    """Another machine than this one."""
    patch.setattr(workers, "count_cores", lambda: cores)
    patch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1e6 * free_mb))


@pytest.mark.parametrize(
    ("cores", "local_processes", "device", "number"),
    [
        (1, 1, "cuda", 0),
        (2, 1, "cuda", 1),
        (12, 1, "cuda", 11),
        (64, 1, "cuda", 16),
        (64, 8, "cuda", 7),
        (4, 8, "cuda", 0),
        (1, 1, "cpu", 0),
        (2, 1, "cpu", 1),
        (64, 1, "cpu", 2),
    ],
)
def test_auto_leaves_a_core_to_each_training_process(
    monkeypatch: pytest.MonkeyPatch, cores: int, local_processes: int, device: str, number: int
) -> None:
    pretend(monkeypatch, cores=cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    assert choose_workers(AUTO, device) == number
    assert choose_workers(make_recipe(workers=24), device) == 24


def test_without_torchrun_all_cores_are_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another program has left in the environment."""
    pretend(monkeypatch, cores=4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert choose_workers(AUTO, "cuda") == 3


@pytest.mark.parametrize(
    ("free_mb", "change", "number"),
    [
        (67.1, {}, 0),  # what docker gives; a batch of the baseline has 8.4 MB, and so has one held out
        (200, {}, 2),
        (8000, {}, 16),
        (64, {"batch_size": 256}, 0),
        (600, {"batch_size": 256}, 1),
        (600, {"batch_size": 256, "accumulation": 2}, 3),
        (64, {"accumulation": 32}, 1),  # the batches of validation have no parts
    ],
    ids=str,
)
def test_no_more_batches_wait_than_half_of_the_shared_memory_can_hold(
    monkeypatch: pytest.MonkeyPatch, free_mb: float, change: dict[str, int], number: int
) -> None:
    """Those of both loaders, for each worker two that wait, and one that is used."""
    pretend(monkeypatch, cores=64, free_mb=free_mb)
    assert choose_workers(Recipe(train=TrainSettings(**change)), "cuda") == number


def test_a_number_that_would_hang_for_want_of_shared_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(train=TrainSettings(workers=9))
    pretend(monkeypatch, cores=2, free_mb=320)
    assert choose_workers(recipe, "cuda") == 9
    pretend(monkeypatch, cores=2, free_mb=67.1)
    with pytest.raises(UserError, match=r"train\.workers 9 may need 319 MB of /dev/shm, which has 67 MB"):
        choose_workers(recipe, "cuda")
    assert choose_workers(Recipe(train=TrainSettings(workers=0)), "cuda") == 0


def test_a_batch_of_held_out_images_is_that_of_predictions() -> None:
    assert workers.BATCH_SIZE == BATCH_SIZE


def test_without_such_a_folder_cores_alone_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, cores=8, free_mb=1)
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "absent")
    assert choose_workers(AUTO, "cuda") == 7


def test_a_run_goes_on_with_another_number_on_another_machine(
    cache: Cache, unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same weights; the recipe that is kept asks each machine anew."""
    run = Run(tmp_path / "run")
    for fold, cores in enumerate([1, 2]):
        monkeypatch.setattr(workers, "count_cores", lambda cores=cores: cores)
        cross_validate(make_recipe(workers="auto"), cache, run, reporter=quiet(), folds=[fold])
        assert load_recipe(run.settings).train.workers == "auto"
    cross_validate(make_recipe(workers=2), cache, run, reporter=quiet())
    assert results(run) == results(unbroken) | {"settings.toml": run.settings.read_bytes()}


def test_the_trainer_has_a_number(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cores=8)
    run, task = Run(tmp_path / "run"), next(make_fold_tasks(AUTO, cache, reporter=quiet()))
    assert Trainer(AUTO, task, run.fold(0), reporter=quiet()).workers == workers.MOST_BESIDE_A_CPU


@pytest.mark.parametrize("value", ["-1", "257", "2.5", "true", "all"])
def test_anything_else_is_one_clear_sentence(value: str) -> None:
    with pytest.raises(
        UserError, match=r'^--set train\.workers=.*: train\.workers = .*: it must be "auto" or a whole'
    ):
        load_recipe(None, [f"train.workers={value}"])


class Machines:
    """A cluster whose largest machine has so many CPUs and GPUs."""

    def __init__(self, cpus: int, gpus: int) -> None:
        self.has = {"CPU": cpus, "GPU": gpus}

    def count(self, resource: str) -> int:
        return self.has[resource]

    def largest(self, resource: str, beside: str) -> float:
        return float(self.has[resource])


@pytest.mark.parametrize(
    ("cpus", "gpus", "per_fold", "wanted", "number"),
    [
        (32, 4, 1.0, "auto", 7),
        (32, 4, 0.5, "auto", 3),
        (256, 4, 1.0, "auto", 16),
        (2, 2, 1.0, "auto", 0),
        (32, 4, 1.0, 5, 5),
    ],
)
def test_folds_on_the_gpus_of_a_machine_share_its_cpus(
    cpus: int, gpus: int, per_fold: float, wanted: object, number: int
) -> None:
    recipe, needs = ray_folds._choose(
        Machines(cpus, gpus), make_recipe(device="auto", workers=wanted), per_fold
    )
    assert (recipe.train.workers, needs.cpus, needs.gpus) == (number, 1 + number, per_fold)
    assert needs.cpus * gpus / per_fold <= cpus or wanted != "auto"


def test_folds_on_cpus_keep_what_was_said() -> None:
    recipe, _ = ray_folds._choose(Machines(8, 0), make_recipe(device="auto", workers="auto"), None)
    assert recipe.train.workers == "auto"
    assert Recipe().train.workers == "auto"
