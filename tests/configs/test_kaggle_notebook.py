"""The Kaggle notebooks, run from top to bottom on phantoms in the place of the competition's images.

It runs in an environment that has every package of this one but mammo. That comes from a wheel of this tree,
by the notebook's own pip, which knows of no index and of no setting of this machine.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
SUBMISSION, TRAINING = (ROOT / f"configs/kaggle/{name}.ipynb" for name in ("submission", "train"))
INPUT = "/kaggle/input"
RECIPE = """
[prepare]
side = 64
[model]
image_size = 64
width = 16
depth = 1
num_heads = 2
[train]
num_folds = 2
epochs = 1
batch_size = 8
learning_rate = 0.01
precision = "float32"  # in bf16, such a model gives all images the same answer
workers = 0
"""
EXECUTE = "from nbclient.cli import main; main()"


def make_environment(folder: Path) -> Path:
    """Makes an environment with this one's packages but without mammo, and returns its programs' folder.

    The packages are links beside its own folder for packages: pip sees them, and changes none of them.
    """
    packages, environment = folder / "packages", folder / "environment"
    packages.mkdir()
    own = {file.parts[0] for file in distribution("mammo-vit").files}
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in own:
            (packages / path.name).symlink_to(path)
    venv.create(environment, symlinks=True)
    places = sysconfig.get_paths("venv", vars={"base": str(environment), "platbase": str(environment)})
    (Path(places["purelib"]) / "packages.pth").write_text(f"{packages}\n")
    return Path(places["scripts"])


def build_wheel(folder: Path) -> None:
    """Builds mammo's wheel as test_wheel.py does."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr


def mammo(folder: Path, *commands: list[str | Path]) -> None:
    """Runs commands in a folder, in processes that need not load torch."""
    for words in commands:
        done = forked.run("-m", "pipeline", *map(str, words), cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr


def train(folder: Path, competition: Path, run: Path) -> pd.DataFrame:
    """Makes a run as one uploads it, and returns the submission that it must lead to.

    Its threshold is one that half of the breasts reach.
    """
    (folder / "recipe.toml").write_text(RECIPE)
    in_process, lenient = ["--workers", "0"], ["--probabilities", "--allow-failures"]
    mammo(
        folder,
        ["prepare", competition, "--cache", "cache", "--config", "recipe.toml", *in_process],
        ["train", "recipe.toml", "--cache", "cache", "--run", run],
        ["predict", run, "--data", competition, "--out", "probabilities.csv", *lenient, *in_process],
    )
    for checkpoint in [*run.rglob("last.pt"), *run.rglob("previous.pt")]:
        checkpoint.unlink()
    expected = pd.read_csv(folder / "probabilities.csv")
    threshold = expected["cancer"].median()
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"threshold_of_mean": threshold}))
    return expected.assign(cancer=(expected["cancer"] >= threshold).astype(int))


def run_notebook(
    folder: Path, programs: Path, notebook: Path = SUBMISSION
) -> subprocess.CompletedProcess[str]:
    """Runs a notebook in `folder/working` with `folder/input` in the place of Kaggle's inputs."""
    text = notebook.read_text()
    assert text.count(INPUT) == 1
    for name in ("working", "temporary"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "working" / notebook.name).write_text(text.replace(INPUT, str(folder / "input")))
    private = ("PIP_", "PYTHON", "PYTEST_", "JUPYTER", "IPYTHON")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    variables |= {
        "HOME": str(folder),  # where Jupyter and pip keep their files
        "TMPDIR": str(folder / "temporary"),
        "PATH": f"{folder / 'stand_ins'}:{programs}:{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",  # its kernel is the Python that runs nbclient
    }
    return subprocess.run(
        [programs / "python", "-c", EXECUTE, notebook.name, "--output", "../executed"],
        cwd=folder / "working",
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def read_outputs(path: Path) -> str:
    """Everything that a notebook shows as text."""
    outputs = [
        output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
    ]
    return "".join(output.get("text") or output.data["text/plain"] for output in outputs)


def list_files(folder: Path) -> dict[Path, int]:
    """Every path in a folder with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_it_installs_mammo_and_makes_a_valid_submission(tmp_path: Path) -> None:
    inputs = tmp_path / "input"
    competition = inputs / "competitions/rsna-breast-cancer-detection"
    build_wheel(inputs / "datasets/someone/mammo-wheels/wheels")
    mammo(tmp_path, ["phantom", competition, "--patients", "8", "--rows", "64", "--columns", "64"])
    broken = next((competition / "test_images").rglob("*.dcm"))
    broken.write_bytes(b"no image")
    expected = train(tmp_path, competition, inputs / "datasets/someone/mammo-run/first")
    before = list_files(inputs)

    done = run_notebook(tmp_path, make_environment(tmp_path))

    assert done.returncode == 0, done.stderr
    shown = read_outputs(tmp_path / "executed.ipynb")
    assert "Successfully installed mammo-vit" in shown
    assert "submission.csv is valid" in shown
    assert "2 of 4 breasts are 1" in shown
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "working/submission.csv"), expected)
    failures = pd.read_csv(tmp_path / "working/submission_failures.csv")
    assert failures["image_id"].tolist() == [int(broken.stem)]
    written = {path.name for path in (tmp_path / "working").iterdir()}
    tables = {f"submission{end}.csv" for end in ("", "_images", "_breasts", "_failures")}
    assert written == {"submission.ipynb", *tables}
    assert list_files(inputs) == before


def make_inputs(
    folder: Path, *, competition: str = "", data_sets: str = "", run: str = "first"
) -> list[Path]:
    """Makes the three inputs, empty but for the file that marks a run, and returns what is to be found."""
    found = [
        folder / competition / "rsna-breast-cancer-detection",
        folder / data_sets / "mammo-wheels/wheels",
        folder / data_sets / "mammo-run" / run,
    ]
    for path in found:
        path.mkdir(parents=True)
    (found[-1] / "settings.toml").touch()
    return found


def test_a_failing_installation_stops_it(tmp_path: Path) -> None:
    make_inputs(tmp_path / "input")
    done = run_notebook(tmp_path, make_environment(tmp_path))
    assert done.returncode != 0
    assert "No matching distribution found for mammo-vit" in done.stderr
    assert "CalledProcessError" in done.stderr


@pytest.mark.slow
def test_a_failing_check_stops_it(tmp_path: Path) -> None:
    competition, wheels, _ = make_inputs(tmp_path / "input")
    ids = ["1_L", "1_R", "2_L", "2_R"]
    exams = {"patient_id": [1, 1, 2, 2], "image_id": [11, 12, 21, 22], "laterality": ["L", "R", "L", "R"]}
    pd.DataFrame(exams | {"prediction_id": ids}).to_csv(competition / "test.csv", index=False)
    build_wheel(wheels)
    programs = make_environment(tmp_path)
    same = tmp_path / "same.csv"
    pd.DataFrame({"prediction_id": ids, "cancer": 0}).to_csv(same, index=False)
    stand_in = tmp_path / "stand_ins/mammo"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\ntest "$1" = predict && exec cp {same} submission.csv\nexec {programs}/mammo "$@"\n'
    )
    stand_in.chmod(0o755)
    done = run_notebook(tmp_path, programs)
    assert done.returncode != 0
    assert "all 4 values of cancer are 0, which tells nothing apart" in done.stderr
    assert "CalledProcessError" in done.stderr


def run_settings(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the cell with the settings alone, which then prints what it has found."""
    (cell,) = [cell for cell in read_notebook(SUBMISSION).cells if cell.id == "settings"]
    program = cell.source.replace(INPUT, str(folder)) + "\nprint(DATA, WHEELS, RUN, sep='\\n')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("competition", "data_sets"), [("", ""), ("competitions", ""), ("competitions", "datasets/someone")]
)
@pytest.mark.parametrize("run", ["", "first", "reports/mammo-run"])
def test_it_finds_its_inputs_wherever_kaggle_mounts_them(
    tmp_path: Path, competition: str, data_sets: str, run: str
) -> None:
    expected = make_inputs(tmp_path, competition=competition, data_sets=data_sets, run=run)
    assert run_settings(tmp_path).stdout.splitlines() == list(map(str, expected))


def test_it_asks_for_an_input_that_is_absent_or_there_twice(tmp_path: Path) -> None:
    *_, run = make_inputs(tmp_path)
    (run.parent / "second").mkdir()
    (run.parent / "second/settings.toml").touch()
    assert "mammo-run/**/settings.toml 2 times instead of once" in run_settings(tmp_path).stderr
    (tmp_path / "mammo-wheels/wheels").rmdir()
    assert "mammo-wheels/wheels 0 times instead of once" in run_settings(tmp_path).stderr


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook as it is committed."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@pytest.mark.parametrize("path", [SUBMISSION, TRAINING], ids=lambda path: path.stem)
def test_it_is_a_valid_notebook_without_outputs(path: Path) -> None:
    notebook = read_notebook(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert path.read_text() == nbformat.writes(notebook) + "\n"


@pytest.mark.parametrize("path", [SUBMISSION, TRAINING], ids=lambda path: path.stem)
def test_it_names_no_host(path: Path) -> None:
    assert re.findall(r"://|\b[\w-]+\.(?:com|io|net|org)\b", path.read_text()) == []
