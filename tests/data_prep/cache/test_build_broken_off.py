"""`prepare` when the disk is full, the process is killed, or somebody else works in the folder."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from data_prep.cache.folder import Cache
from data_prep.errors import DiskFull, FolderInUse
from data_prep.storage import atomic
from data_prep.storage.locks import locked
from tests.data_prep.data_folder import make_data, prepare_folder, snapshot

RUN_PREPARE = """
import sys
from pathlib import Path
from tests.data_prep.data_folder import prepare_folder
if __name__ == "__main__":
    prepare_folder(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""
ROOT = Path(__file__).parents[3]


def times_of_images(cache: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in cache.rglob("[!.]*.png")}


def fill_disk_after(num_writes: int) -> Callable[[int], None]:
    """An `os.fsync` that fails from some call on."""
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > num_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


@pytest.mark.parametrize("num_writes", [0, 3, 10])
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", fill_disk_after(num_writes))
        with pytest.raises(DiskFull, match="free some space"):
            prepare_folder(data, cache)
    written = times_of_images(cache)
    prepare_folder(data, cache)
    assert snapshot(cache) == snapshot(prepared)
    assert times_of_images(cache).items() >= written.items()


def test_a_torn_journal_costs_one_image(
    data: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_folder(data, cache.folder)
    journal = cache.journal.path
    journal.write_bytes(journal.read_bytes()[:-20])
    (cache.folder / "images/5" / f"{atomic.TEMPORARY_PREFIX}99-90.png").write_bytes(b"half")
    assert prepare_folder(data, cache.folder).num_prepared == 1
    assert snapshot(cache.folder) == snapshot(prepared)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path: Path, workers: int) -> None:
    """SIGKILL at random moments, until the run gets through."""
    data = make_data(tmp_path / "data", 40)
    prepare_folder(data, tmp_path / "unbroken")
    cache, generator = tmp_path / "cache", np.random.default_rng(workers)
    for _ in range(2):
        run_and_kill(data, cache, workers=workers, after_images=int(generator.integers(1, 16)))
    prepare_folder(data, cache, workers=0)
    assert snapshot(cache) == snapshot(tmp_path / "unbroken")


def run_and_kill(data: Path, cache: Path, *, workers: int, after_images: int) -> None:
    """Starts `prepare` in a process of its own and kills that once it has written some images more."""
    num_before = len(times_of_images(cache))
    command = [sys.executable, "-c", RUN_PREPARE, str(data), str(cache), str(workers)]
    with subprocess.Popen(command, cwd=ROOT) as run:
        deadline = time.monotonic() + 600
        while len(times_of_images(cache)) < num_before + after_images and time.monotonic() < deadline:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
    assert len(times_of_images(cache)) > num_before


def test_a_folder_in_use_is_left_alone(data: Path, prepared: Path) -> None:
    with locked(prepared), pytest.raises(FolderInUse, match=f"process {os.getpid()} on "):
        prepare_folder(data, prepared)
