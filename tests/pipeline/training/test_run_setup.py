"""What is asked of the disk before the first epoch."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.errors import DiskFull
from pipeline.runs.run_folder import Run
from pipeline.training import run_setup
from pipeline.training.run_setup import require_space_for
from tests.pipeline.tiny import make_recipe


def test_no_more_is_asked_for_than_trainings_keep_in_the_end(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run_setup, "require_space", lambda _folder, num_bytes, _what: asked.append(num_bytes))
    run = Run(tmp_path)
    require_space_for(make_recipe(), tmp_path, [run.fold(0), run.fold(1)])
    folds = [unbroken.fold(0), unbroken.fold(1)]
    files = [path for fold in folds for path in (fold.last, fold.previous, fold.weights)]
    kept = sum(path.stat().st_size for path in files)
    assert kept / 2 < asked[0] <= kept


def test_a_full_disk_is_said_with_what_is_needed_and_trainings_that_have_begun_need_no_more(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1000))
    require_space_for(make_recipe(), tmp_path, [unbroken.fold(0), unbroken.fold(1)])
    with pytest.raises(DiskFull, match=r"to keep the weights of 1 training needs 0\.0002"):
        require_space_for(make_recipe(), tmp_path, [unbroken.fold(0), Run(tmp_path).fold(1)])
