"""All folds of a run: what the folder holds, and what does not fit together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from data_prep.cache.folder import Cache
from data_prep.errors import FolderInUse, UserError
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.folds import make_folds
from data_prep.storage.locks import locked
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.reporting.text import describe_separation
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import OOF_COLUMNS, Run, read_oof
from pipeline.training.cross_validate import begin, cross_validate, make_fold_tasks
from pipeline.training.run_setup import resolve
from tests.pipeline.tiny import (
    PREPARE,
    heard,
    make_class_recipe,
    make_exams,
    make_recipe,
    quiet,
    results,
    write_cache,
)


def contents(run: Run) -> dict[Path, tuple[int, bytes]]:
    """Every file of a run with its time."""
    paths = [path for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


# What a run holds


def test_a_run_folder_holds_the_files_that_are_promised(unbroken: Run) -> None:
    names = {str(path.relative_to(unbroken.folder)) for path in contents(unbroken)}
    of_a_fold = [
        "last.pt",
        "previous.pt",
        "model.safetensors",
        "history.csv",
        "throughput.csv",
        "oof.csv",
        "attention.csv",
    ]
    assert names == {
        "settings.toml",
        "folds.csv",
        "pictures.csv",
        "environment.json",
        *(f"fold_{fold}/{name}" for fold in (0, 1) for name in of_a_fold),
    }


def test_every_image_is_predicted_once_by_the_fold_that_did_not_train_on_its_patient(
    cache: Cache, unbroken: Run
) -> None:
    exams = make_exams()
    tables = [read_oof(unbroken.fold(fold).oof) for fold in (0, 1)]
    oof = pd.concat(tables)
    assert list(oof) == [*OOF_COLUMNS, "view"]
    assert sorted(oof["image_id"]) == sorted(exams["image_id"])
    assert oof["probability"].between(0, 1).all()
    fold_of = make_folds(exams, num_folds=2, seed=0).set_index("patient_id")["fold"]
    assert (oof["patient_id"].map(fold_of) == oof["fold"]).all()
    told = oof.merge(exams, on="image_id", suffixes=("", "_given"))
    for name in ("patient_id", "laterality", "cancer", "view"):
        assert (told[name] == told[f"{name}_given"]).all()


def test_images_that_failed_to_prepare_are_counted_with_the_command_that_names_them(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", make_exams(), failed={"101", "130"})
    reporter = quiet()
    cross_validate(make_recipe(epochs=1), cache, Run(tmp_path / "run"), reporter=reporter, folds=[0])
    sentence = (
        "2 of 40 images failed to prepare (2 truncated) and are left out: "
        f"`mammo verify {cache.folder}` says why"
    )
    assert heard(reporter).count(sentence) == 1
    list(make_fold_tasks(make_recipe(), cache, reporter=reporter))
    assert heard(reporter).count(sentence) == 2


def test_a_run_keeps_its_recipe_and_the_place_where_it_was_made(cache: Cache, unbroken: Run) -> None:
    assert load_recipe(unbroken.settings) == make_recipe()
    environment = json.loads(unbroken.environment.read_text())
    assert environment["device"] == "cpu"
    assert environment["cache"] == str(cache.folder)
    assert environment["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_what_auto_means_is_kept_and_not_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    train = resolve(make_recipe(device="auto", precision="bf16")).train
    assert (train.device, train.precision) == ("cuda", "fp16")
    train = resolve(make_recipe(device="cpu", precision="fp16")).train
    assert (train.device, train.precision) == ("cpu", "float32")


# Going on


def test_a_second_start_of_a_finished_run_does_nothing(cache: Cache, finished: Run) -> None:
    before, reporter = contents(finished), quiet()
    cross_validate(make_recipe(), cache, finished, reporter=reporter)
    assert contents(finished) == before
    assert heard(reporter) == "fold 0: finished before\nfold 1: finished before\n"


def test_a_run_goes_on_with_its_own_settings_as_the_recipe(cache: Cache, finished: Run) -> None:
    before = results(finished)
    finished.fold(1).oof.unlink()
    cross_validate(load_recipe(finished.settings), cache, finished, reporter=quiet())
    assert results(finished) == before


def test_folds_trained_one_by_one_make_the_same_run(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[1, 1])
    assert run.unfinished_folds() == [0]
    assert not run.fold(0).folder.exists()
    with pytest.raises(UserError, match=r"is not finished: fold 0 of 2 still to be trained; go on with"):
        evaluate_run(run)
    cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    assert results(run) == results(unbroken)


def test_a_fold_that_another_process_trains_is_left_to_it(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with locked(run.fold(0).folder), pytest.raises(FolderInUse, match="fold_0 is in use by process"):
        cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert not run.fold(0).last.exists()


# The same picture under two patients


def make_shared(folder: Path, *pairs: tuple[str, str]) -> Cache:
    """A cache in which the first image of each pair is the second one too."""
    cache = write_cache(folder, make_exams())
    table = pd.read_csv(cache.manifest_path, dtype=str, keep_default_na=False).set_index(
        "image_id", drop=False
    )
    table["contrast"], table["source_sha256"] = "0.5", table["image_sha256"]
    for image_id, twin in pairs:
        shutil.copy(cache.image_path(table.loc[image_id, "patient_id"], image_id), folder)
        cache.image_path(table.loc[twin, "patient_id"], twin).write_bytes(
            (folder / f"{image_id}.png").read_bytes()
        )
        table.loc[twin, "image_sha256"] = table.loc[image_id, "image_sha256"]
    table.to_csv(cache.manifest_path, index=False)
    return cache


def test_patients_who_share_pictures_are_in_one_fold_which_is_told_recorded_and_reported(
    tmp_path: Path,
) -> None:
    """Patients 1, 6 and 8 through images of 6, and 2 and 9."""
    cache = make_shared(tmp_path / "cache", ("100", "120"), ("121", "130"), ("104", "132"))
    run, reporter = Run(tmp_path / "run"), quiet()
    cross_validate(make_recipe(epochs=1), cache, run, reporter=reporter)
    assert (
        heard(reporter).count("5 patients share a picture with another one: 2 groups, each kept in one") == 1
    )
    folds = run.read_folds().set_index("patient_id")
    assert folds["group"].to_dict() == {str(who): str(who) for who in range(1, 11)} | {
        "6": "1",
        "8": "1",
        "9": "2",
    }
    assert set(folds.groupby("group")["fold"].nunique()) == {1}
    assert folds["fold"].nunique() == 2
    cross_validate(make_recipe(epochs=1), cache, run, reporter=quiet())  # goes on
    assert "5 patients share a picture" in describe_separation(run, evaluate_run(run))


def test_a_cache_without_shared_pictures_gives_the_folds_table_of_before(
    cache: Cache, unbroken: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    begin(make_recipe(), make_shared(tmp_path / "cache"), run)
    assert run.folds.read_bytes() == unbroken.folds.read_bytes()
    assert list(run.read_folds()) == ["patient_id", "fold", "num_images", "num_cancers"]
    assert "share" not in describe_separation(unbroken, evaluate_run(unbroken))


def test_a_run_that_was_begun_with_the_leak_does_not_go_on(
    unbroken: Run, finished: Run, tmp_path: Path
) -> None:
    cache = make_shared(tmp_path / "cache", ("100", "120"))
    with pytest.raises(UserError, match="begun before patients who share a picture were kept in one fold"):
        cross_validate(make_recipe(), cache, finished, reporter=quiet())
    assert results(finished) == results(unbroken)


# An attempt that failed at its start


def write_no_weights(folder: Path) -> str:
    """Writes a file that shows that it holds no Vision Transformer only when one is loaded."""
    torch.save({"weight": torch.ones(1)}, folder / "no weights.pth")
    return str(folder / "no weights.pth")


@pytest.mark.parametrize("wrong", [{}, {"num_folds": 4}])
def test_an_attempt_that_failed_at_its_start_does_not_stand_in_the_way(
    cache: Cache, unbroken: Run, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    run, init = Run(tmp_path / "run"), write_no_weights(tmp_path)
    with pytest.raises(UserError):
        cross_validate(make_recipe(init=init, **wrong), cache, run, reporter=quiet())
    assert run.settings.exists()
    run.fold(0).initial_weights.write_text("of the first attempt")
    cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert results(run) == results(unbroken)
    assert not run.fold(0).initial_weights.exists()


def test_after_such_an_attempt_other_patients_may_be_trained_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    recipe, cache = make_recipe(init=write_no_weights(tmp_path)), write_cache(tmp_path / "a", make_exams())
    with pytest.raises(UserError):
        cross_validate(recipe, cache, run, reporter=quiet())
    assert run.settings.exists()
    other = write_cache(tmp_path / "b", make_exams(12))
    cross_validate(make_recipe(epochs=1), other, run, reporter=quiet(), folds=[0])
    assert run.read_folds()["patient_id"].nunique() == 12


@pytest.mark.parametrize("left", ["last.pt", "previous.pt", "model.safetensors", "oof.csv"])
def test_what_was_computed_keeps_its_settings(cache: Cache, unbroken: Run, tmp_path: Path, left: str) -> None:
    """Whichever file is left of it, in any fold."""
    run = Run(tmp_path / "run")
    run.fold(1).folder.mkdir(parents=True)
    for path in (run.settings, run.folds, run.fold(1).folder / left):
        shutil.copy(unbroken.folder / path.relative_to(run.folder), path)
    before = contents(run)
    with pytest.raises(UserError, match=r"started with other settings \(train.epochs is 3, not 4\)"):
        cross_validate(make_recipe(epochs=4), cache, run, reporter=quiet())
    assert contents(run) == before


def test_a_fold_in_its_first_minutes_keeps_its_settings(cache: Cache, unbroken: Run, tmp_path: Path) -> None:
    """Another process trains it and has no checkpoint yet; equal settings may train the other fold."""
    run = Run(tmp_path / "run")
    with locked(run.fold(0).folder):
        cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[1])
        shutil.rmtree(run.fold(1).folder)
        with pytest.raises(UserError, match="started with other settings"):
            cross_validate(make_recipe(epochs=4), cache, run, reporter=quiet(), folds=[1])
    assert load_recipe(run.settings) == make_recipe()


def test_a_run_on_an_image_folder_is_left_to_the_process_that_trains_it(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with locked(run.folder), pytest.raises(FolderInUse, match="run is in use by process"):
        cross_validate(make_recipe(), cache, run, reporter=quiet())
    assert not run.settings.exists()


# What does not fit


def other_patients(cache: Cache, folder: Path) -> Cache:
    return write_cache(folder / "other", make_exams(11))


def of_test_split(cache: Cache, folder: Path) -> Cache:
    return write_cache(folder / "other", make_exams(split="test"))


def other_side(cache: Cache, folder: Path) -> Cache:
    return write_cache(folder / "other", make_exams(), prepare=PrepareSettings(side=48))


def two_patients(cache: Cache, folder: Path) -> Cache:
    return write_cache(folder / "other", make_exams(2, num_cancers=1))


def unfinished(cache: Cache, folder: Path) -> Cache:
    other = write_cache(folder / "other", make_exams())
    other.manifest_path.unlink()
    return other


def no_cache(cache: Cache, folder: Path) -> Cache:
    return Cache(folder / "other")


@pytest.mark.parametrize(
    ("make_cache", "sentence"),
    [
        (other_patients, "has other images or labels than .*/other: choose another --run"),
        (of_test_split, "holds the test split, which has no labels to train on"),
        (
            other_side,
            r"side is 48, not 32\): `mammo train .* --set prepare.side=48` .* `mammo prepare .*side=32`",
        ),
        (two_patients, "2 folds of 2 patients: every fold needs a breast with cancer"),
        (unfinished, "other is not finished: run the same `mammo prepare` command again"),
        (no_cache, r"other is not a cache: it has no settings.toml; `mammo prepare` makes one"),
    ],
)
def test_a_cache_that_does_not_fit_is_one_sentence_and_changes_nothing(
    cache: Cache, finished: Run, tmp_path: Path, make_cache: Callable[[Cache, Path], Cache], sentence: str
) -> None:
    before = contents(finished)
    with pytest.raises(UserError, match=sentence) as caught:
        cross_validate(make_recipe(), make_cache(cache, tmp_path), finished, reporter=quiet())
    assert "\n" not in str(caught.value)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("recipe", "folds", "sentence"),
    [
        (
            make_recipe(epochs=4, seed=1),
            None,
            r"started with other settings \(train.seed is 0, not 1; train.epochs is 3, not 4\): choose",
        ),
        (make_recipe(num_folds=11), None, "11 folds of 10 patients: every fold needs one; use fewer folds"),
        (make_recipe(), [2], "there is no fold 2: this recipe has the folds 0 to 1"),
        (make_recipe(), [-1], "there is no fold -1"),
        (
            Recipe(prepare=PREPARE),
            None,
            "512 and prepare.side 32 must be equal, .* `mammo train .*side=32` .* `mammo prepare .*side=512`",
        ),
        (
            make_class_recipe(1),
            None,
            "model.in_channels is 3 and must be 1 for mammograms, .* --set model.in_cha",
        ),
        (
            make_class_recipe(3, in_channels=1),
            None,
            "model.num_classes is 3 and must be 1 for .* with --data",
        ),
    ],
    ids=["settings", "folds", "fold", "negative fold", "image size", "channels", "classes"],
)
def test_a_recipe_that_does_not_fit_is_one_sentence_and_changes_nothing(
    cache: Cache, finished: Run, recipe: Recipe, folds: list[int] | None, sentence: str
) -> None:
    before = contents(finished)
    with pytest.raises(UserError, match=sentence) as caught:
        cross_validate(recipe, cache, finished, reporter=quiet(), folds=folds)
    assert "\n" not in str(caught.value)
    assert contents(finished) == before


def test_nothing_is_made_where_folds_cannot_be(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        cross_validate(make_recipe(num_folds=11), cache, Run(tmp_path / "run"), reporter=quiet())
    assert not (tmp_path / "run").exists()
