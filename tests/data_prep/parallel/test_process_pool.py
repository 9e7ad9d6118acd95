"""The pool: a process may be killed at any moment, and costs only the item it had."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from data_prep.parallel import process_pool
from data_prep.parallel.executor import map_unordered
from data_prep.parallel.process_pool import SPAWN, ProcessEnded, ProcessPool
from data_prep.parallel.resource_limits import MOST_MEMORY, limit_memory
from tests.data_prep.parallel.long_answers import answer_at_length


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def raise_chained(number: int) -> None:
    raise KeyError(number) from ValueError("the cause")


class Unsendable(Exception):
    """Cannot be made again from the arguments that it keeps."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def raise_unsendable(number: int) -> None:
    raise Unsendable(number, number + 1)


def fail_to_read() -> None:
    raise EOFError("unreadable")


class Unreadable:
    """Can be sent and not be received."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return fail_to_read, ()


def give_a_function(number: int) -> Callable[[], int]:
    return lambda: number


def kill_some(number: int, *, all_at_once: bool, chance: np.random.Generator) -> int:
    """Kills one of this process's children or all, in whatever they are doing, and tells how many."""
    time.sleep(chance.uniform(0, 0.01))
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    killed = 0
    for pid in children if all_at_once else chance.permutation(children)[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("all_at_once", [False, True])
def test_processes_killed_at_any_moment_cost_no_more_than_their_items(number: int, all_at_once: bool) -> None:
    """As an exhausted machine or a batch system kills: one of them, or all that belong together."""
    chance, outcomes, killed = np.random.default_rng(0), {}, 0
    for outcome in map_unordered(answer_at_length, range(1200), workers=2):
        outcomes[outcome.item] = outcome
        if len(outcomes) % 200 == 0:
            for _ in range(2):  # the second one meets those that start again
                killed += kill_some(number, all_at_once=all_at_once, chance=chance)
                time.sleep(chance.uniform(0, 0.2))
    lost = {item for item, outcome in outcomes.items() if outcome.result is None}
    assert outcomes.keys() == set(range(1200))
    assert all(outcomes[item].result == answer_at_length(item) for item in outcomes.keys() - lost)
    assert killed >= 6
    assert 2 * len(lost) <= killed  # each was tried twice


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
        while not working.running():
            time.sleep(0.01)
    assert time.monotonic() - start < 60
    assert waiting.cancelled()
    with pytest.raises(ProcessEnded, match="-9"):
        working.result()
    assert multiprocessing.active_children() == []


def test_ctrl_c_does_not_reach_the_processes() -> None:
    """Not even in their first moments, when Python would answer with a traceback."""
    with ProcessPool(1) as pool:
        working = pool.submit(sleep, 1, timeout_s=60)
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        while not working.done():
            os.kill(children[0].pid, signal.SIGINT)
            time.sleep(0.01)
        assert working.result() == children[0].pid


def is_blocked(path: Path) -> bool:
    """Whether Ctrl-C is blocked; the first process that can say yes ends."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    if blocked and not path.exists():
        path.touch()
        os._exit(7)
    return blocked


def print_blocked(path: str) -> None:
    (outcome,) = map_unordered(is_blocked, [Path(path)], workers=1)
    here = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    sys.stdout.write(f"{outcome.result} {here}")


def test_ctrl_c_reaches_no_process_from_its_first_moment_on(tmp_path: Path) -> None:
    """Neither the first one nor the one that replaces it; the command can be stopped as before."""
    here = "tests.data_prep.parallel.test_process_pool"
    program = f"import sys; from {here} import print_blocked; print_blocked(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path / "item")]  # nothing that it needs runs already
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.split() == ["True", "False"]
    assert (tmp_path / "item").exists()


def test_a_process_that_cannot_be_started_is_an_error_of_its_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(process: multiprocessing.Process) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    with ProcessPool(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(SPAWN.Process, "start", fail)
            for _ in range(2):
                with pytest.raises(BlockingIOError, match="no more processes"):
                    pool.submit(sleep, 0, timeout_s=60).result()
        assert pool.submit(sleep, 0, timeout_s=60).result() in {
            child.pid for child in multiprocessing.active_children()
        }


def test_few_items_start_few_processes() -> None:
    with ProcessPool(4) as pool:
        assert len({pool.submit(sleep, 0, timeout_s=60).result() for _ in range(8)}) == 1


def test_an_exception_says_where_it_was_raised() -> None:
    with ProcessPool(1) as pool:
        error = pool.submit(raise_chained, 3, timeout_s=60).exception()
        assert isinstance(error, KeyError)
        assert any("raise_chained" in note and "the cause" in note for note in error.__notes__)


def test_what_cannot_be_sent_is_an_error_and_no_end_of_a_process() -> None:
    with ProcessPool(1) as pool:
        first = pool.submit(sleep, 0, timeout_s=60).result()
        for function, item in ((give_a_function, 1), (lambda number: number, 1), (sleep, Unreadable())):
            with pytest.raises((AttributeError, TypeError, EOFError), match=r"lambda|unreadable"):
                pool.submit(function, item, timeout_s=60).result()
        with pytest.raises(RuntimeError, match="Unsendable: 3 and 4"):
            pool.submit(raise_unsendable, 3, timeout_s=60).result()
        assert pool.submit(sleep, 0, timeout_s=60).result() == first


def take_memory(num_bytes: int) -> int:
    limit_memory()
    return np.empty(num_bytes, np.uint8).nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_an_item_that_takes_too_much_memory_costs_only_itself() -> None:
    with ProcessPool(1) as pool:
        assert pool.submit(take_memory, MOST_MEMORY // 2, timeout_s=60).result() == MOST_MEMORY // 2
        with pytest.raises(MemoryError):
            pool.submit(take_memory, MOST_MEMORY + 2**28, timeout_s=60).result()
        assert pool.submit(take_memory, 1, timeout_s=60).result() == 1


ORPHAN = """
import multiprocessing, os, pathlib, signal, sys, time
from data_prep.parallel.process_pool import end_with_parent

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
        parent.communicate(timeout=600)  # until the child too has closed its end
    assert parent.returncode == -signal.SIGKILL
    assert (tmp_path / "orphan").exists()
    assert not (tmp_path / "survivor").exists()


def test_a_process_whose_owner_is_gone_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner was killed with an answer unread, which resets the connection instead of closing it."""
    monkeypatch.setattr(process_pool, "end_with_parent", lambda: None)
    ours, theirs = SPAWN.Pipe()
    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(process_pool._serve, theirs)
        ours.send_bytes(ForkingPickler.dumps((abs, -1)))
        assert ours.poll(60)
        ours.close()
        serving.result(timeout=60)
