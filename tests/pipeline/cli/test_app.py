"""The command line: help, one-line errors with their exit codes, and signals to a real process."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from data_prep.cache.folder import Cache
from data_prep.settings import dump_settings
from pipeline.cli import app
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runs.shipped_recipes import list_recipes
from pipeline.runtime.signals import Interrupted
from pipeline.training.cross_validate import cross_validate
from tests.forked import Forked
from tests.pipeline.tiny import make_exams, make_recipe, quiet, results, write_test_data

COMMANDS = sorted(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int
    output: str
    errors: str


Mammo = Callable[..., Ended]


@pytest.fixture
def mammo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mammo:
    """Runs `main` in this process, as if its arguments had been typed."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mammo", *map(str, arguments)])
        exit_code = 0
        try:
            app.main()
        except SystemExit as end:
            exit_code = end.code if isinstance(end.code, int) else 0
        return Ended(exit_code, *capsys.readouterr())

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(dump_settings(make_recipe()))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of two patients with train.csv and test.csv over the same images."""
    folder = write_test_data(tmp_path / "data", make_exams(2, split="test"))
    make_exams(2, num_cancers=1).to_csv(folder / "train.csv", index=False)
    shutil.copytree(folder / "test_images", folder / "train_images")
    return folder


def assert_one_sentence(ended: Ended, exit_code: int, sentence: str) -> None:
    assert ended.exit_code == exit_code, ended
    assert ended.errors.startswith("mammo: ")
    assert ended.errors.count("\n") == 1, ended.errors
    assert sentence in ended.errors
    assert "Traceback" not in ended.errors


# Help


def test_the_commands_of_the_design_are_there() -> None:
    assert {"demo", "prepare", "train", "evaluate", "predict", "check"} <= set(COMMANDS)


def show_help(command: list[str], width: int) -> list[str]:
    """The lines of a command's help."""
    shown = CliRunner().invoke(app.app, [*command, "--help"], env={"COLUMNS": str(width)})
    assert shown.exit_code == 0
    return shown.output.splitlines()


def describe(command: list[str]) -> Any:
    group = typer.main.get_command(app.app)
    return group.commands[command[0]] if command else group  # type: ignore[attr-defined]


every_command = pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=str)


@every_command
@pytest.mark.parametrize("width", [50, 80, 200])
def test_help_keeps_every_word_and_bracket_and_fits_the_width(command: list[str], width: int) -> None:
    lines, described = show_help(command, width), describe(command)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for text in (described.help, *(parameter.help for parameter in described.params)):
        assert text
        assert not set(text.split()) - set(words)
    for paragraph in described.help.split("\n\n"):
        assert " ".join(paragraph.split()) in " ".join(words), "nothing stands between its words"


@every_command
def test_help_calls_each_value_by_a_plain_word(command: list[str]) -> None:
    lines = show_help(command, 200)
    for parameter in describe(command).params:
        (row,) = [line for line in lines if parameter.help.split("\n")[0][:60] in line]
        name = row[: row.index(parameter.help[:20])].split()
        assert name[0] == (parameter.opts[0] if "-" in parameter.opts[0] else parameter.metavar.split()[0])
        assert all(re.fullmatch(r"--[a-z-]+|[A-Z.=]+|[a-z|]+(://HOST:PORT)?", word) for word in name), name
        assert len(name) == 1 or not getattr(parameter, "is_flag", False)
    assert not re.search(r"<(int|str|bool|path|list|float)|\{", "\n".join(lines))


def test_help_tells_defaults_and_what_is_required() -> None:
    text = " ".join(" ".join(show_help(["prepare"], 80)).split())
    assert "Usage: mammo prepare [OPTIONS] DATA" in text.replace("Usage: root", "Usage: mammo")
    assert "--split train|test Which CSV to read. (default: train)" in text
    assert "Draws the patients of --patients. (default: 0)" in text
    assert "--workers N Processes; 0 works in this one. (default: one per core)" in text
    assert "one to complete. (required)" in text
    assert "--allow-failures Exit 0 although some images failed. --help" in text


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import pipeline.cli.app, sys; assert not {'torch', 'timm', 'albumentations'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_the_version_is_that_of_the_distribution(mammo: Mammo) -> None:
    assert mammo("--version") == Ended(0, f"mammo {version('mammo-vit')}\n", "")


def test_recipes_are_listed_on_a_line_each_and_one_is_copied(
    mammo: Mammo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = mammo("recipes")
    assert [line.split()[0] for line in listed.output.splitlines()] == [*list_recipes()]
    assert "smoke.toml: edit it, then `mammo train smoke.toml" in mammo("recipes", "smoke").output
    assert_one_sentence(mammo("recipes", "smoke"), 2, "smoke.toml is there already")
    assert_one_sentence(mammo("recipes", "smok", "--out", "a.toml"), 2, "did you mean smoke?")
    assert [path.name for path in tmp_path.iterdir()] == ["smoke.toml"]


def test_a_recipe_is_named_from_any_folder(
    mammo: Mammo, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [f"model.{name}" for name in ("patch_size=8", "width=16", "depth=1", "num_heads=2")]
    tiny += [f"train.{name}" for name in ("num_folds=2", "batch_size=8", "workers=0")]
    words = ["train", "smoke", "--cache", cache.folder, *(f"--set={one}" for one in tiny)]
    assert_one_sentence(mammo(*words), 2, "`mammo train CONFIG --cache")
    assert mammo(*words, "--set=prepare.side=32", "--fold", 0).exit_code == 0
    assert load_recipe(Path("reports/smoke/settings.toml")).model.image_size == 32


@pytest.mark.parametrize(
    ("typed", "completed"), [("train vit_s", "vit_s16_512"), ("reci", "recipes"), ("recipes sm", "smoke")]
)
def test_a_shell_completes_commands_and_recipes(typed: str, completed: str) -> None:
    words = f"mammo {typed}"
    asked = {"_MAMMO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shown = CliRunner().invoke(app.app, env=asked, prog_name="mammo")
    assert completed in shown.output.splitlines()


# The way through


def test_train_predict_and_check_tell_what_they_wrote(
    mammo: Mammo, cache: Cache, unbroken: Run, config: Path, data: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    trained = mammo("train", config, "--cache", cache.folder, "--run", run.folder)
    assert (trained.exit_code, trained.errors) == (0, "")
    assert "all folds" in trained.output
    assert f"report: {run.report}" in trained.output
    assert results(run)["fold_1/oof.csv"] == results(unbroken)["fold_1/oof.csv"]
    assert run.metrics.exists()
    predicted = mammo("predict", run.folder, "--data", data, "--workers", 0, "--probabilities")
    assert (predicted.exit_code, predicted.errors) == (0, "")
    assert f"{run.submission}: 4 rows of probabilities" in predicted.output
    checked = mammo("check", run.submission, "--data", data)
    assert checked == Ended(0, checked.output, "")
    assert f"{run.submission} is valid" in checked.output


def test_the_run_folder_is_named_after_the_recipe(
    mammo: Mammo, cache: Cache, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", config, "--cache", cache.folder, "--set", "train.epochs=1"]
    part = mammo(*arguments, "--fold", 1)
    assert "reports/tiny: fold 0 still to be trained" in part.output
    assert not (tmp_path / "reports/tiny/report.html").exists()
    assert_one_sentence(
        mammo("evaluate", "reports/tiny"), 2, "reports/tiny is not finished: fold 0 of 2 still"
    )
    assert mammo(*arguments, "--fold", 0).exit_code == 0
    assert (tmp_path / "reports/tiny/report.html").exists()


def test_prepare_goes_on_where_it_was(mammo: Mammo, config: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["prepare", data, "--cache", tmp_path / "cache", "--config", config, "--workers", 0]
    assert "8 images prepared, 0 already there, 0 failed" in mammo(*arguments).output
    assert "0 images prepared, 8 already there, 0 failed" in mammo(*arguments).output


def test_a_submission_with_problems_exits_1_and_names_them(mammo: Mammo, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("prediction_id,cancer\n1_L,0.5\n1_R,2\n")
    ended = mammo("check", path, "--data", data)
    assert ended.exit_code == 1
    problems = ended.errors.splitlines()
    assert len(problems) == 2
    assert all(problem.startswith(f"{path}: ") for problem in problems)


def test_one_patient_is_no_patients(mammo: Mammo, tmp_path: Path) -> None:
    ended = mammo("phantom", tmp_path / "new", "--patients", 1, "--rows", 64, "--columns", 64)
    assert ended.output.splitlines()[-1].startswith("1 patient for training, and some more for the test: ")


def test_a_path_that_the_system_refuses_is_one_sentence(mammo: Mammo, data: Path) -> None:
    name = 300 * "x"
    for command in (["verify", name], ["pack", name], ["inspect", name], ["prepare", name, "--cache", "c"]):
        assert_one_sentence(mammo(*command), 2, "File name too long")
    assert_one_sentence(mammo("inspect", name), 2, f"mammo: cannot use {name}: File name too long")
    ended = mammo("--debug", "inspect", name)
    assert "Traceback" in ended.errors
    assert ended.errors.splitlines()[-1] == f"mammo: cannot use {name}: File name too long"


@pytest.mark.parametrize(
    ("arguments", "way_on"),
    [
        (["prepare", "data", "--cache", "cache"], "what was done is kept, go on with"),
        (["--debug", "train", "recipe.toml", "--cache", "cache"], "what was done is kept, go on with"),
        (["verify", "train"], "start again with"),
        (["predict", "run", "--data", "verify"], "what was done is kept, go on with"),
        (["check", "predict", "--data", "demo"], "start again with"),
    ],
)
def test_only_the_command_itself_says_whether_it_can_go_on(
    mammo: Mammo, monkeypatch: pytest.MonkeyPatch, arguments: list[str], way_on: str
) -> None:
    def stop() -> NoReturn:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(app, "app", stop)
    ended = mammo(*arguments)
    assert ended.exit_code == 143
    sentence = f"mammo: stopped by SIGTERM; {way_on}: mammo {' '.join(arguments)}"
    assert ended.errors.splitlines()[-1] == sentence


def test_a_stop_repeats_no_password(mammo: Mammo, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> NoReturn:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(app, "app", stop)
    ended = mammo("prepare", "https://secret@host/data", "--cache", "a\x1b[31m")
    assert ended.errors.endswith("go on with: mammo prepare 'https://***@host/data' --cache 'a\\x1b[31m'\n")


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "data", "--cache"],
        ["train", "recipe.toml", "--cache"],
        ["evaluate"],
        ["compare", "run"],
        ["predict", "run", "--data", "data", "--out"],
        ["check"],
    ],
)
def test_an_address_is_no_path(
    mammo: Mammo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    """It would become a folder, with the password in its name."""
    monkeypatch.chdir(tmp_path)
    more = ["--data", "data"] if command == ["check"] else []
    ended = mammo(*command, "s3://bucket/x", *more)
    assert_one_sentence(ended, 2, " is an address here, and takes a path on this machine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["s3://key:sec/ret@bucket/x", "https://user:secret@host/x"])
@pytest.mark.parametrize(
    "command", [["prepare", "data", "--cache"], ["inspect", "x"], ["verify", "x", "--nonsense"]]
)
def test_a_password_is_refused_and_not_repeated(mammo: Mammo, command: list[str], address: str) -> None:
    ended = mammo(*command, address)
    assert_one_sentence(ended, 2, "an address holds a user name and a password: give it without")
    assert "secret" not in ended.errors
    assert "sec/ret" not in ended.errors


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u202eb", "a\nb", "a\udcffb"])
def test_names_cannot_steer_the_terminal(mammo: Mammo, name: str) -> None:
    for command in (["evaluate", name], ["inspect", name], ["verify", name], ["train", name, "--cache", "c"]):
        ended = mammo(*command)
        assert ended.exit_code == 2
        assert ended.errors.count("\n") == 1
        assert name not in ended.errors
        assert ended.errors.removesuffix("\n").isprintable()


# Images that cannot be used


def break_image(folder: Path) -> None:
    (folder / "1/100.png").write_bytes(b"no image")


def break_dicom(folder: Path) -> None:
    (folder / "1/100.png").unlink()
    (folder / "1/100.dcm").write_bytes(b"not DICOM at all")


@pytest.mark.parametrize("spoil", [break_image, break_dicom])
def test_prepare_with_failures_exits_1_with_their_table(
    mammo: Mammo, config: Path, data: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(data / "train_images")
    cache = tmp_path / "cache"
    arguments = ["prepare", data, "--cache", cache, "--config", config, "--workers", 0]
    ended = mammo(*arguments)
    assert ended.exit_code == 1
    assert ended.errors.count("\n") == 1
    assert f"see {cache}/failures.csv" in ended.errors
    assert "7 images prepared, 0 already there, 1 failed" in ended.output
    assert pd.read_csv(cache / "failures.csv", dtype=str)["image_id"].tolist() == ["100"]
    assert mammo(*arguments, "--allow-failures").exit_code == 0


def test_predict_with_failures_writes_every_row_and_exits_1(
    mammo: Mammo, unbroken: Run, data: Path, tmp_path: Path
) -> None:
    break_image(data / "test_images")
    (data / "test_images/1/101.png").unlink()
    out = tmp_path / "out.csv"
    arguments = ["predict", unbroken.folder, "--data", data, "--out", out, "--workers", 0, "--probabilities"]
    ended = mammo(*arguments)
    assert ended.exit_code == 1
    assert f"see {tmp_path / 'out_failures.csv'}" in ended.errors
    assert len(pd.read_csv(tmp_path / "out_failures.csv")) == 2
    assert len(pd.read_csv(out)) == 4
    assert mammo("check", out, "--data", data).exit_code == 0
    assert mammo(*arguments, "--allow-failures").exit_code == 0


def test_predict_answers_by_the_runs_threshold(mammo: Mammo, finished: Run, data: Path) -> None:
    """Nothing but the result stays; probabilities, the highest view and the flip are there for the asking."""
    arguments = ["predict", finished.folder, "--data", data, "--workers", 0]
    read = partial(pd.read_csv, finished.submission, index_col="prediction_id")
    before = set(finished.folder.iterdir())
    assert mammo(*arguments, "--probabilities").exit_code == 0
    tables = {finished.folder / f"submission_{name}.csv" for name in ("images", "breasts")}
    assert set(finished.folder.iterdir()) - before == {finished.submission, *tables}
    mean = read()["cancer"]
    threshold = float(mean.sort_values().iloc[1])
    metrics = {"threshold": 0.5, "breast_is": "mean of logits"}
    finished.metrics.write_text(json.dumps(metrics))
    assert "run `mammo evaluate" in mammo(*arguments).errors  # an older mammo's
    metrics |= {"threshold_of_mean": threshold, "recall_rate": 0.25}
    finished.metrics.write_text(json.dumps(metrics))
    ended = mammo(*arguments)
    assert f"{finished.submission}: 4 rows, 3 of them 1 (threshold {threshold:.4g})" in ended.output
    assert read()["cancer"].to_dict() == (mean >= threshold).astype(int).to_dict()
    ended = mammo(*arguments, "--recall-by", "rate")
    assert f"1 of them 1 (the highest 25 %, from {mean.max():.4g} on)" in ended.output
    assert read()["cancer"].to_dict() == (mean == mean.max()).astype(int).to_dict()
    highest = mammo(*arguments, "--probabilities", "--views", "max")
    assert highest.exit_code == 0
    assert "use --views mean" not in highest.errors
    assert (read()["cancer"] > mean).all()
    finished.metrics.write_text(json.dumps({"shortcut_audit": {"counting_tells_the_label": True}}))
    warned = mammo(*arguments, "--probabilities", "--views", "max")
    assert warned.exit_code == 0
    assert "use --views mean" in warned.errors
    assert mammo(*arguments, "--probabilities", "--flip").exit_code == 0
    assert (read()["cancer"] != mean).all()


@pytest.mark.parametrize("option", [["--present-only"], ["--patients", "1"]], ids=" ".join)
def test_a_part_prepared_is_still_a_whole_submission(
    mammo: Mammo, unbroken: Run, config: Path, data: Path, tmp_path: Path, option: list[str]
) -> None:
    if option == ["--present-only"]:
        (data / "test_images/1/100.png").unlink()
    cache, out = tmp_path / "cache", tmp_path / "out.csv"
    prepare = ["prepare", data, "--split", "test", "--cache", cache, "--config", config, "--workers", 0]
    assert mammo(*prepare, *option).exit_code == 0
    assert mammo("verify", cache, "--data", data, "--workers", 0).exit_code == 0
    predict = ["predict", unbroken.folder, "--cache", cache, "--out", out, "--workers", 0, "--probabilities"]
    assert mammo(*predict).exit_code == 1
    assert mammo("check", out, "--data", data).exit_code == 0


# Users' mistakes


class Place(NamedTuple):
    """What the commands below are given."""

    data: Path
    config: Path
    cache: Path
    run: Path
    folder: Path


@pytest.fixture
def place(data: Path, config: Path, cache: Cache, unbroken: Run, tmp_path: Path) -> Place:
    """Copies: a command that is refused leaves a line in the log of its cache or run."""
    run = shutil.copytree(unbroken.folder, tmp_path / "run_of_before")
    return Place(data, config, shutil.copytree(cache.folder, tmp_path / "cache_of_before"), run, tmp_path)


def prepare_without_train_csv(place: Place) -> list[object]:
    (place.data / "train.csv").unlink()
    return ["prepare", place.data, "--cache", place.folder / "new"]


def prepare_without_a_column(place: Place) -> list[object]:
    path = place.data / "train.csv"
    pd.read_csv(path).drop(columns="laterality").to_csv(path, index=False)
    return ["prepare", place.data, "--cache", place.folder / "new"]


def prepare_without_an_image(place: Place) -> list[object]:
    (place.data / "train_images/1/100.png").unlink()
    return ["prepare", place.data, "--cache", place.folder / "new"]


def prepare_into_a_cache_of_other_settings(place: Place) -> list[object]:
    return ["prepare", place.data, "--cache", place.cache, "--set", "prepare.side=64"]


def prepare_with_too_many_patients(place: Place) -> list[object]:
    return ["prepare", place.data, "--cache", place.folder / "new", "--patients", 9]


def train_with_a_misspelt_setting(place: Place) -> list[object]:
    return [
        "train",
        place.config,
        "--cache",
        place.cache,
        "--run",
        place.folder / "new",
        "--set",
        "train.epoch=3",
    ]


def train_without_its_recipe(place: Place) -> list[object]:
    return ["train", place.folder / "absent.toml", "--cache", place.cache]


def train_with_fewer_patients_than_folds(place: Place) -> list[object]:
    return [
        "train",
        place.config,
        "--cache",
        place.cache,
        "--run",
        place.folder,
        "--set",
        "train.num_folds=11",
    ]


def train_on_a_cache_of_other_settings(place: Place) -> list[object]:
    sizes = ["--set", "prepare.side=64", "--set", "model.image_size=64"]
    return ["train", place.config, "--cache", place.cache, "--run", place.folder / "new", *sizes]


def train_a_run_of_other_settings(place: Place) -> list[object]:
    return ["train", place.config, "--cache", place.cache, "--run", place.run, "--set", "train.epochs=4"]


def train_without_a_cache(place: Place) -> list[object]:
    return ["train", place.config, "--cache", place.folder / "absent", "--run", place.folder / "new"]


def train_on_a_gpu_that_is_absent(place: Place) -> list[object]:
    return ["train", place.config, "--cache", place.cache, "--set", "train.device=cuda"]


def plan_with_an_address_of_nothing(place: Place) -> list[object]:
    return ["train", place.config, "--cache", place.cache, "--dry-run", "--address", "auto"]


def evaluate_no_run(place: Place) -> list[object]:
    return ["evaluate", place.folder]


def predict_with_an_unfinished_run(place: Place) -> list[object]:
    run = Run(Path(shutil.copytree(place.run, place.folder / "unfinished")))
    run.fold(0).oof.unlink()
    return ["predict", run.folder, "--data", place.data]


def predict_nothing(place: Place) -> list[object]:
    return ["predict", place.run]


def predict_a_train_cache(place: Place) -> list[object]:
    return ["predict", place.run, "--cache", place.cache, "--probabilities"]


def predict_without_an_evaluation(place: Place) -> list[object]:
    return ["predict", place.run, "--data", place.data]


def predict_the_highest_with_the_threshold_of_means(place: Place) -> list[object]:
    return ["predict", place.run, "--data", place.data, "--views", "max"]


def predict_probabilities_by_rate(place: Place) -> list[object]:
    return ["predict", place.run, "--data", place.data, "--probabilities", "--recall-by", "rate"]


def predict_over_the_test_table(place: Place) -> list[object]:
    return ["predict", place.run, "--data", place.data, "--probabilities", "--out", place.data / "test.csv"]


def predict_without_a_fold(place: Place) -> list[object]:
    run = Run(Path(shutil.copytree(place.run, place.folder / "incomplete")))
    shutil.rmtree(run.fold(1).folder)
    return ["predict", run.folder, "--data", place.data, "--out", place.folder / "out.csv"]


def predict_without_a_column(place: Place) -> list[object]:
    (place.data / "test.csv").write_text("patient_id,image_id\n1,100\n")
    return ["predict", place.run, "--data", place.data, "--probabilities", "--out", place.folder / "out.csv"]


def predict_an_id_of_two_sides(place: Place) -> list[object]:
    lines = ["patient_id,image_id,laterality,prediction_id", "1,100,L,1_L", "1,101,R,1_L"]
    (place.data / "test.csv").write_text("\n".join(lines))
    return ["predict", place.run, "--data", place.data, "--probabilities", "--out", place.folder / "out.csv"]


def predict_on_with_another_run(place: Place) -> list[object]:
    (place.folder / "out.csv.partial").write_text('{"run": "1", "images": "2", "flip": false}\n')
    return ["predict", place.run, "--data", place.data, "--probabilities", "--out", place.folder / "out.csv"]


def check_nothing(place: Place) -> list[object]:
    return ["check", place.folder / "absent.csv", "--data", place.data]


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (
            prepare_without_train_csv,
            "give the folder that holds them, or make one of your own files: `mammo collect ",
        ),
        (prepare_without_a_column, "lacks the column laterality: it needs"),
        (
            prepare_without_an_image,
            "1 of the 8 images in train.csv have no readable file, the first is image 100",
        ),
        (prepare_into_a_cache_of_other_settings, "(prepare.side is 32, not 64): choose another --cache"),
        (prepare_with_too_many_patients, "9 patients asked for: choose from 1 to the 2 that there are"),
        (train_with_a_misspelt_setting, "unknown setting train.epoch: did you mean train.epochs?"),
        (
            train_without_its_recipe,
            "absent.toml does not exist: `mammo recipes` lists those that come with mammo",
        ),
        (train_with_fewer_patients_than_folds, "11 folds of 10 patients: every fold needs one"),
        (train_on_a_cache_of_other_settings, "side is 32, not 64): `mammo train CONFIG --cache"),
        (train_a_run_of_other_settings, "was started with other settings (train.epochs is 3, not 4)"),
        (train_without_a_cache, "is not a cache: it has no settings.toml"),
        (train_on_a_gpu_that_is_absent, 'torch finds no GPU here: set it to "auto" or "cpu"'),
        (plan_with_an_address_of_nothing, "--address auto goes with --engine ray: add that, or leave"),
        (evaluate_no_run, "is not a run folder: it has no folds.csv; `mammo train` makes one"),
        (predict_with_an_unfinished_run, "is not finished: fold 0 of 2 still to be trained"),
        (predict_nothing, "give either --data DATA or --cache CACHE"),
        (predict_a_train_cache, "(split is train, not test): make one with"),
        (predict_without_an_evaluation, "has no metrics.json and thus no threshold: run `mammo evaluate"),
        (predict_the_highest_with_the_threshold_of_means, "--views max goes with --probabilities"),
        (predict_probabilities_by_rate, "--recall-by cannot be combined with --probabilities"),
        (
            predict_over_the_test_table,
            "test.csv is not a table of prediction_id, cancer and would be over",
        ),
        (predict_without_a_fold, "is not finished: fold 1 of 2 still to be trained"),
        (predict_without_a_column, "test.csv lacks the column laterality: it needs"),
        (predict_an_id_of_two_sides, "laterality R but L in an earlier row of the same prediction_id"),
        (
            predict_on_with_another_run,
            "keeps what was predicted with another run and another test.csv before",
        ),
        (check_nothing, "there is no submission at"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    mammo: Mammo, place: Place, monkeypatch: pytest.MonkeyPatch, mistake, sentence: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    command, before = mistake(place), results(Run(place.run))
    files = sorted(place.folder.rglob("*"))
    assert_one_sentence(mammo(*command), 2, sentence)
    assert results(Run(place.run)) == before
    assert sorted(place.folder.rglob("*")) == files or command[0] in {"prepare", "train"}


def test_debug_shows_the_traceback_and_keeps_the_exit_code(mammo: Mammo, tmp_path: Path) -> None:
    ended = mammo("--debug", "evaluate", tmp_path)
    assert ended.exit_code == 2
    assert "Traceback (most recent call last)" in ended.errors
    assert ended.errors.splitlines()[-1].startswith(f"mammo: {tmp_path} is not a run folder")


@pytest.mark.parametrize("arguments", [["evaluate"], ["train"], ["nonsense"], ["evaluate", "--x", "y"]])
def test_wrong_usage_exits_2_and_shows_how(mammo: Mammo, arguments: list[str]) -> None:
    ended = mammo(*arguments)
    assert ended.exit_code == 2
    assert ended.errors.startswith("Usage: ")
    assert "Traceback" not in ended.errors


# Signals to a real process

LONG = make_recipe(epochs=40)


@pytest.fixture(scope="module")
def long_run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the long training leaves when nothing breaks it; one fold of it."""
    run = Run(tmp_path_factory.mktemp("long") / "run")
    cross_validate(LONG, cache, run, reporter=quiet(), folds=[0])
    return results(run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_is_stopped_or_killed_while_it_trains_loses_nothing(
    cache: Cache, long_run: dict[str, bytes], tmp_path: Path, number: int, exit_code: int
) -> None:
    config, run = tmp_path / "long.toml", Run(tmp_path / "run")
    config.write_text(dump_settings(LONG))
    arguments = ["train", str(config), "--cache", str(cache.folder), "--run", str(run.folder), "--fold", "0"]
    with Forked("-m", "pipeline", *arguments) as process:
        deadline = time.monotonic() + 600
        while not run.fold(0).previous.exists():  # its second epoch is done
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == exit_code
    assert not run.fold(0).is_finished
    if number == signal.SIGTERM:
        command = " ".join(["mammo", *arguments])
        assert errors == f"mammo: stopped by SIGTERM; what was done is kept, go on with: {command}\n"
    cross_validate(LONG, cache, run, reporter=quiet(), folds=[0])
    assert results(run) == long_run
