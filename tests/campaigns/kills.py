"""Kills `prepare`, `train` and `predict` at random moments, many times, and compares what they leave at last.

    python -m tests.campaigns.kills --kills 100

Each command is started again and again and killed after a random time, until so many have been killed; when
one gets through before, its output is compared and it begins anew. Last, one is let through.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from data_prep.storage.atomic import find_temporaries, is_temporary
from pipeline.runs.run_folder import Run
from tests.data_prep.data_folder import make_data, snapshot
from tests.forked import Forked
from tests.forked import run as run_forked
from tests.pipeline.tiny import make_exams, make_recipe, results, write_cache, write_test_data

Snapshot = Callable[[Path], dict[str, bytes]]
COMMANDS = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        runpy.run_module("pipeline", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


@dataclass(frozen=True)
class Subject:
    """A command to kill.

    Attributes:
        arguments: without its output's place.
        option: what names the place.
        place: the output's name in a folder of its own.
        look: what must not differ, of that folder.
    """

    name: str
    arguments: list[str]
    option: str
    place: str
    look: Snapshot

    def start(self, folder: Path) -> Forked:
        """Starts the command, which has imported all that it needs."""
        folder.mkdir(parents=True, exist_ok=True)
        return Forked("-m", "pipeline", *self.arguments, self.option, str(folder / self.place))

    def run(self, folder: Path) -> float:
        """Lets it through and returns the seconds that it took."""
        started = time.monotonic()
        with self.start(folder) as process:
            _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return time.monotonic() - started


@dataclass
class Kills:
    """What a loop did: kills, and how many commands got through and left the same."""

    kills: int = 0
    through: int = 0
    left_temporaries: int = 0


def make_subjects(folder: Path) -> list[Subject]:
    """Makes small data, a cache and a run, and returns the three commands."""
    data = make_data(folder / "data", 40)
    config = folder / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe(workers=2, epochs=6).model_dump()))
    cache = write_cache(folder / "cache", make_exams())
    tests = write_test_data(folder / "tests", make_exams(40, split="test"))
    run = folder / "run"
    train = ["train", str(config), "--cache", str(cache.folder)]
    run_forked("-m", "pipeline", *train, "--run", str(run)).check_returncode()
    predict = ["predict", str(run), "--data", str(tests), "--probabilities", "--workers", "2"]
    prepare = ["prepare", str(data), "--set", "prepare.side=32", "--workers", "2"]
    return [
        Subject("prepare", prepare, "--cache", "cache", snapshot),
        Subject("train", [*train, "--fold", "0"], "--run", "run", lambda path: results(Run(path))),
        Subject("predict", predict, "--out", "out.csv", look_at_submission),
    ]


def look_at_submission(folder: Path) -> dict[str, bytes]:
    """The submission and what else is there, but for what a killed writer's name says is not whole."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not is_temporary(path)}


def run_apart(subjects: list[Subject], folder: Path) -> None:
    """Runs all in a process that shares nothing with the others, not even the hash seed."""
    commands = []
    for subject in subjects:
        place = folder / subject.name / "whole" / subject.place
        place.parent.mkdir(parents=True)
        commands.append([*subject.arguments, subject.option, str(place)])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)


def kill_loop(subject: Subject, folder: Path, *, num_kills: int, seed: int = 0) -> Kills:
    """Kills a command so often at moments spread over its time, almost from its first.

    In `folder` lies already what `run_apart` has made.

    Raises:
        AssertionError: if it ends with something else than an unbroken command does.
    """
    generator, done = np.random.default_rng(seed), Kills()
    seconds = subject.run(folder / "timed")
    expected = subject.look(_looked_at(subject, folder / "whole"))
    attempt = folder / "attempt"
    while done.kills < num_kills:
        started = time.monotonic()
        with subject.start(attempt) as process:
            try:
                process.wait(float(generator.uniform(0.3, 1.1)) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=600)
        if process.returncode == -signal.SIGKILL:
            done.kills += 1
            continue
        assert process.returncode == 0, errors
        _compare(subject, attempt, expected)
        done.through += 1
        seconds = time.monotonic() - started  # the machine is faster than it was, or a part was done before
        shutil.rmtree(attempt)
    subject.run(attempt)
    _compare(subject, attempt, expected)
    done.through += 1
    done.left_temporaries = len(find_temporaries(attempt))
    return done


def _looked_at(subject: Subject, folder: Path) -> Path:
    return folder if subject.name == "predict" else folder / subject.place


def _compare(subject: Subject, folder: Path, expected: dict[str, bytes]) -> None:
    found = subject.look(_looked_at(subject, folder))
    differing = [name for name in expected | found if found.get(name) != expected.get(name)]
    assert not differing, f"{subject.name} left something else in {differing}"


def main() -> None:
    """Runs all three loops and prints their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        subjects, loops = make_subjects(Path(name)), Path(name) / "loops"
        run_apart(subjects, loops)
        for subject in subjects:
            started = time.monotonic()
            done = kill_loop(subject, loops / subject.name, num_kills=options.kills, seed=options.seed)
            figures = {"command": subject.name, **vars(done), "seconds": round(time.monotonic() - started)}
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
