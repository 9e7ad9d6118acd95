"""Real commands on a real file system that is full or cannot be written to, and on the same one mended."""

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
import os, shutil, subprocess, sys
from pathlib import Path
from tests.forked import become, import_all

def attempt(name):
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(after / name, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        become("-m", "pipeline", *command)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

place, before, after = map(Path, sys.argv[1:4])
free, command = 1024 * int(sys.argv[4]), sys.argv[5:]
import_all()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
shutil.copytree(before, place, dirs_exist_ok=True)
os.chdir(place)
subprocess.run(["mount", "-o", "remount,ro", place], check=True)
attempt("read_only")
subprocess.run(["mount", "-o", "remount,rw", place], check=True)
Path("filler").write_bytes(bytes(shutil.disk_usage(place).free - free))
attempt("full")
Path("filler").unlink()
attempt("mended")
shutil.copytree(place, after / "left")
"""


class Told(NamedTuple):
    """How a command ended where nothing can be written, on a full disk, and on the mended one."""

    exit_codes: list[int]
    read_only: str
    full: str
    left: Path


def run_on_small_disk(folder: Path, before: Path, *arguments: str | Path, free_kb: int) -> Told:
    """Runs a command three times in the root of a file system that begins with the files of `before`."""
    place, after = folder / "place", folder / "after"
    place.mkdir()
    after.mkdir()
    command = [*with_own_mounts(), sys.executable, "-c", PROGRAM, place, before, after, free_kb, *arguments]
    ended = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    exit_codes = [int(line) for line in ended.stdout.splitlines()]
    errors = [(after / name).read_text() for name in ("read_only", "full", "mended")]
    assert not any("Traceback" in error for error in errors), errors
    return Told(exit_codes, errors[0], errors[1], after / "left")


def assert_one_sentence(told: Told, *, exit_codes: tuple[int, ...] = (2, 4, 0)) -> None:
    assert tuple(told.exit_codes) == exit_codes, (told.read_only, told.full)
    assert told.read_only.startswith("mammo: cannot ")
    assert told.read_only.count("\n") == 1
    assert told.full.startswith("mammo: disk full at ")
    assert told.full.count("\n") == 1
    assert not list(told.left.rglob(".tmp-*"))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nothing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("free_kb", "sentence"),
    [(0, "disk full at "), (100, "disk full at "), (12, "a cache of 12 more images needs ")],
)
def test_prepare_stops_and_goes_on(nothing: Path, tmp_path: Path, free_kb: int, sentence: str) -> None:
    """Before its lock is written, half way through, and before its first image where they cannot fit."""
    data = tmp_path / "data"
    write_phantoms(data, num_patients=3, seed=0, rows=320, columns=256)
    command = ["prepare", data, "--set", "prepare.side=160", "--workers", "0", "--cache"]
    told = run_on_small_disk(tmp_path, nothing, *command, "cache", free_kb=free_kb)
    assert_one_sentence(told)
    assert sentence in told.full
    forked.run("-m", "pipeline", *map(str, command), str(tmp_path / "whole")).check_returncode()
    assert snapshot(told.left / "cache") == snapshot(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("free_kb", "sentence"),
    [
        (0, "disk full at "),
        (8, "disk full at "),
        (100, "to keep the weights of 1 training"),
        (330, "fold_0: free"),
    ],
)
def test_train_stops_and_goes_on(
    cache: Cache, unbroken: Run, nothing: Path, tmp_path: Path, free_kb: int, sentence: str
) -> None:
    """At its lock, its first file, before its first epoch where its weights cannot fit, and later."""
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe().model_dump()))
    command = ["train", config, "--cache", cache.folder, "--run", "run", "--fold", "0"]
    told = run_on_small_disk(tmp_path, nothing, *command, free_kb=free_kb)
    assert_one_sentence(told)
    assert sentence in told.full
    found = results(Run(told.left / "run"))
    assert {name: found[name] for name in found if name.startswith("fold_0/")} == {
        name: content for name, content in results(unbroken).items() if name.startswith("fold_0/")
    }


@pytest.mark.slow
@pytest.mark.parametrize("free_kb", [0, 12])
def test_pack_stops_and_goes_on(cache: Cache, tmp_path: Path, free_kb: int) -> None:
    before = tmp_path / "before"
    shutil.copytree(cache.folder, before / "cache")
    told = run_on_small_disk(tmp_path, before, "pack", "cache", "--workers", "0", free_kb=free_kb)
    assert_one_sentence(told)
    packed = Cache(told.left / "cache")
    assert is_packed(packed)
    assert find_pack_problem(packed) is None


@pytest.mark.slow
def test_predict_stops_and_goes_on(unbroken: Run, nothing: Path, tmp_path: Path) -> None:
    data = write_test_data(tmp_path / "data", make_exams(4, split="test"))
    command = ["predict", unbroken.folder, "--data", data, "--workers", "0", "--probabilities", "--out"]
    told = run_on_small_disk(tmp_path, nothing, *command, "out.csv", free_kb=0)
    assert_one_sentence(told)
    forked.run("-m", "pipeline", *map(str, command), str(tmp_path / "whole.csv")).check_returncode()
    assert (told.left / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
