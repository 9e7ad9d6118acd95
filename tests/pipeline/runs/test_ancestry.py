"""Whose patients a run has learned from by its first weights."""

from pathlib import Path

import pandas as pd
import pytest

from data_prep.settings import dump_settings
from pipeline.runs.ancestry import list_ancestors
from pipeline.runs.run_folder import Run
from tests.pipeline.tiny import make_recipe


def write_run(folder: Path, init: str = "") -> Run:
    run = Run(folder)
    folder.mkdir()
    run.settings.write_text(dump_settings(make_recipe(init=init)))
    pd.DataFrame({"patient_id": ["1", "2"], "fold": [0, 1], "num_images": 1, "num_cancers": 0}).to_csv(
        run.folds, index=False
    )
    return run


@pytest.fixture
def oldest(tmp_path: Path) -> Run:
    return write_run(tmp_path / "oldest")


def test_runs_are_followed_by_folder_and_by_a_folds_weights(oldest: Run, tmp_path: Path) -> None:
    older = write_run(tmp_path / "older", str(oldest.folder))
    for init in (older.folder, older.folder / "fold_{fold}/model.safetensors"):
        runs, unknown = list_ancestors(str(init))
        assert [run.folder for run in runs] == [older.folder, oldest.folder]
        assert unknown == ""


def test_weights_of_nobodys_run_are_unknown_and_timms_have_seen_no_mammogram(tmp_path: Path) -> None:
    bare = str(tmp_path / "weights.safetensors")
    assert list_ancestors("") == ([], "")
    assert list_ancestors("timm:vit_tiny_patch16_224") == ([], "")
    reason = f"nobody knows whom the weights of train.init {bare} have learned from"
    assert list_ancestors(bare) == ([], reason)
    run = write_run(tmp_path / "run", bare)
    runs, unknown = list_ancestors(str(run.folder))
    assert [each.folder for each in runs] == [run.folder]
    assert unknown == reason


def test_a_circle_ends(oldest: Run) -> None:
    oldest.settings.write_text(dump_settings(make_recipe(init=str(oldest.folder))))
    assert [run.folder for run in list_ancestors(str(oldest.folder))[0]] == [oldest.folder]


def test_damaged_settings_are_a_reason(oldest: Run) -> None:
    oldest.settings.write_text("[train")
    runs, unknown = list_ancestors(str(oldest.folder))
    assert [run.folder for run in runs] == [oldest.folder]
    assert str(oldest.settings) in unknown
