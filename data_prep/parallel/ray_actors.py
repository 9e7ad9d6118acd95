"""Items on a Ray cluster in a few processes that are kept for all of them: Ray's actors.

What a process has loaded stays with it, and so does its GPU. Tasks cannot have that: Ray ends the process of
one with a GPU after it, or else may give the next task in that process another GPU than it has loaded.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from data_prep.errors import UserError
from data_prep.parallel.executor import MAX_ATTEMPTS, Outcome
from data_prep.parallel.ray_cluster import (
    POLL_S,
    SECONDS_BETWEEN_COUNTS,
    Chunk,
    Cluster,
    Needs,
    find_outcomes,
    list_machines,
    sort_out,
)
from data_prep.parallel.ray_worker import Keeper

if TYPE_CHECKING:
    from ray import ObjectRef

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_AT_ONCE = 3  # of a process: one is computed, one is read, and one waits, so that no reader does


def map_in_actors(
    cluster: Cluster, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], *, needs: Needs
) -> Iterator[Outcome[Item, Result]]:
    """Yields one outcome per item, of the function that `make` returns once in each process.

    There are as many processes as the machines have room for, those that join late too. Each works on a few
    items at once, in threads. If it is lost with its machine, that costs only time; if it ends otherwise, its
    items are tried a second time and no more. The function returns no None.

    Raises:
        UserError: if machines are lost all the time, or processes end while `make` works.
    """
    import ray

    crew: _Crew[Item] = _Crew(cluster, make, needs)
    waiting = deque(Chunk([item]) for item in items)
    try:
        while waiting or crew.is_working:
            if waiting:
                crew.hire(len(waiting))
                crew.give(waiting)
            for reference in ray.wait(list(crew.calls), timeout=POLL_S)[0]:
                yield from crew.take(reference, waiting)
    finally:
        crew.dismiss()


class _Crew(Generic[Item]):
    """The actors, and what they are called for.

    Attributes:
        calls: an actor each, with its item, or without one until it is ready.
    """

    def __init__(self, cluster: Cluster, make: Callable[[], Callable[[Item], Any]], needs: Needs) -> None:
        import ray

        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_concurrency": ITEMS_AT_ONCE}
        self._create = ray.remote(**options)(Keeper)
        self._sent = [ray.put(make)]
        self._cluster, self._needs = cluster, needs
        self._most, self._machines, self._counted = 0, frozenset[str](), -SECONDS_BETWEEN_COUNTS
        self._num_failed = 0
        self._actors: dict[Any, frozenset[str]] = {}  # each with its machine, or those that it may be on
        self._free: deque[Any] = deque()  # an actor for each further item that it may have
        self.calls: dict[ObjectRef, tuple[Any, Chunk[Item]]] = {}

    @property
    def is_working(self) -> bool:
        """Whether any actor has an item."""
        return any(task.items for _, task in self.calls.values())

    def hire(self, num_waiting: int) -> None:
        """Starts as many as there is room and work for, and one more that waits for a machine to join."""
        if time.monotonic() - self._counted > SECONDS_BETWEEN_COUNTS:
            self._counted, self._machines = time.monotonic(), list_machines()
            self._most = 1 + self._cluster.count_room(self._needs)
        while len(self._actors) < min(self._most, num_waiting):
            actor = self._create.remote(self._sent)
            self._actors[actor] = self._machines
            self._call(actor, Chunk([], machines=self._machines))

    def give(self, waiting: deque[Chunk[Item]]) -> None:
        """Hands out what is waiting, as far as somebody is free."""
        while waiting and self._free:
            actor = self._free.popleft()
            if actor in self._actors:
                self._call(actor, replace(waiting.popleft(), machines=self._actors[actor]))

    def _call(self, actor: Any, task: Chunk[Item]) -> None:
        reference = actor.work.remote(task.items) if task.items else actor.begin.remote()
        self.calls[reference] = actor, task

    def take(self, reference: "ObjectRef", waiting: deque[Chunk[Item]]) -> Iterator[Outcome[Item, Any]]:
        """Yields what became of an item for good; else puts it where it is tried again.

        Raises:
            UserError: if an actor has ended before it was ready, no machine was lost, and it is the second.
        """
        from ray.exceptions import ActorUnavailableError

        actor, task = self.calls.pop(reference)
        try:
            outcomes = find_outcomes(reference, task)
        except ActorUnavailableError:  # for a moment or for ever: Ray knows after some seconds
            time.sleep(POLL_S)
            self._call(actor, task)
            return
        has_ended = not outcomes or outcomes[0].result is None
        if has_ended:
            self._actors.pop(actor, None)
        if task.items:
            self._free.extend([] if has_ended else [actor])
            yield from sort_out(outcomes, task, waiting)
        elif outcomes:
            self._actors[actor] = frozenset([str(outcomes[0].result)])
            self._free.extend([actor] * ITEMS_AT_ONCE)
        elif outcomes is not None:
            self._count_failure()

    def _count_failure(self) -> None:
        self._num_failed += 1
        if self._num_failed >= MAX_ATTEMPTS:
            raise UserError(
                "two processes of the cluster were killed before they were ready (out of memory?): what was "
                "done is kept, go on with the same command on machines with more"
            )

    def dismiss(self) -> None:
        """Ends all processes, whatever they do."""
        import ray

        if ray.is_initialized():  # else `kill` would start another Ray
            for actor in self._actors:
                ray.kill(actor)
