"""The options that say where a command's work runs: on this machine or on a Ray cluster."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_prep.errors import UserError
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.parallel.resource_limits import count_cores
from data_prep.storage.places import Place
from pipeline.cli.console import say

if TYPE_CHECKING:
    from data_prep.parallel.ray_cluster import Cluster

EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        metavar="local|ray",
        help="Where it runs: this machine, or a Ray cluster with storage that all share.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ray://HOST:PORT",
        help="With --engine ray: the cluster.",
        show_default="a Ray of its own on this machine",
    ),
]

GpusPerFold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="N",
        help="With --engine ray; 0.5 puts two folds on one, 0 all on CPUs.",
        show_default="1 where there are any",
    ),
]


def as_seen_elsewhere(place: Place) -> Place:
    """Returns the place by a name that does not depend on this machine's working folder."""
    return place.absolute() if isinstance(place, Path) else place


def refuse_workers_on_ray(workers: int | None, engine: str) -> None:
    """Refuses --workers where batches are predicted on a cluster.

    Raises:
        UserError: if it is given.
    """
    if engine == "ray" and workers is not None:
        raise UserError("--workers goes with --engine local: on a cluster each batch brings its own")


def refuse_spreading_with(
    engine: str, gpus_per_fold: float | None, others: Mapping[str, bool], *, spread: str
) -> None:
    """Refuses what does not go with folds on the machines of a cluster, or goes with these alone.

    Args:
        engine: as it is asked for.
        gpus_per_fold: as they are asked for.
        others: by its name, whether something is asked for that does not go with a cluster.
        spread: what a cluster spreads.

    Raises:
        UserError: naming those that contradict each other.
    """
    if engine != "ray":
        if gpus_per_fold is not None:
            raise UserError(
                "--gpus-per-fold goes with --engine ray: under torchrun each process has a GPU of its own"
            )
        return
    for what in (name for name, is_there in others.items() if is_there):
        raise UserError(f"--engine ray spreads {spread} and does not go with {what}: leave one out")


def choose_workers(workers: int | None, cluster: "Cluster | None") -> int:
    """Returns how many work at a time: as asked, else one per core here, or as a cluster has room."""
    if workers is not None:
        return workers
    return count_cores() if cluster is None else 0


def choose_executor(cluster: "Cluster | None", *, shared: Iterable[Place]) -> Executor:
    """Returns what works on many files; a cluster's machines must see those of `shared` that are paths."""
    if cluster is None:
        return map_unordered
    return partial(cluster.map_unordered, shared=[place for place in shared if isinstance(place, Path)])


@contextmanager
def open_cluster(engine: Literal["local", "ray"], address: str | None) -> Iterator["Cluster | None"]:
    """Yields the cluster that is asked for, or None for this machine.

    Raises:
        UserError: if Ray is not installed, or there is no such cluster.
    """
    if engine == "local":
        if address is not None:
            raise UserError(f"--address {address} goes with --engine ray: add that, or leave the address out")
        yield None
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError('--engine ray needs Ray, which is not installed: `pip install "mammo-vit[cluster]"`')
    from data_prep.parallel.ray_cluster import connect

    with connect(address) as cluster:
        if not cluster.count("CPU"):
            say("no machine of the cluster has a CPU for this: waiting for one to join")
        yield cluster
