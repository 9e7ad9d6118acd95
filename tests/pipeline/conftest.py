"""Runs that several test modules need, trained once; and one thread, which is fastest for tiny models."""

import shutil
from pathlib import Path

import pytest
import tomli_w
import torch
from hypothesis import settings

from data_prep.cache.folder import Cache
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.tiny import make_exams, make_recipe, quiet, torchrun, write_cache

settings.register_profile("shared machine", deadline=None)  # a busy machine is not a failure
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Makes torch's sums the same here and in child processes, which get OMP_NUM_THREADS=1."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of noise that no test changes."""
    return write_cache(tmp_path_factory.mktemp("cache") / "cache", make_exams())


@pytest.fixture(scope="session")
def unbroken(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run trained without a break by `make_recipe()`; no test changes it."""
    run = Run(tmp_path_factory.mktemp("unbroken") / "run")
    cross_validate(make_recipe(), cache, run, reporter=quiet())
    return run


@pytest.fixture(scope="session")
def unbroken_pair(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fold 0 of such a run, trained by two ranks; no test changes it."""
    run = Run(tmp_path_factory.mktemp("unbroken_pair") / "run")
    config = run.folder.parent / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe().model_dump()))
    ended = torchrun(
        *["-m", "--", "pipeline", "train", str(config), "--cache", str(cache.folder)],
        *["--run", str(run.folder), "--fold", "0"],
    )
    assert ended.returncode == 0, ended.stderr
    return run


@pytest.fixture
def finished(unbroken: Run, tmp_path: Path) -> Run:
    """A copy of that run, to do with as a test likes."""
    return Run(Path(shutil.copytree(unbroken.folder, tmp_path / "finished")))
