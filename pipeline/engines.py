"""Where a command's work runs: on this machine or on a Ray cluster. Imports ray in the second case alone."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_prep.errors import UserError
from data_prep.storage import Place
from pipeline.terminal import say

if TYPE_CHECKING:
    from data_prep.cluster import Cluster

EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine", help="Where it runs: this machine, or a Ray cluster with storage that all share."
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


def as_seen_elsewhere(place: Place) -> Place:
    """Returns the place by a name that does not depend on this machine's working folder."""
    return place.absolute() if isinstance(place, Path) else place


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
    from data_prep.cluster import connect  # noqa: PLC0415  not everyone has installed it

    with connect(address) as cluster:
        if not cluster.count("CPU"):
            say("no machine of the cluster has a CPU for this: waiting for one to join")
        yield cluster
