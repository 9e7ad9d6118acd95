"""The pool: a process may be killed at any moment, and costs only the item it had."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from data_prep.engine import map_unordered
from data_prep.process_pool import ProcessEnded, ProcessPool

LARGE = 2**18  # bytes: a pipe holds a quarter of that, so that a process is often killed while it answers


def answer_at_length(number: int) -> bytes:
    time.sleep(0.001)
    return number.to_bytes(4, "big") * (LARGE // 4)


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def raise_chained(number: int) -> None:
    raise KeyError(number) from ValueError("the cause")


def give_a_function(number: int) -> Callable[[], int]:
    return lambda: number


@contextmanager
def killing(number: int, *, all_at_once: bool) -> Iterator[list[int]]:
    """Kills processes of this one about three times a second, idle, starting and working ones alike."""
    killed: list[int] = []
    is_over = threading.Event()
    chance = np.random.default_rng(0)

    def kill() -> None:
        while not is_over.wait(chance.uniform(0, 0.6)):
            children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            for pid in children if all_at_once else chance.permutation(children)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("all_at_once", [False, True])
def test_processes_killed_at_any_moment_cost_no_more_than_their_items(number: int, all_at_once: bool) -> None:
    """As an exhausted machine or a batch system kills: one of them, or all that belong together."""
    outcomes = {}
    with killing(number, all_at_once=all_at_once) as killed:
        for outcome in map_unordered(answer_at_length, range(3000), workers=2):
            outcomes[outcome.item] = outcome
    lost = {item for item, outcome in outcomes.items() if outcome.result is None}
    assert outcomes.keys() == set(range(3000))
    assert all(outcomes[item].result == answer_at_length(item) for item in outcomes.keys() - lost)
    assert len(killed) >= 3
    assert 2 * len(lost) <= len(killed)  # each was tried twice


def test_an_idle_process_that_was_killed_is_replaced_before_the_next_item() -> None:
    with ProcessPool(1) as pool:
        first = pool.submit(sleep, 0, timeout_s=60).result()
        os.kill(first, signal.SIGKILL)
        while any(child.pid == first for child in multiprocessing.active_children()):
            time.sleep(0.01)
        assert pool.submit(sleep, 0, timeout_s=60).result() != first


def test_the_end_of_the_block_ends_what_works_and_what_waits() -> None:
    start = time.monotonic()
    with ProcessPool(1) as pool:
        working, waiting = (pool.submit(sleep, 600, timeout_s=600) for _ in range(2))
        while not multiprocessing.active_children():
            time.sleep(0.01)
    assert time.monotonic() - start < 60
    assert waiting.cancelled()
    with pytest.raises(ProcessEnded, match="-9"):
        working.result()
    assert multiprocessing.active_children() == []


def test_ctrl_c_does_not_reach_the_processes() -> None:
    with ProcessPool(1) as pool:
        first = pool.submit(sleep, 0, timeout_s=60).result()
        working = pool.submit(sleep, 1, timeout_s=60)
        time.sleep(0.3)
        os.kill(first, signal.SIGINT)
        assert working.result() == first


def test_an_exception_says_where_it_was_raised() -> None:
    with ProcessPool(1) as pool:
        error = pool.submit(raise_chained, 3, timeout_s=60).exception()
        assert isinstance(error, KeyError)
        assert any("raise_chained" in note and "the cause" in note for note in error.__notes__)


def test_what_cannot_be_sent_is_an_error_and_no_end_of_a_process() -> None:
    with ProcessPool(1) as pool:
        first = pool.submit(sleep, 0, timeout_s=60).result()
        with pytest.raises((AttributeError, TypeError), match="lambda"):
            pool.submit(give_a_function, 1, timeout_s=60).result()
        with pytest.raises((AttributeError, TypeError), match="lambda"):
            pool.submit(lambda number: number, 1, timeout_s=60).result()
        assert pool.submit(sleep, 0, timeout_s=60).result() == first


ORPHAN = """
import multiprocessing, os, pathlib, signal, sys, time
from data_prep.process_pool import end_with_parent

def live(folder):
    (folder / "pid").write_text(str(os.getpid()))
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    (folder / "orphan").touch()
    end_with_parent()
    (folder / "survivor").touch()

multiprocessing.get_context("fork").Process(target=live, args=[pathlib.Path(sys.argv[1])]).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_whose_parent_has_ended_before_it_could_ask_ends_too(tmp_path: Path) -> None:
    """Else it would hold its parent's locks for ever; a parent may be killed just when it has forked."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(tmp_path)], stderr=subprocess.PIPE) as parent:
        parent.communicate(timeout=60)  # until the child too has closed its end
    assert parent.returncode == -signal.SIGKILL
    assert (tmp_path / "orphan").exists()
    assert not (tmp_path / "survivor").exists()
