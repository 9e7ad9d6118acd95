"""A Ray cluster of small nodes on this machine, with a token and without usage statistics or a dashboard.

Skips the test where Ray is not installed.
"""

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NODE = {"object_store_memory": 80_000_000, "include_dashboard": False}
WATCH = {"health_check_period_ms": 500}  # five of them for a dead node; a slow one has ten seconds for each


class Nodes:
    """The cluster: a head without CPUs, and nodes that come and go."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415  ray reads the environment when it is imported

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "temp_dir": folder, "_system_config": WATCH, **NODE},
        )
        self._nodes: list[Any] = []
        self.address: str = self._cluster.address

    def add(self, cpus: int = 1) -> None:
        """Starts a node."""
        self._nodes.append(self._cluster.add_node(num_cpus=cpus, **NODE))

    @contextmanager
    def joined(self, *, cpus: int, gpus: int) -> Iterator[None]:
        """Has a node more, with GPUs that Ray alone believes in, for as long as the block."""
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, **NODE)
        try:
            yield
        finally:
            self._cluster.remove_node(node, allow_graceful=False)

    def lose(self) -> None:
        """Kills the oldest node and all that runs on it, as a power cut would."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def have(self, count: int) -> None:
        """Starts nodes until there are so many."""
        while len(self._nodes) < count:
            self.add()

    def end(self) -> None:
        """Ends all of them."""
        self._cluster.shutdown()


@contextmanager
def start_nodes() -> Iterator[Nodes]:
    """Yields a cluster with two nodes; nothing of it is left after the block."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray, the extra `cluster`, is not installed")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets must be short
    try:
        nodes = _start(folder)
        try:
            yield nodes
        finally:
            nodes.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str) -> Nodes:
    """Starts a head and two nodes; tries again where Ray gives up, after 30 s on a busy machine."""
    # Ray notes its newest cluster there, and without a first `ray.init` fails for want of the folder.
    Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray").mkdir(exist_ok=True)
    problems = []
    for _ in range(2):
        try:
            nodes = Nodes(folder)
        except FileNotFoundError:
            raise  # no matter of time
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
            continue
        try:
            nodes.have(2)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
            nodes.end()
            continue
        return nodes
    pytest.skip(f"Ray has not started, twice ({'; '.join(problems)})")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits for something that must happen, however busy the machine is."""
    deadline = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
