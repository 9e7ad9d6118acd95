"""The run folder's own rules: which folds there are, which are done, and what is not a run at all."""

import json
from pathlib import Path

import pandas as pd
import pytest

from data_prep.errors import UserError
from data_prep.settings import dump_settings
from pipeline.runs.run_folder import OOF_COLUMNS, Run, read_oof
from pipeline.runtime.distributed import ProcessGroup
from pipeline.training.run_setup import say_if_split_otherwise
from tests.pipeline.tiny import heard, make_recipe, quiet


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three folds, of which 0 and 10 are finished."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    folds = pd.DataFrame({"patient_id": ["007", "8", "9"], "fold": [10, 0, 2]})
    folds.assign(num_images=4, num_cancers=0).to_csv(run.folds, index=False)
    for fold in (0, 10):
        run.fold(fold).folder.mkdir()
        write_oof(run.fold(fold).oof)
    return run


def write_oof(path: Path, **columns: list) -> None:
    values = {"fold": [0], "image_id": ["01"], "patient_id": ["007"], "laterality": ["L"], "cancer": [1]}
    pd.DataFrame(values | {"probability": [1 / 3]} | columns).to_csv(path, index=False)


def test_folds_are_listed_by_number(run: Run) -> None:
    assert run.list_folds() == [0, 2, 10]
    assert run.unfinished_folds() == [2]


def test_ids_stay_text(run: Run) -> None:
    assert run.read_folds()["patient_id"].tolist() == ["007", "8", "9"]
    oof = read_oof(run.fold(0).oof)
    assert oof[["image_id", "patient_id"]].iloc[0].tolist() == ["01", "007"]
    assert oof["probability"].iloc[0] == 1 / 3


def test_an_unfinished_run_names_the_folds_and_the_command_that_goes_on(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        run.require_finished()
    command = f"`mammo train {run.settings} --run {run.folder}` and the same --cache"
    assert str(caught.value) == (
        f"{run.folder} is not finished: fold 2 of 3 still to be trained; go on with {command}"
    )
    run.fold(2).folder.mkdir()
    write_oof(run.fold(2).oof)
    assert run.require_finished() == [0, 2, 10]


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"is not a run folder: it has no folds\.csv; `mammo train`"):
            Run(folder).list_folds()


def test_the_name_is_the_folders_even_where_the_path_is_a_dot(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder)
    assert Run(Path()).name == "run"


def test_a_table_of_predictions_is_checked(run: Run) -> None:
    path = run.fold(0).oof
    write_oof(path, note=["x"])
    assert list(read_oof(path)) == OOF_COLUMNS
    write_oof(path, machine_id=["049"], age=[61], view=[None])
    oof = read_oof(path)
    assert list(oof) == [*OOF_COLUMNS, "view", "machine_id", "age"]
    assert oof["machine_id"].tolist() == ["049"]
    assert oof["view"].isna().all()
    pd.read_csv(path).drop(columns=["cancer", "fold"]).to_csv(path, index=False)
    with pytest.raises(UserError, match="lacks the column fold, cancer; it needs fold, image_id, patient_id"):
        read_oof(path)
    write_oof(path)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match="holds image 01 twice"):
        read_oof(path)


def test_a_run_that_goes_on_with_other_processes_says_so_even_without_its_environment(run: Run) -> None:
    """A run without environment.json counts as begun by one process; a damaged one is named."""
    spoken, recipe = {}, make_recipe()
    run.settings.write_text(dump_settings(recipe))
    for content in (None, '{"processes": 2}', '{"processes": '):
        if content is not None:
            run.environment.write_text(content)
        reporter = quiet()
        try:
            say_if_split_otherwise(run, recipe, ProcessGroup(0, 2), reporter)
        except UserError as error:
            spoken[content] = str(error)
        else:
            spoken[content] = heard(reporter)
    assert "was begun by 1 process and goes on with 2" in spoken[None]
    assert spoken['{"processes": 2}'] == ""
    assert spoken['{"processes": '].startswith(f"{run.environment} is damaged")


def test_what_went_on_in_other_parts_stands_in_the_environment_once(run: Run) -> None:
    run.settings.write_text(dump_settings(make_recipe()))
    run.environment.write_text('{"processes": 1, "versions": {"torch": "2"}}')
    for parts in (2, 2, 3):
        recipe = make_recipe(accumulation=parts)
        say_if_split_otherwise(run, recipe, ProcessGroup(0, 1), quiet())
    assert json.loads(run.environment.read_text()) == {
        "processes": 1,
        "versions": {"torch": "2"},
        "batches_in_other_parts": "begun with train.accumulation 1 and goes on with 2; "
        "begun with train.accumulation 1 and goes on with 3",
    }
