"""A run that judges whole breasts, from training to a submission and other patients."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.cache.build import prepare_dataset
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.errors import UserError
from pipeline.classification.train_classes import open_folder
from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.oof import collect_oof
from pipeline.experiment import evaluate_and_report
from pipeline.external import evaluate_external
from pipeline.inference.several_runs import join_oof
from pipeline.inference.submission import predict_submission
from pipeline.pretraining.pretrain import require_settings_count
from pipeline.runs.run_folder import Run, read_oof
from pipeline.training.cross_validate import cross_validate
from tests.pipeline.test_external import rename
from tests.pipeline.tiny import PREPARE, make_exams, make_fused_recipe, make_recipe, quiet, write_test_data

ALL = "Breasts were judged by all their images together, and figures per image are their breasts'."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's data, cache and runs; and others' data."""
    place = tmp_path_factory.mktemp("breasts")
    exams = make_exams(12, 6).assign(machine_id="49", age=np.linspace(45, 80, 48).round())
    exams["age"] = exams.groupby("patient_id")["age"].transform("first")
    write_test_data(place / "own", exams)
    cache = Cache(place / "cache")
    prepare_dataset(place / "own", cache, CacheSettings(split="train", prepare=PREPARE), workers=0)
    recipes = {
        "run": make_fused_recipe("exam", epochs=2, learning_rate=1e-2),
        "one": make_fused_recipe("views", views_per_breast=1, epochs=1),
        "single": make_recipe(epochs=1),
    }
    for name, recipe in recipes.items():
        cross_validate(recipe, cache, Run(place / name), reporter=quiet())
        evaluate_and_report(Run(place / name), reporter=quiet(), cache=cache)
    write_test_data(place / "test", make_exams(5, split="test").assign(age=60))
    write_test_data(place / "north", rename(make_exams(12, 4)).assign(age=50.0))
    return place


def test_the_report_says_what_its_figures_per_image_are_and_shows_its_cases(place: Path) -> None:
    for name, sentence in (("run", ALL), ("one", "The models saw one image of a breast at a time")):
        run = Run(place / name)
        assert sentence.replace("'", "&#39;") in run.report.read_text()
        assert sentence in (run.folder / "report.md").read_text()
        images = pd.read_csv(run.folder / "images.csv")
        assert images["image_probability"].between(0, 1).all()
        assert "so it is another image" not in run.report.read_text()
    assert "judged by all their images" not in Run(place / "single").report.read_text()


def test_a_submission_holds_the_breasts_probabilities_and_its_tables_the_images_own(
    place: Path, tmp_path: Path
) -> None:
    submission = predict_submission(
        [Run(place / "run")],
        place / "test",
        tmp_path / "out.csv",
        workers=0,
        reporter=quiet(),
        probabilities=True,
    )
    images = pd.read_csv(submission.images_path)
    expected = images.groupby("prediction_id")["probability"].first()
    said = submission.table.set_index("prediction_id")["cancer"]
    assert np.abs(said - expected.loc[said.index]).max() < 1e-12
    assert images["image_probability"].nunique() == len(images)
    assert not submission.problems


def test_other_patients_are_judged_by_whole_breasts(place: Path, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(place / "run", tmp_path / "run")))
    result = evaluate_external(run, place / "north", "north", workers=0, reporter=quiet())
    table = pd.read_csv(result.folder.oof)
    assert len(table) == 48
    assert len(table[["patient_id", "laterality", "probability"]].drop_duplicates()) == 24
    assert ALL.replace("'", "&#39;") in result.folder.report.read_text()


def test_age_moves_the_images_of_a_breast_together(place: Path) -> None:
    run = Run(place / "run")
    aged = collect_oof(run, inputs=["age"])
    named = aged[["patient_id", "laterality", "probability"]].round(12).drop_duplicates()
    assert len(named) == 24
    assert aged["image_probability"].equals(collect_oof(run)["image_probability"])


def test_a_run_of_breasts_is_joined_with_one_of_images(place: Path) -> None:
    joined = join_oof([Run(place / "run"), Run(place / "single")])
    assert "image_probability" not in joined
    assert len(to_breasts(joined)) == 24
    both = join_oof([Run(place / "run"), Run(place / "one")])
    assert both["image_probability"].notna().all()


def test_a_run_of_breasts_starts_from_single_images_that_say_what_they_said(
    place: Path, tmp_path: Path
) -> None:
    """With the head kept and a rate that changes nothing."""
    recipe = make_fused_recipe(
        epochs=1, learning_rate=1e-12, init=str(place / "single"), keep_head=True, weight_decay=0.0
    )
    run = Run(tmp_path / "run")
    cross_validate(recipe, Cache(place / "cache"), run, reporter=quiet(), folds=[0])
    ours, theirs = (read_oof(each.fold(0).oof) for each in (run, Run(place / "single")))
    assert np.abs(ours["image_probability"] - theirs["probability"]).max() < 1e-6


@pytest.mark.parametrize("earlier", ["run", "one"])
def test_the_encoder_of_a_run_of_breasts_starts_others(place: Path, tmp_path: Path, earlier: str) -> None:
    init = str(place / earlier)
    recipes = {
        "left out": make_recipe(epochs=1, init=init),
        "new": make_fused_recipe(epochs=1, init=init),
        "loaded": make_fused_recipe(epochs=1, init=init, keep_head=True),
    }
    for head, recipe in recipes.items():
        run = Run(tmp_path / head)
        cross_validate(recipe, Cache(place / "cache"), run, reporter=quiet(), folds=[0])
        rows = pd.read_csv(run.fold(0).initial_weights).set_index("tensor")["outcome"]
        assert rows["fusion.head.weight"] == head
        assert rows["fusion.norm.weight"] == ("left out" if head == "left out" else "loaded")
        assert rows["blocks.0.attn.qkv.weight"] == "loaded"


def test_a_run_of_breasts_goes_on_from_another_with_what_that_said(place: Path, tmp_path: Path) -> None:
    recipe = make_fused_recipe("exam", epochs=1, learning_rate=1e-12, init=str(place / "run"), keep_head=True)
    run = Run(tmp_path / "run")
    cross_validate(recipe, Cache(place / "cache"), run, reporter=quiet(), folds=[0])
    ours, theirs = (read_oof(each.fold(0).oof) for each in (run, Run(place / "run")))
    assert np.abs(ours["probability"] - theirs["probability"]).max() < 1e-6


def test_no_labels_and_other_images_have_no_breasts() -> None:
    with pytest.raises(UserError, match=r"model\.fusion is for mammograms alone"):
        open_folder(make_fused_recipe(), Path("nowhere"))
    with pytest.raises(UserError, match=r"model\.fusion does nothing without labels"):
        require_settings_count(make_fused_recipe())
