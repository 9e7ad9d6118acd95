"""Folds on the machines of a Ray cluster: nodes get lost, people stop them, and the bytes are the same."""

import os
import signal
from pathlib import Path

import pytest
import tomli_w

from data_prep.cache.folder import Cache
from data_prep.parallel.executor import Outcome
from pipeline.runs.run_folder import Run
from pipeline.training import ray_folds
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.cross_validate import cross_validate
from tests.campaigns.load import find_left
from tests.forked import Forked
from tests.pipeline.tiny import heard, make_recipe, quiet, results
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow

RECIPE = make_recipe(epochs=40, num_folds=3)
FOLDS = [0, 1]  # of three, so that no command goes on to an evaluation


@pytest.fixture(scope="module")
def one_after_another(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same recipe without a cluster."""
    run = Run(tmp_path_factory.mktemp("sequence") / "run")
    cross_validate(RECIPE, cache, run, reporter=quiet(), folds=FOLDS)
    return run


def train(cache: Cache, run: Run, *options: str) -> Forked:
    config = run.folder.parent / "config.toml"
    config.write_text(tomli_w.dumps(RECIPE.model_dump()))
    command = ["-m", "pipeline", "train", str(config), "--cache", str(cache.folder)]
    command += [f"--fold={fold}" for fold in FOLDS]
    return Forked(*command, "--run", str(run.folder), "--engine", "ray", *options, new_session=True)


def wait_for_a_fold(run: Run, training: Forked) -> None:
    """Waits until a fold is in the midst of its training."""
    wait_until(lambda: training.poll() is not None or any(run.fold(fold).previous.exists() for fold in FOLDS))
    assert training.poll() is None, training.communicate()


def wait_for_an_epoch(run: Run, training: Forked) -> None:
    """Waits until a fold has gone on for an epoch at least, and is not through."""
    before = {fold: count_epochs(run, fold) for fold in FOLDS}
    wait_until(
        lambda: training.poll() is not None or any(count_epochs(run, fold) > before[fold] for fold in FOLDS)
    )
    assert training.poll() is None, training.communicate()


def count_epochs(run: Run, fold: int) -> int:
    """Returns how many epochs of a fold have a row in its history."""
    history = run.fold(fold).history
    return max(0, history.read_text().count("\n") - 1) if history.exists() else 0


class Machines:
    """A cluster whose machines are told to stop under the first try of each fold."""

    def __init__(self) -> None:
        self.given: list[object] = []

    def count(self, resource: str) -> int:
        return 0

    def largest(self, resource: str, beside: str) -> float:
        return 1.0

    def map_whole(self, function, items, *, needs, on_wait):
        for item in items:
            is_first = item not in self.given
            self.given.append(item)
            yield Outcome(item, False if isinstance(item, int) and is_first else function(item))


def test_a_fold_whose_machine_alone_is_told_to_stop_goes_on_elsewhere(cache: Cache, tmp_path: Path) -> None:
    machines, run, reporter = Machines(), Run(tmp_path / "run"), quiet()
    ray_folds.cross_validate_on_ray(machines, make_recipe(epochs=1), cache, run, reporter=reporter, gpus=0.0)
    assert machines.given[1:] == [0, 1, 0, 1]
    assert [heard(reporter).count(f"fold {fold}, 1/1: loss") for fold in (0, 1)] == [1, 1]
    assert all(run.fold(fold).is_finished for fold in (0, 1))


def test_folds_are_stopped_and_lose_their_nodes_and_end_with_the_same_bytes(
    nodes: Nodes, cache: Cache, one_after_another: Run, tmp_path: Path
) -> None:
    """Ctrl-C reaches all processes of a terminal; those of a Ray on this machine are among them.

    The same command goes on elsewhere, where the machines of all folds get lost.
    """
    run = Run(tmp_path / "run")
    with train(cache, run) as training:
        wait_for_a_fold(run, training)
        os.killpg(training.pid, signal.SIGINT)
        _, errors = training.communicate(timeout=600)
    assert training.returncode == 130, errors
    assert "what was done is kept, go on with: mammo train" in errors
    assert find_left(training.pid) == []
    assert not all(run.fold(fold).is_finished for fold in FOLDS)
    counters = [load_checkpoint(run.fold(fold))["counters"] for fold in FOLDS if run.fold(fold).last.exists()]
    nodes.have(2)
    with train(cache, run, "--address", nodes.address) as training:
        wait_for_an_epoch(run, training)
        for _ in range(2):  # wherever the folds are
            nodes.lose()
        nodes.have(2)
        said, errors = training.communicate(timeout=600)
    assert training.returncode == 0, errors
    assert all(f"goes on after epoch {c['epoch']}, batch {c['batch']}" in said for c in counters)
    assert said.count("goes on after epoch") > len(counters)
    assert all(f"fold {fold}, 40/40: loss" in said for fold in FOLDS)
    assert results(run) == results(one_after_another)


def test_an_error_in_a_fold_is_one_sentence_here(nodes: Nodes, cache: Cache, tmp_path: Path) -> None:
    """A checkpoint that cannot be read, found on another machine."""
    nodes.have(1)
    run = Run(tmp_path / "run")
    cross_validate(RECIPE, cache, run, reporter=quiet(), folds=[0])
    run.fold(0).oof.unlink()
    run.fold(0).last.write_bytes(b"no checkpoint")
    run.fold(0).previous.write_bytes(b"no checkpoint")
    with train(cache, run, "--address", nodes.address) as training:
        _, errors = training.communicate(timeout=600)
    assert training.returncode == 3, errors
    assert "mammo: " in errors
    assert "Traceback" not in errors
