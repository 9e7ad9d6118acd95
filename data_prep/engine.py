"""Where work runs: in this process, or in a pool that outlives the crash of a process. Knows no images."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

from pebble import ProcessExpired, ProcessPool

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT_S = 60.0
MAX_ATTEMPTS = 2
TASKS_PER_WORKER = 4  # a short queue keeps memory flat
KILLED_TWICE = "its process was killed twice (out of memory? fewer --workers)"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or a reason code and a sentence."""

    item: Item
    result: Result | None
    reason: str = ""
    message: str = ""


class Engine(Protocol):
    """Works on many items somewhere; `map_unordered` is the one of this machine."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 0
    ) -> Iterator[Outcome[Item, Result]]:
        """Yields one outcome per item as they end."""


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 0
) -> Iterator[Outcome[Item, Result]]:
    """Yields one outcome per item as they end; with 0 workers in this process, one after the other.

    A crash, a kill or a time-out of a worker costs the one item that it had, after a second try. What
    `function` raises is no outcome: it is raised here, so `function` returns what may well go wrong. While
    nobody asks for the next outcome, the workers go on with up to `ahead` items, or a few for each of them.
    """
    if workers == 0:
        for item in items:
            yield Outcome(item, function(item))
        return
    with make_pool(workers) as pool:
        yield from map_in_pool(pool, function, items, most=max(ahead, TASKS_PER_WORKER * workers))


def make_pool(workers: int) -> ProcessPool:
    """Returns a pool that replaces a process that ends."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    return ProcessPool(max_workers=workers, context=context, initializer=end_with_parent)


def map_in_pool(
    pool: ProcessPool, function: Callable[[Item], Result], items: Iterable[Item], *, most: int
) -> Iterator[Outcome[Item, Result]]:
    """Yields as `map_unordered` does, from a pool that outlives the call; `most` items wait in it at once."""
    queue, retries = iter(items), deque[Item]()
    pending: dict[Future[Result], tuple[Item, int]] = {}
    try:
        while True:
            free = most - len(pending)
            tasks = [(retries.popleft(), 2) for _ in range(min(free, len(retries)))]
            tasks += [(item, 1) for item in islice(queue, free - len(tasks))]
            for item, attempt in tasks:
                future = pool.schedule(function, args=[item], timeout=TIMEOUT_S)
                pending[future] = item, attempt
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                item, attempt = pending.pop(future)
                outcome = _outcome(item, future, TIMEOUT_S)
                if outcome.result is None and attempt < MAX_ATTEMPTS:
                    retries.append(item)
                else:
                    yield outcome
    finally:
        for future in pending:
            future.cancel()


def try_once(
    pool: ProcessPool, function: Callable[[Item], Result], items: Iterable[Item], *, timeout_s: float
) -> list[Outcome[Item, Result]]:
    """Returns one outcome per item after one attempt; the sentences are those of a second one."""
    futures = [(item, pool.schedule(function, args=[item], timeout=timeout_s)) for item in items]
    return [_outcome(item, future, timeout_s) for item, future in futures]


def _outcome(item: Item, future: "Future[Result]", timeout_s: float) -> Outcome[Item, Result]:
    try:
        return Outcome(item, future.result())
    except TimeoutError:
        return Outcome(item, None, "timeout", f"it took more than {timeout_s:g} s, twice")
    except ProcessExpired as error:
        if error.exitcode == -signal.SIGKILL:
            return Outcome(item, None, "killed", KILLED_TWICE)
        return Outcome(item, None, "crashed", f"its process ended with code {error.exitcode}, twice")


def end_with_parent() -> None:
    """Has the system kill this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already, and nobody will tell
        os._exit(1)
