"""Items in processes of a Ray cluster that are kept for all of them, though nodes and processes end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.parallel import ray_cluster as cluster_module
from data_prep.parallel.executor import KILLED_TWICE, Outcome
from data_prep.parallel.ray_actors import ITEMS_AT_ONCE, map_in_actors
from data_prep.parallel.ray_cluster import Cluster, Needs, connect
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def connected(nodes: Nodes) -> Iterator[Cluster]:
    with connect(nodes.address) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes: Nodes, connected: Cluster) -> Cluster:
    """Two nodes with a CPU each."""
    nodes.have(2)
    return connected


@dataclass(frozen=True)
class Marking:
    """Makes what returns the process of a number; each start and each try leaves a mark.

    Attributes:
        num_tries: that must have been begun before any ends.
        deadly: ends its process.
    """

    folder: Path
    num_tries: int = 0
    deadly: int | None = None

    def __call__(self) -> Callable[[int], int]:
        (self.folder / f"start {os.getpid()}").touch()
        return self.work

    def work(self, number: int) -> int:
        with (self.folder / f"try {number}").open("a") as stream:
            stream.write("x")
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_until(lambda: count_tries(self.folder) >= self.num_tries)
        return os.getpid()


def count_tries(folder: Path) -> int:
    return sum(len(path.read_text()) for path in folder.glob("try *"))


def find_starts(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("start ")) for path in folder.glob("start *")}


def test_processes_are_kept_and_work_on_several_items_at_once(cluster: Cluster, tmp_path: Path) -> None:
    making = Marking(tmp_path, num_tries=2 * ITEMS_AT_ONCE)
    outcomes = list(map_in_actors(cluster, making, range(20), needs=Needs()))
    assert sorted(outcome.item for outcome in outcomes) == list(range(20))
    assert {outcome.result for outcome in outcomes} == find_starts(tmp_path)
    assert len(find_starts(tmp_path)) == 2


def test_what_was_in_a_process_that_dies_is_tried_twice(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS_TO_NOTICE_A_LOSS", 0.0)
    outcomes = list(map_in_actors(cluster, Marking(tmp_path, deadly=3), range(8), needs=Needs()))
    assert sorted(outcome.item for outcome in outcomes) == list(range(8))
    (lost,) = [outcome for outcome in outcomes if outcome.item == 3]
    assert (lost.result, lost.reason, lost.message) == (None, "killed", KILLED_TWICE)
    assert len((tmp_path / "try 3").read_text()) == 2
    assert max(len(path.read_text()) for path in tmp_path.glob("try *")) == 2


def test_a_lost_node_costs_time_and_no_try(
    nodes: Nodes, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes hold all items; one is lost, and a late one takes what it had, without a retry."""
    monkeypatch.setattr(cluster_module, "MAX_ATTEMPTS", 1)
    outcomes: list[Outcome[int, int]] = []
    making = Marking(tmp_path, num_tries=3 * ITEMS_AT_ONCE)
    items = range(2 * ITEMS_AT_ONCE)
    worker = threading.Thread(
        target=lambda: outcomes.extend(map_in_actors(cluster, making, items, needs=Needs()))
    )
    worker.start()
    wait_until(lambda: count_tries(tmp_path) == len(items))
    nodes.lose()
    nodes.have(2)
    worker.join(timeout=600)
    assert sorted(outcome.item for outcome in outcomes) == list(items)
    assert all(outcome.result in find_starts(tmp_path) for outcome in outcomes)
    assert len(find_starts(tmp_path)) == 3


def refuse() -> Callable[[int], int]:
    raise UserError("this machine is not to be had")


def refuse_three() -> Callable[[int], int]:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three is not to be had")
        return number

    return work


def end() -> Callable[[int], int]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_what_is_raised_there_is_raised_here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """And processes that never get ready are given up."""
    monkeypatch.setattr(cluster_module, "SECONDS_TO_NOTICE_A_LOSS", 0.0)
    for make, kind, sentence in [
        (refuse, UserError, "this machine is not to be had"),
        (refuse_three, ValueError, "three is not to be had"),
        (end, UserError, "killed before they were ready"),
    ]:
        with pytest.raises(kind, match=sentence):
            list(map_in_actors(cluster, make, range(6), needs=Needs()))


def test_room_is_counted_machine_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 15.0, "GPU": 2.0}, {"CPU": 20.0}, {}]
    monkeypatch.setattr(cluster_module, "_list_resources", lambda: machines)
    assert Cluster().cpus_per_gpu() == 4
    assert [Cluster().count_room(Needs(4, gpus)) for gpus in (1.0, 0.5, 0.0)] == [6, 7, 12]
