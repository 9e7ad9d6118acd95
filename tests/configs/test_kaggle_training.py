"""The Kaggle notebook that trains: stopped in one session, it goes on in the next from its own output."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs.test_kaggle_notebook import (
    INPUT,
    RECIPE,
    TRAINING,
    build_wheel,
    make_environment,
    make_inputs,
    mammo,
    read_notebook,
    read_outputs,
    run_notebook,
)


def source(cell_id: str) -> str:
    (cell,) = [cell for cell in read_notebook(TRAINING).cells if cell.id == cell_id]
    return cell.source


END_AFTER_FOLD_0 = 'test "$1" = train && { "$real" "$@" --fold 0 && exit 143; exit; }'  # as after a signal
ASK_NO_DOCTOR = 'test "$1" = doctor && exit'


def stand_in(folder: Path, programs: Path, instead: str) -> None:
    """Puts a `mammo` before the real one that does something else in some case."""
    program = folder / "stand_ins/mammo"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nreal={programs}/mammo\n{instead}\nexec "$real" "$@"\n')
    program.chmod(0o755)


def make_session(folder: Path, inputs: Path, before: Path | None = None) -> Path:
    """Makes the folder of a session with its inputs, the last one's output among them."""
    folder.mkdir()
    (folder / "input").symlink_to(inputs)
    if before is not None:
        shutil.copytree(before / "working", inputs / "notebooks/someone/mammo-training")
    return folder


@pytest.mark.slow
def test_a_second_session_goes_on_where_the_first_was_stopped(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    competition = inputs / "competitions/rsna-breast-cancer-detection"
    build_wheel(inputs / "datasets/someone/mammo-wheels/wheels")
    mammo(tmp_path, ["phantom", competition, "--patients", "8", "--rows", "64", "--columns", "64"])
    first = make_session(tmp_path / "first", inputs)
    programs = make_environment(tmp_path)
    small = TRAINING.read_text().replace("vit_s16_512", "recipe.toml")
    assert small.count("recipe.toml") == 1
    notebook = tmp_path / "train.ipynb"
    notebook.write_text(small)
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def run(session: Path) -> str:
        (session / "working").mkdir()
        shutil.copy(tmp_path / "recipe.toml", session / "working")
        done = run_notebook(session, programs, notebook)
        assert done.returncode == 0, done.stderr
        return read_outputs(session / "executed.ipynb")

    stand_in(first, programs, END_AFTER_FOLD_0)
    shown = run(first)
    assert "not done: add this version's output as the input mammo-training" in shown
    working = first / "working"
    assert {path.name for path in working.iterdir()} == {
        "train.ipynb",
        "recipe.toml",
        "mammo-run",
        "cache.tar",
    }
    assert not (working / "mammo-run/report.html").exists()

    second = make_session(tmp_path / "second", inputs, before=first)
    stand_in(second, programs, ASK_NO_DOCTOR)
    shown = run(second)
    assert "0 images prepared, 32 already there, 0 failed" in shown
    assert "fold 0: finished before" in shown
    assert "done: read mammo-run/report.html" in shown
    again = second / "working/mammo-run"
    assert (again / "report.html").exists()
    assert (again / "fold_0/oof.csv").read_bytes() == (working / "mammo-run/fold_0/oof.csv").read_bytes()


RUN = """
import pathlib, time
{definitions}
forever = "import signal; signal.pause()"
print(run(sys.executable, "-c", forever, seconds=0.0))
print(run(sys.executable, "-c", "print('through')", seconds=600.0))
print(run(sys.executable, "-c", "raise SystemExit(143)", seconds=600.0))
try:
    run(sys.executable, "-c", "raise SystemExit(1)", seconds=600.0)
except subprocess.CalledProcessError as error:
    print(error.returncode)
"""


def test_a_command_out_of_time_is_stopped_and_one_that_fails_stops_the_notebook() -> None:
    definitions, _, _ = source("install").partition("\n\n\nrun(")
    program = "from pathlib import Path\n" + RUN.format(definitions=definitions)
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line for line in shown.splitlines() if not line.startswith("$ ") and line != "'"]
    assert words == ["False", "through", "True", "False", "1"]


def test_the_last_output_is_an_input_from_the_second_time_on(tmp_path: Path) -> None:
    competition, wheels, run = make_inputs(tmp_path)
    program = source("settings").replace(INPUT, str(tmp_path)) + "\nprint(DATA, WHEELS, BEFORE, sep='\\n')"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [str(competition), str(wheels), "None"]
    before = tmp_path / "notebooks/someone/mammo-training"
    before.mkdir(parents=True)
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [str(competition), str(wheels), str(before)]
    assert run.exists()
