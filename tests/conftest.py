"""Fixtures that more than one test module needs."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.object_store import Store
    from tests.ray_nodes import Nodes

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process per core, so one thread per process
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",  # else Ray's processes starve beside other work
}  # ray reads these once, when it is imported
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real files, named by MAMMO_REAL_DATA; tests that need it skip where it is absent."""
    folder = os.environ.get("MAMMO_REAL_DATA")
    if not folder:
        pytest.skip("MAMMO_REAL_DATA does not name the folder of real mammograms")
    if not Path(folder).is_dir():
        pytest.fail(f"MAMMO_REAL_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def object_store() -> "Iterator[Store]":
    """One store for all tests of a process, as it takes its time to start."""
    from tests.object_store import serve  # noqa: PLC0415  moto takes a second to import

    with serve() as store:
        yield store


@pytest.fixture
def store(object_store: "Store", monkeypatch: pytest.MonkeyPatch) -> "Store":
    """An empty store that behaves; who asks it again does so without a pause."""
    from tests.object_store import point_to  # noqa: PLC0415

    object_store.clear()
    point_to(object_store, monkeypatch)
    monkeypatch.setattr("data_prep.storage.object_store.FIRST_WAIT_S", 0.0)
    return object_store


@pytest.fixture(scope="session")
def nodes() -> "Iterator[Nodes]":
    """A Ray cluster whose nodes come and go; a test that needs two asks for them."""
    from tests.ray_nodes import start_nodes  # noqa: PLC0415  ray reads the environment when it is imported

    with start_nodes() as nodes:
        yield nodes


LONGEST = (
    "test_ray_",
    "test_demo",
    "test_surroundings",
    "test_documents",
    "test_kaggle_",
    "test_kills",
    "test_planted",
)
"""Modules that begin before all others."""
APART = ("test_distributed", "test_documents", "test_train_killed", "test_vit")
"""Modules whose tests are long and share little, so that each goes wherever there is time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts the longest tests first, so that the other processes have work for as long as those take."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> tuple[int, bool]:
    is_slow = item.get_closest_marker("slow") is not None
    places = [place for place, name in enumerate(LONGEST) if is_slow and item.path.name.startswith(name)]
    return min(places, default=len(LONGEST)), not is_slow


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a module to one process, so that it sets up once what they share, and all of Ray's to one."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  tests run without xdist too

    class Schedule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            if Path(module).name.startswith("test_ray_") or nodeid.endswith(": Ray]"):
                return "ray"
            return nodeid if Path(module).stem in APART else module

    return Schedule(config, log) if config.getvalue("dist") == "loadscope" else None
