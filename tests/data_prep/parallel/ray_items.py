"""What the tests have the processes of a Ray cluster do; light, since each new process imports it."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.parallel.ray_worker import SINGLE_THREADED


@dataclass(frozen=True)
class HangAtOne:
    """Tells which processes work on the number one, which takes very long."""

    folder: Path

    def __call__(self, number: int) -> int:
        if number == 1:
            for pid in (os.getpid(), os.getppid()):
                (self.folder / str(pid)).touch()
            time.sleep(600)
        return number


@dataclass(frozen=True)
class Misbehave:
    """Does something bad to the process that works on some numbers, and leaves a mark for each try."""

    folder: Path

    def __call__(self, number: int) -> int:
        leave_mark(self.folder, number)
        if number == 3:
            os._exit(7)
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 7:
            time.sleep(60)
        if number == 11:  # what Ray's memory monitor does: it kills Ray's own process
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return number


@dataclass(frozen=True)
class Wait:
    """Waits for a file, with a mark for each try."""

    folder: Path

    def __call__(self, number: int) -> int:
        leave_mark(self.folder, number)
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        return number


def leave_mark(folder: Path, number: int) -> None:
    with (folder / str(number)).open("a") as stream:
        stream.write("x")


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is not to be had")
    return number


def surroundings(number: int) -> dict[str, object]:
    threads = [os.environ[name] for name in SINGLE_THREADED]
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")
    return {"threads": threads, "ray": "ray" in sys.modules, **{name: os.environ[name] for name in names}}
