"""An experiment with repeats: whole runs with other seeds and splits, and what they tell together."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.settings import dump_settings
from pipeline import experiment
from pipeline.cli.app import app
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.uncertainty.repeats import REPEATS_COLUMNS
from pipeline.experiment import evaluate_and_report, make_repeat, train_and_evaluate
from pipeline.runs.run_folder import Run
from pipeline.runtime.signals import Interrupted
from pipeline.training import cross_validate as training
from tests.pipeline.tiny import heard, make_exams, make_recipe, quiet, results, write_cache, write_test_data

RECIPE = make_recipe(epochs=1)


def train(cache: Cache, run: Run, num_repeats: int, **options):
    return train_and_evaluate(RECIPE, cache, run, reporter=quiet(), num_repeats=num_repeats, **options)


@pytest.fixture(scope="module")
def repeated(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with one repeat; no test changes it."""
    run = Run(tmp_path_factory.mktemp("repeated") / "run")
    assert train(cache, run, 2) is not None
    return run


@pytest.fixture
def own(repeated: Run, tmp_path: Path) -> Run:
    """A copy, to do with as a test likes."""
    return Run(Path(shutil.copytree(repeated.folder, tmp_path / "own")))


def results_of_folds(run: Run) -> dict[str, bytes]:
    """What training leaves, without what evaluation adds."""
    left_out = ("repeat_", "oof.csv", "images.csv")
    return {name: content for name, content in results(run).items() if not name.startswith(left_out)}


# What is trained


def test_the_seeds_come_from_the_recipes_and_are_all_different() -> None:
    seeds = [
        make_repeat(make_recipe(seed=seed), number).train.seed for seed in (0, 1) for number in range(50)
    ]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert (seeds[0], seeds[50]) == (0, 1)
    assert make_repeat(RECIPE, 3).train.seed == make_repeat(RECIPE, 3).train.seed
    again = make_repeat(RECIPE, 3).train.model_copy(update={"seed": 0})
    assert again == RECIPE.train, "nothing but the seed is another"


def test_the_run_is_that_without_repeats_and_a_repeat_that_of_its_own_recipe(
    cache: Cache, repeated: Run, tmp_path: Path
) -> None:
    for number in (0, 1):
        alone = Run(tmp_path / str(number))
        training.cross_validate(make_repeat(RECIPE, number), cache, alone, reporter=quiet())
        assert results_of_folds(repeated.repeat(number)) == results(alone)


def test_a_repeat_has_other_splits(repeated: Run) -> None:
    first, second = (repeated.repeat(number).read_folds() for number in (0, 1))
    assert not first["fold"].equals(second["fold"])
    assert repeated.list_repeats() == [1]
    assert repeated.repeat(1).name == "run/repeat_1"


def test_every_command_that_takes_a_run_takes_a_repeat(own: Run, tmp_path: Path) -> None:
    data, repeat = write_test_data(tmp_path / "data", make_exams(2, split="test")), str(own.repeat(1).folder)
    told = CliRunner().invoke(app, ["evaluate", str(own.folder)]).output
    assert "In 2 cross-validations with other seeds and splits" in told
    for arguments in (
        ["evaluate", repeat],
        ["compare", str(own.folder), repeat],
        ["predict", repeat, "--data", str(data), "--workers", "0", "--probabilities"],
    ):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 0, (ended.output, ended.exception)
    assert own.repeat(1).submission.exists()


# Going on


def test_a_stop_in_a_repeat_goes_on_with_the_same_command(
    cache: Cache, repeated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")

    def stop(plan, fold, **options):
        if (plan.run.name, fold) == ("run/repeat_1", 1):
            raise Interrupted(15)
        trained(plan, fold, **options)

    trained = training.train_fold
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_fold", stop)
        with pytest.raises(Interrupted):
            train(cache, run, 2)
    assert run.report.exists(), "what is finished is evaluated at once"
    assert run.repeat(1).unfinished_folds() == [1]
    train(cache, run, 2)
    assert results(run) == results(repeated)
    assert run.repeats.read_bytes() == repeated.repeats.read_bytes()


def test_finished_repeats_are_left_as_they_are_and_more_can_be_added(cache: Cache, own: Run) -> None:
    card = own.repeat(1).model_card
    before = card.stat().st_mtime_ns, results(own.repeat(1))
    evaluation = train(cache, own, 3)
    assert (card.stat().st_mtime_ns, results(own.repeat(1))) == before
    assert evaluation.repeats.table["repeat"].tolist() == [0, 1, 2]
    assert pd.read_csv(own.repeats)["seed"].nunique() == 3


def test_a_fold_can_be_trained_in_all_repeats(cache: Cache, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert train(cache, run, 2, folds=[1]) is None
    assert [run.repeat(number).unfinished_folds() for number in (0, 1)] == [[0], [0]]
    assert not run.repeat(1).metrics.exists()


def test_an_unfinished_repeat_is_left_out(own: Run) -> None:
    own.repeat(1).fold(0).oof.unlink()
    assert evaluate_run(own).repeats is None


# What the repeats tell


def test_the_tables_hold_each_repeats_own_figures(repeated: Run) -> None:
    table = pd.read_csv(repeated.repeats)
    assert list(table) == REPEATS_COLUMNS
    for row in table.to_dict("records"):
        metrics = json.loads(repeated.repeat(row["repeat"]).metrics.read_text())
        assert row["auc"] == pytest.approx(metrics["pooled"]["auc"])
        assert row["pf1_transferred"] == pytest.approx(metrics["pooled"]["pf1_transferred"])
        assert row["auc_weighted"] == pytest.approx(metrics["images"]["pooled"]["auc_weighted"])
    of_all = json.loads(repeated.metrics.read_text())["repeats"]
    assert of_all["expected"]["auc"] == pytest.approx(table["auc"].mean())
    assert of_all["expected"]["deviation"] == pytest.approx(table["auc"].std())
    assert of_all["runs"][1]["seed"] == make_repeat(RECIPE, 1).train.seed
    assert json.loads(repeated.repeat(1).metrics.read_text())["repeats"] is None


def test_the_report_has_a_section_on_them_and_a_repeats_own_has_none(repeated: Run) -> None:
    for path in (repeated.report, repeated.report_text):
        text = path.read_text()
        assert "In 2 cross-validations with other seeds and splits" in text
        assert str(make_repeat(RECIPE, 1).train.seed) in text
        assert "Trained again" not in (repeated.repeat(1).folder / path.name).read_text()
    assert repeated.report.read_text().count('<dd class="value">') == 4


def test_a_repeat_of_other_labels_is_refused(own: Run) -> None:
    for fold in own.repeat(1).list_folds():
        path = own.repeat(1).fold(fold).oof
        table = pd.read_csv(path)
        table.assign(cancer=1 - table["cancer"]).to_csv(path, index=False)
    before = own.report.read_bytes()
    with pytest.raises(UserError, match=r"repeat_1 is not of the same breasts and labels as .*: remove it"):
        evaluate_and_report(own, reporter=quiet())
    assert own.report.read_bytes() == before


# What makes no sense


def test_first_weights_of_one_split_are_refused_before_anything_is_trained(
    cache: Cache, tmp_path: Path
) -> None:
    recipe = make_recipe(init="other/fold_{fold}/model.safetensors")
    with pytest.raises(UserError, match=r"train.init other/fold_\{fold\}/model.safetensors belongs to one"):
        train_and_evaluate(recipe, cache, Run(tmp_path / "run"), reporter=quiet(), num_repeats=2)
    assert not (tmp_path / "run").exists()


def test_a_repeat_whose_folds_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe, cache):
        raise UserError(f"no folds with seed {recipe.train.seed}")

    monkeypatch.setattr(experiment, "draw_folds", refuse)
    cache, reporter = write_cache(tmp_path / "cache", make_exams(4, 2)), quiet()
    with pytest.raises(UserError, match=f"seed {make_repeat(RECIPE, 1).train.seed}"):
        train_and_evaluate(RECIPE, cache, Run(tmp_path / "run"), reporter=reporter, num_repeats=2)
    assert not (tmp_path / "run").exists()
    assert heard(reporter) == ""


def test_the_option_multiplies_a_dry_run_and_does_not_go_with_a_folder_of_classes(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(dump_settings(RECIPE))
    arguments = ["train", str(config), "--cache", str(cache.folder), "--repeats", "4", "--dry-run"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert "1 epoch of 2 folds, 4 times: about " in shown.output
    refused = CliRunner().invoke(app, ["train", str(config), "--data", "classes", "--repeats", "2"])
    assert "--repeats goes with --cache" in str(refused.exception)


def test_the_command_says_what_is_still_to_be_trained(cache: Cache, tmp_path: Path) -> None:
    config, run = tmp_path / "config.toml", Run(tmp_path / "run")
    config.write_text(dump_settings(RECIPE))
    arguments = ["train", str(config), "--cache", str(cache.folder), "--run", str(run.folder)]
    part = CliRunner().invoke(app, [*arguments, "--repeats", "2", "--fold", "0"])
    assert part.exit_code == 0, part.output
    assert f"{run.folder}: fold 1 still to be trained" in part.output
    assert f"{run.repeat(1).folder}: fold 1 still to be trained" in part.output
