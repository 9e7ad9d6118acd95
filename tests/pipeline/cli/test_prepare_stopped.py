"""A real `mammo prepare` with its workers, stopped as a terminal, a batch system or `kill` would do it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns.load import find_left
from tests.data_prep.data_folder import make_data, snapshot
from tests.forked import Forked

OPTIONS = ["--set", "prepare.side=32", "--workers", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("stopped") / "data", 60)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("whole") / "cache"
    return finish(data, cache)


def finish(data: Path, cache: Path) -> dict[str, bytes]:
    """Lets the command through and returns what it leaves."""
    with prepare(data, cache) as run:
        _, errors = run.communicate(timeout=600)
    assert run.returncode == 0, errors
    return snapshot(cache)


def prepare(data: Path, cache: Path) -> Forked:
    """Starts the command in a session of its own, as from a terminal of its own."""
    command = ["prepare", str(data), "--cache", str(cache), *OPTIONS]
    return Forked("-m", "pipeline", *command, new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "exit_code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],
    ids=["Ctrl-C, to its workers too", "kill, to the command"],
)
def test_a_stop_is_one_sentence_and_the_same_command_goes_on(
    data: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    send: Callable[[int, int], None],
    number: int,
    exit_code: int,
) -> None:
    cache = tmp_path / "cache"
    with prepare(data, cache) as run:
        deadline = time.monotonic() + 600
        while not list(cache.rglob("[!.]*.png")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        send(run.pid, number)
        _, errors = run.communicate(timeout=600)
    assert run.returncode == exit_code, errors
    assert not (cache / "manifest.csv").exists()
    sentence = (
        f"mammo: stopped by {signal.Signals(number).name}; what was done is kept, go on with: mammo prepare "
    )
    assert errors.startswith(sentence)
    assert errors.count("\n") == 1, errors
    assert find_left(run.pid) == []
    assert finish(data, cache) == whole
