"""Stops every command at random moments, as Ctrl-C and job systems do, and looks at how it ends.

    python -m tests.campaigns.stops --stops 30

Each must end by itself within five seconds, with one sentence and the signal's exit code. One that can go on
is started again where it was, and leaves at last what an unbroken one leaves.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from pipeline.cli.stopped import RESUMABLE
from pipeline.runs.run_folder import Run
from tests.campaigns.kills import look_at_submission
from tests.data_prep.data_folder import find_image, make_data, snapshot
from tests.object_store import point_to, serve
from tests.pipeline.tiny import make_exams, make_recipe, results, write_cache, write_test_data

MOST_SECONDS = 5.0  # from the signal to the end
LONGEST = 20.0  # seconds into a command; one that takes longer goes on from there
OUT = "{out}"  # in arguments: the place of what is written
SENTENCE = re.compile(
    r"mammo: stopped by SIG(INT|TERM); (what was done is kept, go on with|start again with): mammo .*\n"
)
Look = Callable[[Path], Any]


@dataclass(frozen=True)
class Command:
    """A command to stop.

    Attributes:
        name: with what is special of it.
        arguments: with `OUT` where the output's place belongs.
        look: what must be equal at last; None if nothing is written, or the command begins anew.
    """

    name: str
    arguments: tuple[object, ...]
    look: Look | None = None

    def start(self, folder: Path) -> "subprocess.Popen[str]":
        """Starts it as from a shell."""
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [str(argument).replace(OUT, str(folder / "out")) for argument in self.arguments]
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, folder: Path) -> tuple[float, int]:
        """Lets it through and returns the seconds that it took, and its exit code."""
        began, process = time.monotonic(), self.start(folder)
        _, errors = process.communicate(timeout=600)
        assert "Traceback" not in errors, errors
        return time.monotonic() - began, process.returncode


@dataclass
class Stops:
    """What a loop saw; `problems` are endings that must not be."""

    stops: int = 0
    through: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def stop_loop(command: Command, folder: Path, *, num_stops: int, seed: int = 0) -> Stops:
    """Stops a command so often, at moments spread over its time, with SIGTERM and SIGINT in turn.

    SIGINT goes to the whole process group, as from a terminal.
    """
    generator, done = np.random.default_rng(seed), Stops()
    whole, attempt = folder / "whole", folder / "attempt"
    seconds, own_code = command.run(whole)
    while done.stops < num_stops and done.through < 3 * num_stops:
        process = command.start(attempt)
        try:
            process.wait(0.25 + float(generator.uniform(0.0, 1.0)) * max(min(seconds, LONGEST) - 0.25, 0.1))
        except subprocess.TimeoutExpired:
            _stop(process, done, signal.SIGINT if done.stops % 2 else signal.SIGTERM, own_code)
        else:
            process.communicate()
        if process.returncode == own_code or not RESUMABLE & {str(command.arguments[0])}:
            done.through += process.returncode == own_code
            shutil.rmtree(attempt)
    command.run(attempt)
    if command.look is not None:
        expected, found = command.look(whole), command.look(attempt)
        if expected != found:
            done.problems.append("it left something else than an unbroken one")
    shutil.rmtree(folder)
    return done


def _stop(process: "subprocess.Popen[str]", done: Stops, number: int, own_code: int) -> None:
    while process.poll() is None and not _catches(process.pid, signal.SIGTERM):
        time.sleep(0.01)  # in the first moments of Python nobody does, and the system ends it without a word
    if process.poll() is not None:
        process.communicate()
        return
    began = time.monotonic()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=600)
    seconds = time.monotonic() - began
    if process.returncode == own_code and "stopped by" not in errors:  # it was through
        return
    done.stops += 1
    done.seconds.append(seconds)
    if process.returncode != 128 + number or not SENTENCE.fullmatch(errors) or seconds > MOST_SECONDS:
        done.problems.append(f"{number}: {process.returncode} after {seconds:.1f} s: {errors[-1500:]!r}")


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal, by the system's word."""
    with suppress(FileNotFoundError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) & 1 << number - 1)
    return False


@contextmanager
def furnish(folder: Path) -> Iterator[list[Command]]:
    """Makes data, a store, caches and runs, all small, and yields every command."""
    data = make_data(folder / "data", 40)
    tests = write_test_data(folder / "tests", make_exams(40, split="test"))
    cache = write_cache(folder / "cache", make_exams()).folder
    config = folder / "config.toml"
    config.write_text(tomli_w.dumps(make_recipe(workers=2, epochs=6).model_dump()))
    run, small = folder / "run", ["--set", "prepare.side=32"]
    prepared = Command("prepare", ("prepare", data, "--cache", OUT, *small))
    trained = Command("train", ("train", config, "--cache", cache, "--run", OUT))
    trained.run(folder / "first")
    shutil.move(folder / "first/out", run)
    prepared.run(folder / "second")
    labels = folder / "labels.csv"
    image = find_image(data, "97")
    labels.write_text(f"file,patient_id,laterality,cancer\n{image.relative_to(data)},5,R,1\n")
    predict = ("predict", run, "--out", f"{OUT}/out.csv", "--probabilities")
    ray = ("--engine", "ray")
    with serve() as store, pytest.MonkeyPatch.context() as patch:
        point_to(store, patch)
        store.upload(data)
        store.upload(tests, "tests")
        remote = store.s3.removesuffix("data") + "tests"
        predicted = lambda path: look_at_submission(path / "out")  # noqa: E731
        local = [
            Command("demo", ("demo", "--out", OUT)),
            Command("phantom", ("phantom", OUT, "--patients", 20, "--rows", 320, "--columns", 256)),
            Command("collect", ("collect", data, "--labels", labels, "--out", OUT)),
            Command(prepared.name, prepared.arguments, _snapshot),
            Command("inspect", ("inspect", image, "--out", f"{OUT}.png")),
            Command("verify", ("verify", folder / "second/out", "--data", data)),
            Command("pack", ("pack", folder / "second/out")),
            Command(trained.name, trained.arguments, _results),
            Command("evaluate", ("evaluate", run)),
            Command("compare", ("compare", run, run)),
            Command("predict", (*predict, "--data", tests), predicted),
            Command(
                "explain",
                ("explain", run, next((tests / "test_images").rglob("*.png")), "--out", f"{OUT}.png"),
            ),
            Command("export", ("export", run, "--out", OUT)),
            Command("check", ("check", folder / "none.csv", "--data", tests)),
            Command("doctor", ("doctor",)),
        ]
        elsewhere = [
            Command("prepare on Ray", (*prepared.arguments, *ray), _snapshot),
            Command("train on Ray", (*trained.arguments, *ray), _results),
            Command("predict on Ray", (*predict, "--data", tests, *ray), predicted),
            Command("prepare from storage", ("prepare", store.s3, "--cache", OUT, *small), _snapshot),
            Command("verify from storage", ("verify", folder / "second/out", "--data", store.s3)),
            Command("predict from storage", (*predict, "--data", remote), predicted),
        ]
        yield local + elsewhere


def _snapshot(folder: Path) -> dict[str, bytes]:
    return snapshot(folder / "out")


def _results(folder: Path) -> dict[str, bytes]:
    return results(Run(folder / "out"))


def main() -> None:
    """Runs all loops, prints their figures, and ends with 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands whose names begin so")
    options = parser.parse_args()
    problems = 0
    with tempfile.TemporaryDirectory() as name, furnish(Path(name)) as commands:
        for command in commands:
            if command.name.startswith(options.only):
                done = stop_loop(command, Path(name) / "loop", num_stops=options.stops, seed=options.seed)
                slowest = round(max(done.seconds, default=0.0), 2)
                figures = {"stops": done.stops, "through": done.through, "slowest": slowest}
                print(json.dumps({"command": command.name, **figures, "problems": done.problems}), flush=True)
                problems += len(done.problems)
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
