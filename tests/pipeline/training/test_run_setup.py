"""What is asked of the disk before the first epoch, and which paths a run keeps."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from data_prep.errors import DiskFull, UserError
from pipeline.runs.run_folder import Run
from pipeline.training import run_setup
from pipeline.training.run_setup import require_space_for, resolve, start_run
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


@pytest.mark.parametrize(
    ("init", "kept"),
    [
        ("", ""),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("first/fold_{fold}/model.safetensors", "{here}/first/fold_{fold}/model.safetensors"),
        ("/first/model.pth", "/first/model.pth"),
    ],
)
def test_first_weights_are_kept_by_a_path_that_holds_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, kept: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(make_recipe(init=init)).train.init == kept.replace("{here}", str(tmp_path))


def test_a_run_that_an_older_mammo_began_with_a_relative_path_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, run = make_recipe(init="first.safetensors"), Run(tmp_path / "run")
    options = {"table": pd.DataFrame({"patient_id": ["1"]}), "path": run.folds, "origin": {}}
    start_run(run, recipe, **options)
    run.fold(0).folder.mkdir()
    run.fold(0).last.touch()
    start_run(run, resolve(recipe), **options)
    with pytest.raises(UserError, match=r"train\.init"):
        start_run(run, resolve(make_recipe(init="second.safetensors")), **options)
