"""The executor on a Ray cluster: what nodes, processes and files do to it, and that it equals the local."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_prep.parallel import executor
from data_prep.parallel import ray_cluster as cluster_module
from data_prep.parallel.executor import Outcome, map_unordered
from data_prep.parallel.ray_cluster import Cluster, connect
from tests import forked
from tests.campaigns.load import find_left
from tests.data_prep.data_folder import make_data, snapshot, spoil
from tests.data_prep.parallel.ray_items import HangAtOne, Misbehave, Wait, fail_at_three, surroundings
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def connected(nodes: Nodes) -> Iterator[Cluster]:
    with connect(nodes.address) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes: Nodes, connected: Cluster) -> Cluster:
    """Two nodes with a CPU each; the processes of one test serve the next."""
    nodes.have(2)
    return connected


def test_what_still_works_ends_with_the_connection(nodes: Nodes, tmp_path: Path) -> None:
    """The first test, since a process has one connection at a time, and the others share theirs."""
    nodes.have(2)
    with connect(nodes.address) as cluster:
        outcomes = cluster.map_unordered(HangAtOne(tmp_path), range(2), workers=0)
        assert next(outcomes).item == 0
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        outcomes.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(is_running(path.name) for path in tmp_path.iterdir()))


def is_running(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path("/proc", pid, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_poison_is_tried_twice_and_costs_no_other_item(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several items go in one task; what the local executor knows too is told in the same words."""
    monkeypatch.setattr(executor, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(cluster_module, "SECONDS_TO_NOTICE_A_LOSS", 0.0)
    outcomes = {o.item: o for o in cluster.map_unordered(Misbehave(tmp_path), range(32), workers=2)}
    assert sorted(outcomes) == list(range(32))
    lost = {item: (o.reason, o.message) for item, o in outcomes.items() if o.result is None}
    here = tmp_path / "here"
    here.mkdir()
    local = list(map_unordered(Misbehave(here), [3, 5, 7], workers=3))
    assert lost.pop(11) == lost[5]
    assert lost == {o.item: (o.reason, o.message) for o in local}
    tries = {number: len((tmp_path / str(number)).read_text()) for number in range(32)}
    assert {number: tries[number] for number in (3, 5, 7, 11)} == dict.fromkeys((3, 5, 7, 11), 2)
    assert max(tries.values()) == 2


def test_a_lost_node_costs_time_and_no_try(
    nodes: Nodes, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes hold an item each; one is lost, and a late one takes what it had, without a retry."""
    monkeypatch.setattr(cluster_module, "MAX_ATTEMPTS", 1)
    outcomes: list[Outcome[int, int]] = []
    work = partial(cluster.map_unordered, Wait(tmp_path), range(2), workers=0)
    worker = threading.Thread(target=lambda: outcomes.extend(work()))
    worker.start()
    wait_until(lambda: count_tries(tmp_path) == 2)
    nodes.lose()
    nodes.have(2)
    wait_until(lambda: count_tries(tmp_path) == 3)
    (tmp_path / "go").touch()
    worker.join(timeout=600)
    assert sorted((o.item, o.result) for o in outcomes) == [(0, 0), (1, 1)]


def count_tries(folder: Path) -> int:
    return sum(len(path.read_text()) for path in folder.iterdir())


def test_an_exception_of_the_function_is_raised_here(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="three is not to be had"):
        list(cluster.map_unordered(fail_at_three, range(6), workers=0))


def test_items_work_in_single_threaded_processes_that_know_no_ray(cluster: Cluster) -> None:
    (outcome,) = cluster.map_unordered(surroundings, [1], workers=0)
    assert outcome.result == {
        "threads": ["1"] * 4,
        "ray": False,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"],
        "RAY_USAGE_STATS_ENABLED": "0",
    }


# The command

OPTIONS = ["--set", "prepare.side=32", "--allow-failures"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some images, one of them spoilt."""
    folder = make_data(tmp_path_factory.mktemp("cluster") / "data", 120)
    spoil(folder, "97")
    return folder


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local executor leaves."""
    cache = tmp_path_factory.mktemp("local") / "cache"
    return finish(start(data, cache, "--workers", "1"), cache)


def start(data: Path, cache: Path, *options: str) -> forked.Forked:
    """Starts the command in a session of its own."""
    command = ("-m", "pipeline", "prepare", str(data), "--cache", str(cache), *OPTIONS)
    return forked.Forked(*command, *options, new_session=True)


def finish(run: forked.Forked, cache: Path) -> dict[str, bytes]:
    """Waits for the end and returns what is left, the page apart, which shows times."""
    ended = forked.finish(run)
    assert ended.returncode == 0, ended.stderr
    assert "failed: 1 not_dicom" in ended.stderr
    return snapshot(cache)


def test_prepare_loses_a_node_is_stopped_and_goes_on_to_the_same_bytes(
    nodes: Nodes, data: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    nodes.have(2)
    cache = tmp_path / "cache"
    options = ("--engine", "ray", "--address", nodes.address)

    def wait_for_images(count: int) -> None:
        wait_until(lambda: run.poll() is not None or len(list(cache.rglob("[!.]*.png"))) >= count)
        assert run.poll() is None, run.communicate()

    with start(data, cache, *options) as run:
        wait_for_images(8)
        nodes.lose()
        wait_for_images(40)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=600)
    assert run.returncode == 143, errors
    assert "what was done is kept, go on with: mammo prepare" in errors
    assert finish(start(data, cache, *options), cache) == expected


def test_without_an_address_ray_runs_here_for_as_long_as_the_command(
    data: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run = start(data, cache, "--engine", "ray", "--workers", "1")
    assert finish(run, cache) == expected
    assert find_left(run.pid) == []


LISTENERS = """
import contextlib
import psutil
from data_prep.parallel.ray_cluster import connect

with connect(None):
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    print(connection.laddr.ip.removeprefix("::ffff:"))
"""


def test_ray_on_this_machine_alone_listens_to_nobody_else() -> None:
    pytest.importorskip("psutil")
    ended = forked.run("-c", LISTENERS)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) > 3
    assert set(ended.stdout.split()) == {"127.0.0.1"}


def test_a_wrong_token_is_one_sentence(
    nodes: Nodes, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "1")  # Ray's own tries, a second each; else 20
    with start(data, tmp_path / "cache", "--engine", "ray", "--address", nodes.address) as run:
        _, errors = run.communicate(timeout=600)
    assert run.returncode == 2, errors
    assert "RAY_AUTH_TOKEN" in errors
    assert "Traceback" not in errors
