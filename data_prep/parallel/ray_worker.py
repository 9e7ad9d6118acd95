"""What runs in the processes of a Ray cluster: items tried in a process beside, which may crash or hang."""

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data_prep.errors import UserError
from data_prep.parallel.executor import Outcome, map_in_pool, try_once
from data_prep.parallel.process_pool import ProcessPool

if TYPE_CHECKING:
    from ray import ObjectRef

Item = TypeVar("Item")
Result = TypeVar("Result")

SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def work(
    run: Callable[..., list[Outcome[Item, Result]]], sent: "list[ObjectRef]", items: list[Item]
) -> list[Outcome[Item, Result]]:
    """Runs a task: `run` over the items, with the function that was sent once for all tasks."""
    return run(_fetch(sent[0]), items)


@lru_cache(maxsize=1)
def _fetch(reference: "ObjectRef") -> Callable[[Any], Any]:
    import ray

    return ray.get(reference)


class Keeper(Generic[Item, Result]):
    """Works in a process that is kept for many items, on several at once; an actor."""

    def __init__(self, sent: "list[ObjectRef]") -> None:
        self._sent = sent

    def begin(self) -> list[Outcome[None, str]]:
        """Has the function made, with all that it keeps, and tells the machine's NodeID."""
        import ray

        self._function: Callable[[Item], Result] = ray.get(self._sent[0])()
        return [Outcome(None, ray.get_runtime_context().get_node_id())]

    def work(self, items: list[Item]) -> list[Outcome[Item, Result]]:
        """Works on each item, in the thread that it is called in."""
        return do_each(self._function, items)


@dataclass(frozen=True)
class TryApart:
    """Tries each item once, in a process that may crash or hang.

    Attributes:
        shared: files that this machine must see.
    """

    timeout_s: float
    shared: tuple[Path, ...]

    def __call__(self, function: Callable[[Item], Result], items: list[Item]) -> list[Outcome[Item, Result]]:
        """Returns one outcome per item.

        Raises:
            UserError: if this machine does not see a shared file.
        """
        for path in self.shared:
            if not path.exists():
                raise UserError(
                    f"{socket.gethostname()}, a machine of the cluster, does not see {path}: put data and "
                    "results on storage that all of them share, under the same name"
                )
        return try_once(_keep_pool(1), function, items, timeout_s=self.timeout_s)


def do_each(function: Callable[[Item], Result], items: list[Item]) -> list[Outcome[Item, Result]]:
    """Works on each item in this process."""
    return [Outcome(item, function(item)) for item in items]


def map_here(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 0, readers: int
) -> Iterator[Outcome[Item, Result]]:
    """Works like `executor.map_unordered` in a process of the cluster, whose pool is kept for the next time.

    That pool has `readers` processes, however few `workers` are asked for, and serves several threads.
    """
    del workers
    with _STARTING:
        pool = _keep_pool(readers)
    yield from map_in_pool(pool, function, items, most=max(ahead, 2 * readers))


_STARTING = Lock()


@cache
def _keep_pool(workers: int) -> ProcessPool:
    """Returns a pool of single-threaded processes that lives as long as this process of Ray's."""
    os.environ.update(dict.fromkeys(SINGLE_THREADED, "1"))
    # Else each process would begin by importing ray: multiprocessing gives them the parent's main module, and
    # has no public way to leave that out.
    vars(sys.modules["__main__"]).pop("__file__", None)
    return ProcessPool(workers)
