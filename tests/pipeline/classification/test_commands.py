"""`mammo` on an image folder: train, evaluate, and the commands that need a cross-validation."""

import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from data_prep.errors import UserError
from data_prep.settings import dump_settings
from pipeline.classification.class_run import ClassRun
from pipeline.cli.app import app
from tests.pipeline.tiny import make_class_recipe, results, write_class_folder


def mammo(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny recipe for three classes as a file."""
    path = tmp_path / "colours.toml"
    path.write_text(dump_settings(make_class_recipe(epochs=12)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_class_folder(tmp_path / "data")


def test_train_and_evaluate_tell_the_accuracy_and_where_the_report_is(config: Path, data: Path) -> None:
    run = ClassRun(config.parent / "run")
    trained = mammo("train", config, "--data", data, "--run", run.folder)
    assert trained.exit_code == 0, trained.output
    assert trained.stderr == ""
    assert "3 classes, 24 images for training, 6 for the test" in trained.stdout
    assert "accuracy           1.000, 95 % interval 0.610 to 1.000" in trained.stdout
    assert "top-5 accuracy     undefined" in trained.stdout
    assert trained.stdout.splitlines()[-1] == f"confusion matrix and report: {run.report}"
    before = results(run), run.metrics.read_bytes(), run.report.read_bytes()
    for path in (run.metrics, run.report):
        path.unlink()
    evaluated = mammo("evaluate", run.folder)
    assert evaluated.exit_code == 0, evaluated.output
    assert trained.stdout.endswith(evaluated.stdout)
    assert (results(run), run.metrics.read_bytes(), run.report.read_bytes()) == before


def test_a_dry_run_plans_a_folder_of_classes_and_writes_nothing(config: Path, data: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    shown = mammo("train", config, "--data", data, "--run", config.parent / "run", "--dry-run")
    assert shown.exit_code == 0, shown.output
    header, row = (re.findall(r"\w[\w ]*\w|\d", line) for line in shown.stdout.splitlines()[1:4:2])
    assert dict(zip(header, row, strict=True)) == {
        "images": "24",
        "classes": "3",
        "steps per epoch": "3",
        "held out": "6",
    }
    assert shown.stdout.index("measuring: ") > shown.stdout.index("steps per epoch")
    assert "17 tokens, float32 on cpu" in shown.stdout
    assert re.search(r"12 epochs: about \d+ s on this machine", " ".join(shown.stdout.split()))
    assert sorted(config.parent.rglob("*")) == before


def test_predict_says_that_there_are_no_folds(config: Path, data: Path, tmp_path: Path) -> None:
    run = ClassRun(tmp_path / "run")
    assert (
        mammo("train", config, "--data", data, "--run", run.folder, "--set", "train.epochs=1").exit_code == 0
    )
    for option in ("--data", "--cache"):
        ended = mammo("predict", run.folder, option, data)
        assert isinstance(ended.exception, UserError)
        assert str(ended.exception) == (
            f"{run.folder} is not a cross-validation on mammograms and has no folds and no submission: its "
            f"predictions are in {run.folder}/predictions.csv"
        )


def test_the_run_folder_is_named_after_the_recipe(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mammo("train", config, "--data", data, "--set", "train.epochs=1").exit_code == 0
    assert (tmp_path / "reports/colours/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --cache CACHE or --data FOLDER, so that it is clear what to train on"),
        (["--data", "x", "--cache", "y"], "give either --cache CACHE or --data FOLDER"),
        (["--data", "x", "--fold", 0], "--fold goes with --cache: a folder of classes has one test split"),
        (["--data", "x"], "x is not a folder: name one with a sub-folder of images per class"),
    ],
)
def test_a_mistake_is_one_sentence(config: Path, arguments: list[object], sentence: str) -> None:
    ended = mammo("train", config, *arguments)
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception).startswith(sentence)
