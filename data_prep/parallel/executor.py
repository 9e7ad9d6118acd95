"""Work on many items in this process, or in a pool that outlives the crash of a process."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from data_prep.parallel.process_pool import ProcessEnded, ProcessPool

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT_S = 60.0
MAX_ATTEMPTS = 2
TASKS_PER_WORKER = 4  # a short queue keeps memory flat
KILLED_TWICE = "its process was killed twice (out of memory? let fewer work at once)"


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or a reason code and a sentence."""

    item: Item
    result: Result | None
    reason: str = ""
    message: str = ""


class Executor(Protocol):
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
    `function` raises is not an outcome: it is raised here, so `function` returns what may well go wrong.
    While nobody asks for the next outcome, the workers go on with up to `ahead` items, or a few each.
    """
    if workers == 0:
        for item in items:
            yield Outcome(item, function(item))
        return
    with ProcessPool(workers) as pool:
        yield from map_in_pool(pool, function, items, most=max(ahead, TASKS_PER_WORKER * workers))


def map_in_pool(
    pool: ProcessPool, function: Callable[[Item], Result], items: Iterable[Item], *, most: int
) -> Iterator[Outcome[Item, Result]]:
    """Yields as `map_unordered` does, from a pool that outlives the call; `most` items wait in it at once."""
    queue, retries = iter(items), deque[Item]()
    pending: dict[Future[Result], tuple[Item, int]] = {}
    done: SimpleQueue[Future[Result]] = SimpleQueue()  # a signal that ends the waiting leaves nothing locked
    try:
        while True:
            free = most - len(pending)
            tasks = [(retries.popleft(), 2) for _ in range(min(free, len(retries)))]
            tasks += [(item, 1) for item in islice(queue, free - len(tasks))]
            for item, attempt in tasks:
                future = pool.submit(function, item, timeout_s=TIMEOUT_S)
                pending[future] = item, attempt
                future.add_done_callback(done.put)
            if not pending:
                return
            future = done.get()
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
    futures = [(item, pool.submit(function, item, timeout_s=timeout_s)) for item in items]
    try:
        return [_outcome(item, future, timeout_s) for item, future in futures]
    finally:
        for _, future in futures:
            future.cancel()


def _outcome(item: Item, future: "Future[Result]", timeout_s: float) -> Outcome[Item, Result]:
    try:
        return Outcome(item, future.result())
    except TimeoutError:
        return Outcome(item, None, "timeout", f"it took more than {timeout_s:g} s, twice")
    except MemoryError:
        return Outcome(item, None, "too_large", "it takes more memory than there is, twice")
    except ProcessEnded as error:
        if error.exit_code == -signal.SIGKILL:
            return Outcome(item, None, "killed", KILLED_TWICE)
        return Outcome(item, None, "crashed", f"its process ended with code {error.exit_code}, twice")
