"""Where work runs: in this process, or in a pool that outlives the crash of a process. Knows no images."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or a reason code and a sentence."""

    item: Item
    result: Result | None
    reason: str = ""
    message: str = ""


def count_workers() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Outcome[Item, Result]]:
    """Yields one outcome per item as they end; with 0 workers in this process, one after the other.

    A crash, a kill or a time-out of a worker costs the one item that it had. Exceptions of `function` are not
    outcomes: they are raised here, so `function` returns what can be expected to go wrong.
    """
    if workers == 0:
        for item in items:
            yield Outcome(item, function(item))
        return
    queue = iter(items)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    with ProcessPool(max_workers=workers, context=context) as pool:
        pending: dict[Future[Result], Item] = {}
        try:
            while True:
                for item in islice(queue, 4 * workers - len(pending)):  # a short queue keeps memory flat
                    pending[pool.schedule(function, args=[item], timeout=TIMEOUT_S)] = item
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield _outcome(pending.pop(future), future)
        finally:
            for future in pending:
                future.cancel()


def _outcome(item: Item, future: "Future[Result]") -> Outcome[Item, Result]:
    try:
        return Outcome(item, future.result())
    except TimeoutError:
        return Outcome(item, None, "timeout", f"it took more than {TIMEOUT_S:g} s")
    except ProcessExpired as error:
        return Outcome(
            item, None, "crashed", f"the process ended with code {error.exitcode} (out of memory?)"
        )
