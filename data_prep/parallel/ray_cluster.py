"""The driver of work on a Ray cluster: connects, hands out tasks, and tries again what was lost.

The driver alone decides what is tried again. A task that dies with its machine costs only time; one whose
process dies, for lack of memory for instance, is tried a second time and no more, item by item. Ray itself
retries nothing: its own way is to start what was killed for its memory again for ever.
"""

import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data_prep.errors import UserError
from data_prep.parallel import executor
from data_prep.parallel.executor import KILLED_TWICE, MAX_ATTEMPTS, Outcome
from data_prep.parallel.ray_worker import TryApart, do_each, work

if TYPE_CHECKING:
    from ray import ObjectRef

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_PER_TASK = 16  # a third of a second of work or more, beside some milliseconds that Ray takes for a task
TASKS_PER_CPU = 2  # one runs, one waits beside it
MOST_LOSSES = 10  # of machines under one task: by then the machines are the trouble
POLL_S = 0.5
SECONDS_BETWEEN_COUNTS = 5.0  # of the cluster's CPUs: machines may join late
SECONDS_TO_NOTICE_A_LOSS = 3.0
SECONDS_TO_STOP = 120.0


@dataclass(frozen=True)
class Needs:
    """What a machine must have free for a task."""

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Some items that are given away together.

    Attributes:
        attempt: how often they are tried, this time included.
        losses: how many machines were lost under them.
        machines: those that there were when they were given away.
    """

    items: list[Item]
    attempt: int = 1
    losses: int = 0
    machines: frozenset[str] = frozenset()


class Cluster:
    """A Ray cluster that this process is connected to; `connect` makes one."""

    def count(self, resource: str) -> int:
        """Returns how many CPUs or GPUs (`CPU`, `GPU`) its machines have now."""
        import ray

        return int(ray.cluster_resources().get(resource, 0))

    def largest(self, resource: str, beside: str) -> float:
        """Returns how many of them the machine has that has most, of those that have some of another too."""
        alive = _list_resources()
        fitting = [resources for resources in alive if resources.get(beside)] or alive
        return max(resources.get(resource, 0.0) for resources in fitting)

    def cpus_per_gpu(self) -> int:
        """Returns how many CPUs a machine has for each of its GPUs, where that is least; 0 without GPUs."""
        with_gpus = [resources for resources in _list_resources() if resources.get("GPU")]
        return int(min((resources.get("CPU", 0.0) // resources["GPU"] for resources in with_gpus), default=0))

    def count_room(self, needs: Needs) -> int:
        """Returns how many times its machines have now what is needed."""
        wanted = {"CPU": needs.cpus, "GPU": needs.gpus}
        return sum(
            int(min(resources.get(name, 0.0) // amount for name, amount in wanted.items() if amount))
            for resources in _list_resources()
        )

    def map_unordered(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        workers: int,
        ahead: int = 0,
        shared: Sequence[Path] = (),
    ) -> Iterator[Outcome[Item, Result]]:
        """Works like `executor.map_unordered`, a few items a task, a CPU each; an `Executor`.

        Each item is tried in a process of its own beside Ray's, so that crashes, kills and time-outs are what
        they are on one machine. `workers` limits the tasks at a time; 0 means all that there are CPUs for.

        Raises:
            UserError: if a machine does not see one of the `shared` files, or machines are lost all the time.
        """
        del ahead  # whatever waits for the caller are small results
        size = ITEMS_PER_TASK
        if isinstance(items, Sized):  # of a few items every CPU gets some
            size = min(size, max(1, len(items) // (2 * TASKS_PER_CPU * max(1, workers or self.count("CPU")))))
        run = TryApart(executor.TIMEOUT_S, tuple(shared))
        yield from self._map(run, function, items, size=size, needs=Needs(), workers=workers)

    def map_whole(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        needs: Needs,
        on_wait: Callable[[], None] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """Yields one outcome per item, each a task without a time limit in a process of Ray's.

        `on_wait` is called twice a second. If it raises, the tasks get a SIGINT and two minutes to end by
        themselves; without it they end with the connection. `function` returns no None.
        """
        yield from self._map(do_each, function, items, size=1, needs=needs, workers=0, on_wait=on_wait)

    def _map(
        self,
        run: Callable[..., list[Outcome[Item, Result]]],
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        size: int,
        needs: Needs,
        workers: int,
        on_wait: Callable[[], None] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        import ray

        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        start = ray.remote(**options)(work)
        sent = [ray.put(function)]  # in a list, so that a process fetches it once and not for each task
        queue, retries = iter(items), deque[Chunk[Item]]()
        pending: dict[ObjectRef, Chunk[Item]] = {}
        most, machines, counted = 0, frozenset[str](), -SECONDS_BETWEEN_COUNTS
        try:
            while True:
                if time.monotonic() - counted > SECONDS_BETWEEN_COUNTS:
                    counted, machines = time.monotonic(), list_machines()
                    most = workers or max(2, TASKS_PER_CPU * self.count("CPU"))
                while len(pending) < most:
                    task = retries.popleft() if retries else Chunk(list(islice(queue, size)))
                    if not task.items:
                        break
                    pending[start.remote(run, sent, task.items)] = replace(task, machines=machines)
                if not pending:
                    return
                if on_wait is not None:
                    on_wait()
                for reference in ray.wait(list(pending), timeout=POLL_S)[0]:
                    task = pending.pop(reference)
                    yield from sort_out(find_outcomes(reference, task), task, retries)
        finally:
            if on_wait is not None:
                _stop(list(pending))


def sort_out(
    outcomes: list[Outcome[Item, Any]] | None, task: Chunk[Item], retries: deque[Chunk[Item]]
) -> Iterator[Outcome[Item, Any]]:
    """Yields what became of a task's items for good; the others are put where they are tried again."""
    if outcomes is None:
        retries.append(replace(task, losses=task.losses + 1))
        return
    for outcome in outcomes:
        if outcome.result is None and task.attempt < MAX_ATTEMPTS:
            retries.append(Chunk([outcome.item], task.attempt + 1, task.losses))
        else:
            yield outcome


def find_outcomes(reference: "ObjectRef", task: Chunk[Item]) -> list[Outcome[Item, Any]] | None:
    """Returns what came of a task; None if its machine was lost, so that it is nobody's fault.

    Raises:
        UserError: if machines are lost again and again, or cannot run the task at all.
        ActorUnavailableError: if Ray does not know yet what became of an actor.
    """
    import ray.exceptions

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _find_cause(error) from error
    except ray.exceptions.ActorUnavailableError:
        raise
    except ray.exceptions.OutOfMemoryError:
        is_lost = False
    except ray.exceptions.NodeDiedError:
        is_lost = True
    except ray.exceptions.RayError:  # a dead process; or a dying machine, whose processes went first
        is_lost = _is_any_lost(task.machines)
    if is_lost and task.losses >= MOST_LOSSES:
        raise UserError(
            f"{MOST_LOSSES} machines were lost under one task: look at the cluster (`ray status`); what was "
            "done is kept, run the same command again"
        )
    return None if is_lost else [Outcome(item, None, "killed", KILLED_TWICE) for item in task.items]


def _is_any_lost(machines: frozenset[str]) -> bool:
    """Whether one of these machines is gone, or is within the next seconds."""
    deadline = time.monotonic() + SECONDS_TO_NOTICE_A_LOSS
    while time.monotonic() < deadline:
        if machines - list_machines():
            return True
        time.sleep(POLL_S)
    return False


def list_machines() -> frozenset[str]:
    """Returns the names of the machines that there are now."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _list_resources() -> list[dict[str, float]]:
    """Returns what each machine has in all, used or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _find_cause(error: Any) -> BaseException:
    """Returns what the function raised, as it would be raised here."""
    if "failed to import on the worker" in str(error) or isinstance(error.cause, ModuleNotFoundError):
        return UserError(
            "the cluster's machines cannot import mammo: install the same version on each of them "
            '(`pip install "mammo-vit[cluster]"`), or give `ray start` the environment that has it'
        )
    return error.cause


def _stop(pending: "Sequence[ObjectRef]") -> None:
    """Asks tasks to end, and waits until they have.

    Those with something to save only: Ray 2.60 aborts a process that cancels a task just as that ends.
    """
    import ray

    if not pending or not ray.is_initialized():
        return
    for reference in pending:
        ray.cancel(reference)
    ray.wait(list(pending), num_returns=len(pending), timeout=SECONDS_TO_STOP)


# The connection


@contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Connects to a cluster, by default a new one on this machine that ends with the block.

    Args:
        address: `auto`, `ray://host:port` or `host:port`. What Ray finds in the environment counts, so that a
            token lies where Ray looks for it.

    Raises:
        UserError: if there is none, or it lets nobody in.
    """
    if address is None:  # before ray is imported, which reads these once
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: listen on loopback alone
        os.environ.setdefault("RAY_worker_niceness", "0")  # what it is without Ray, whose own is 15
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")  # which takes SIGTERM too
    import ray

    options = {"include_dashboard": False} if address is None else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"no Ray cluster at {address or 'this machine'} ({reason}): start one with "
            "`ray start --head`, name its --address, and set RAY_AUTH_TOKEN if it asks for a token"
        ) from error
    try:
        for number, handler in handlers.items():  # Ray has put its own in their place
            signal.signal(number, handler)
        yield Cluster()
    finally:
        ray.shutdown()
