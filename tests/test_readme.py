"""Every command in the README runs, in its order, on phantoms in the place of real data."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from data_prep.exams import select_patients
from data_prep.folds import make_folds
from data_prep.phantom_data import write_phantoms
from pipeline.cli import app
from tests.object_store import Store
from tests.test_end_to_end import TINY, mammo

SMALLER = {"200": "20"}  # patients: as many as there are phantoms
FINER = ["--set", "train.precision=float32", "--set", "train.learning_rate=0.01"]
"""Of so small a model all answers are equal in bf16, and by a threshold; `check` finds fault with that."""
MORE = {"train": [*TINY, *FINER], "predict": ["--probabilities"]}
CLUSTER = {"--address", "auto"}  # left out, so that Ray runs on this machine
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


KAGGLE = {"/kaggle/input/mammo-run/": "reports/", "/kaggle/input/": ""}


def commands() -> list[list[str]]:
    """Returns the commands of all shell blocks and of the notebook, in order, without comments."""
    blocks = re.findall(r"```(?:sh|python)\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not re.match(r"!(cp|pip) ", line)]
    for place, here in KAGGLE.items():
        lines = [line.replace(place, here) for line in lines]
    return [shlex.split(line.removeprefix("!"), comments=True) for line in lines]


def labels_of(data: Path, path: Path, *, split: str) -> None:
    """Writes a table of labels such as the README shows for one's own files."""
    exams = pd.read_csv(data / f"{split}.csv")
    files = [f"{split}_images/{row.patient_id}/{row.image_id}.dcm" for row in exams.itertuples()]
    columns = ["patient_id", "laterality", "view", *(["cancer"] if split == "train" else [])]
    exams[columns].assign(file=files).to_csv(path, index=False)


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    data = tmp_path / "rsna-breast-cancer-detection"
    write_phantoms(data, num_patients=20, seed=2)
    store.upload(data, data.name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_dicom").symlink_to(data)
    labels_of(data, tmp_path / "labels.csv", split="train")
    labels_of(data, tmp_path / "new_cases.csv", split="test")
    ran = set()
    for program, *arguments in commands():
        if program == "make":  # these are the set-up of this very test, and the demo's own test
            assert f"\n{arguments[0]}: " in (ROOT / "Makefile").read_text()
            continue
        if program in {"sbatch", "kubectl"}:  # test_cluster_files.py does what these do
            assert (ROOT / arguments[-1]).is_file()
            continue
        if program == "export":
            monkeypatch.setenv(*arguments[0].split("="))
            continue
        if program == "torchrun":
            command = [sys.executable, "-m", "torch.distributed.run", *arguments, *TINY]
            subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
            assert (tmp_path / arguments[-1] / "report.html").exists()
            ran.add(program)
            continue
        assert program == "mammo"
        here = [argument for argument in arguments if argument not in CLUSTER]
        smaller = [SMALLER.get(argument, argument) for argument in here]
        mammo(*smaller, *MORE.get(arguments[0], []), folder=tmp_path)
        ran.add(arguments[0])
    assert ran == {"collect", "prepare", "train", "evaluate", "predict", "check", "torchrun", "verify"}


def test_the_part_to_try_first_has_folds_at_the_prevalence_of_rsna() -> None:
    cancers = [int(patient < 486) for patient in range(11_913)]
    ids = [str(patient) for patient in range(11_913)]
    exams = pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L", "cancer": cancers})
    (num_patients,) = SMALLER
    part = select_patients(exams, int(num_patients), seed=0)
    assert "--set train.num_folds=2" in README
    assert len(make_folds(part, num_folds=2, seed=0)) == int(num_patients)


def test_every_link_leads_somewhere() -> None:
    for name in ("README.md", "reports/README.md"):
        links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text())
        local = [link for link in links if "://" not in link]
        assert local
        assert all((ROOT / name).parent.joinpath(link).exists() for link in local)


def test_the_table_of_commands_is_complete() -> None:
    listed = set(re.findall(r"^\| `mammo (\w+)", README, flags=re.MULTILINE))
    assert listed == {command.name or command.callback.__name__ for command in app.registered_commands}


def test_the_folder_tree_names_what_is_there() -> None:
    tree = re.findall(r"^(\w+)/ ", README, flags=re.MULTILINE)
    assert sorted(tree) == ["configs", "data_prep", "pipeline", "reports", "tests"]
    assert all((ROOT / name).is_dir() for name in tree)


def test_the_table_of_faults_names_tests_that_exist() -> None:
    table = (ROOT / "reports/README.md").read_text().split("## What mammo survives")[1]
    rows = [line for line in table.splitlines() if re.match(r"\| [0-9]+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 30))
    for row in rows:
        names = re.findall(r"`(\S+\.py)`", row)
        assert names, row
        for name in names:
            (path,) = [path for path in (ROOT / "tests").rglob(Path(name).name) if path.match(name)]
            assert "def test_" in path.read_text(), name


def test_the_checksums_are_of_the_pinned_versions() -> None:
    pinned = {line.split()[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    lines = [line.split() for line in (ROOT / "constraints-hashed.txt").read_text().splitlines()]
    hashed = {words[0]: words[1] for words in lines if words[0] != "#"}
    assert set(hashed) <= pinned
    with_torch = {pin.split("==")[0].lower().replace("_", "-") for pin in pinned - set(hashed)}
    assert {"torch", "torchvision"} <= with_torch
    assert len(with_torch) == 13
    assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in hashed.values())
