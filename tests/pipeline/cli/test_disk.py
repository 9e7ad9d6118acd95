"""Real commands on a real file system that is full or cannot be written to, and on the same one mended."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tomli_w

from data_prep.cache.folder import Cache
from data_prep.cache.images import is_packed
from data_prep.cache.pack import find_pack_problem
from data_prep.phantom.dataset import write_phantoms
from pipeline.runs.run_folder import Run
from tests import forked
from tests.data_prep.data_folder import snapshot
from tests.forked import ROOT
from tests.isolation import with_own_mounts
from tests.pipeline.tiny import make_exams, make_recipe, results, write_test_data

PROGRAM = """
import json, os, shutil, subprocess, sys
from pathlib import Path
from tests.forked import become_and_end, import_all

def attempt(command, errors):
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        become_and_end("-m", "pipeline", *command)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def try_on_small_disk(command, before, free, place, after):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    shutil.copytree(before, place, dirs_exist_ok=True)
    os.chdir(place)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    codes = [attempt(command, after / "read_only")]
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    Path("filler").write_bytes(bytes(shutil.disk_usage(place).free - free))
    codes.append(attempt(command, after / "full"))
    Path("filler").unlink()
    codes.append(attempt(command, after / "mended"))
    shutil.copytree(place, after / "left")
    os.chdir("/")
    subprocess.run(["umount", place], check=True)
    return codes

import_all()
folder = Path(sys.argv[1])
trials = json.loads((folder / "trials.json").read_text())
place = folder / "place"
place.mkdir()
codes = {}
for name, (before, free_kb, command) in trials.items():
    after = folder / name
    after.mkdir()
    codes[name] = try_on_small_disk(command, before, 1024 * free_kb, place, after)
(folder / "codes.json").write_text(json.dumps(codes))
"""
TRIALS = {
    "prepare": {0: "disk full at ", 100: "disk full at ", 12: "a cache of 12 more images needs "},
    "train": {
        0: "disk full at ",
        8: "disk full at ",
        100: "to keep the weights of 1 training",
        330: "fold_0: free",
    },
    "pack": {0: "disk full at ", 12: "disk full at "},
    "predict": {0: "disk full at "},
}
"""What each command says where so many kB are free: at its lock, its first file, before its first image or
epoch where all cannot fit, and later."""


class Told(NamedTuple):
    """How a command ended where nothing can be written, on a full disk, and on the mended one."""

    exit_codes: list[int]
    read_only: str
    full: str
    left: Path


class Commands(NamedTuple):
    """The commands without the place of their output, and what that is called."""

    arguments: dict[str, list[str]]
    places: dict[str, str]


@pytest.fixture(scope="module")
def commands(cache: Cache, unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    folder = tmp_path_factory.mktemp("disk")
    write_phantoms(folder / "data", num_patients=3, seed=0, rows=320, columns=256)
    write_test_data(folder / "tests", make_exams(4, split="test"))
    config = folder / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe().model_dump()))
    arguments = {
        "prepare": ["prepare", folder / "data", "--set", "prepare.side=160", "--workers", "0", "--cache"],
        "train": ["train", config, "--cache", cache.folder, "--fold", "0", "--run"],
        "pack": ["pack", "--workers", "0"],
        "predict": [
            *["predict", unbroken.folder, "--data", folder / "tests", "--workers", "0", "--probabilities"],
            "--out",
        ],
    }
    places = {"prepare": "cache", "train": "run", "pack": "cache", "predict": "out.csv"}
    return Commands({name: [*map(str, words)] for name, words in arguments.items()}, places)


@pytest.fixture(scope="module")
def told(commands: Commands, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """How each command ended on each disk; all are forked from one process, which has imported once."""
    folder = tmp_path_factory.mktemp("trials")
    (folder / "nothing").mkdir()
    shutil.copytree(cache.folder, folder / "packed/cache")
    trials = {
        f"{name}-{free_kb}": (
            str(folder / ("packed" if name == "pack" else "nothing")),
            free_kb,
            [*commands.arguments[name], commands.places[name]],
        )
        for name, disks in TRIALS.items()
        for free_kb in disks
    }
    (folder / "trials.json").write_text(json.dumps(trials))
    command = [*with_own_mounts(), sys.executable, "-c", PROGRAM, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert ended.returncode == 0, ended.stderr
    found = {}
    for name, exit_codes in json.loads((folder / "codes.json").read_text()).items():
        errors = [(folder / name / attempt).read_text() for attempt in ("read_only", "full", "mended")]
        assert not any("Traceback" in error for error in errors), errors
        found[name] = Told(exit_codes, errors[0], errors[1], folder / name / "left")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "free_kb", "sentence"),
    [(name, free_kb, sentence) for name, disks in TRIALS.items() for free_kb, sentence in disks.items()],
)
def test_a_command_stops_in_one_sentence_and_goes_on_once_there_is_space(
    told: dict[str, Told], name: str, free_kb: int, sentence: str
) -> None:
    found = told[f"{name}-{free_kb}"]
    assert found.exit_codes == [2, 4, 0], (found.read_only, found.full)
    assert found.read_only.startswith("mammo: cannot ")
    assert found.read_only.count("\n") == 1
    assert found.full.startswith("mammo: disk full at ")
    assert found.full.count("\n") == 1
    assert sentence in found.full
    assert not list(found.left.rglob(".tmp-*"))


def of_fold_0(run: Run) -> dict[str, bytes]:
    return {name: content for name, content in results(run).items() if name.startswith("fold_0/")}


@pytest.mark.slow
def test_all_leave_what_they_leave_on_a_large_disk(
    told: dict[str, Told], commands: Commands, unbroken: Run, tmp_path: Path
) -> None:
    for name in ("prepare", "predict"):
        whole = str(tmp_path / commands.places[name])
        forked.run("-m", "pipeline", *commands.arguments[name], whole).check_returncode()
    for trial, found in told.items():
        name = trial.partition("-")[0]
        left = found.left / commands.places[name]
        if name == "prepare":
            assert snapshot(left) == snapshot(tmp_path / "cache"), trial
        elif name == "train":
            assert of_fold_0(Run(left)) == of_fold_0(unbroken), trial
        elif name == "pack":
            assert is_packed(Cache(left)), trial
            assert find_pack_problem(Cache(left)) is None, trial
        else:
            assert left.read_bytes() == (tmp_path / "out.csv").read_bytes(), trial
