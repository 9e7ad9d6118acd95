"""The folds of a run on the machines of a Ray cluster, several at once. Knows no training loop and no ray.

A fold whose machine is lost goes on elsewhere from its checkpoint, so cache and run must lie on storage that
all machines share. Each computes with as many threads as this process would, and so to the same weights.
"""

import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from rich.console import Console

from data_prep.cache import Cache
from data_prep.cluster import Cluster, Needs
from data_prep.engine import Outcome
from data_prep.errors import FolderInUse, TrainingStopped, UserError
from data_prep.locks import STALE_S, require_unlocked
from pipeline.cross_validate import Plan, begin, train_fold
from pipeline.interrupt import Interrupted, StopRequest
from pipeline.progress import Reporter
from pipeline.run import Run
from pipeline.settings import Recipe

Result = TypeVar("Result")

SECONDS_TO_LET_GO = STALE_S + 60.0  # of the lock of a machine that is lost
SECONDS_BETWEEN_TRIES = 1.0


def spread_folds(
    cluster: Cluster,
    recipe: Recipe,
    cache: Cache,
    run: Run,
    *,
    reporter: Reporter,
    folds: Sequence[int] | None = None,
    gpus: float | None = None,
) -> None:
    """Trains as `cross_validate` does, to the same files, each fold where there is room for it.

    The folders have absolute paths. `gpus` are for each fold; None is one if the cluster has any.

    Raises:
        UserError: if these do not fit together, or a machine does not see cache or run.
        Interrupted: after a signal; each fold has saved a checkpoint.
        TrainingStopped: if a loss is not finite, no checkpoint can be read, or a fold's process dies twice.
    """
    recipe, needs = _choose(cluster, recipe, gpus)
    if needs.gpus and not cluster.count("GPU"):
        reporter.say("no machine of the cluster has a GPU: waiting for one to join")
    news = News(run.folder / f".news_{socket.gethostname()}_{os.getpid()}")
    with StopRequest() as stop, news.told(reporter):

        def on_wait() -> None:
            news.tell(reporter)
            stop.raise_if_made()

        spread = partial(cluster.map_whole, needs=needs, on_wait=on_wait)
        beginning = _Beginning(recipe, cache, run, news, torch.get_num_threads())
        plan = _take(*spread(beginning, [folds]))
        require_seen(run)
        for fold in plan.folds:
            require_unlocked(run.fold(fold).folder)
        training, waiting = _Training(plan, news, torch.get_num_threads()), plan.folds
        while waiting:  # a fold whose machine alone was told to stop goes on elsewhere
            waiting = [outcome.item for outcome in spread(training, waiting) if not _take(outcome)]


def _choose(cluster: Cluster, recipe: Recipe, gpus: float | None) -> tuple[Recipe, Needs]:
    """Returns the recipe for the kind of machine that is asked for, and what a fold needs of it."""
    if gpus is None:
        gpus = float(recipe.train.device != "cpu" and cluster.count("GPU") > 0)
    device = "cuda" if gpus else "cpu"
    if recipe.train.device not in {"auto", device}:
        raise UserError(
            f"train.device is {recipe.train.device}, which does not go with {gpus:g} GPUs for each fold: "
            "change train.device or --gpus-per-fold"
        )
    cpus = 1 + recipe.train.workers if gpus else torch.get_num_threads()
    largest = int(cluster.largest("CPU", "GPU" if gpus else "CPU"))
    train = recipe.train.model_copy(update={"device": device})
    return recipe.model_copy(update={"train": train}), Needs(min(cpus, largest or cpus), gpus)


def _take(outcome: Outcome[Any, Result]) -> Result:
    if outcome.result is None:
        what = f"fold {outcome.item}" if isinstance(outcome.item, int) else "the run's beginning"
        raise TrainingStopped(
            f"{what}: {outcome.message}; what was saved is kept, go on with the same command"
        )
    return outcome.result


def require_seen(run: Run) -> None:
    """Makes sure that this machine sees what another one has written.

    Raises:
        UserError: if not.
    """
    if not run.settings.exists():
        raise UserError(
            f"{run.folder} is not the same folder on all machines of the cluster: name one on storage that "
            "all of them share"
        )


class News:
    """Sentences from other machines, in files on the storage that all share.

    Not sent by way of Ray: once a machine is lost, those of some processes would never arrive. Where the
    storage fails, the training itself says so.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_told: dict[Path, int] = {}  # in bytes

    def collect(self, name: str) -> Reporter:
        """Returns a reporter that writes what is `name`'s."""
        file = cast("IO[str]", _Appending(self._folder / name))
        return Reporter(Console(file=file, force_terminal=False, soft_wrap=True))

    def tell(self, reporter: Reporter) -> None:
        """Shows what has come since the last time."""
        for path in sorted(self._folder.glob("*")):
            with suppress(OSError), path.open("rb") as stream:
                stream.seek(self._num_told.get(path, 0))
                for line in stream.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):  # the rest is still on its way
                        self._num_told[path] = self._num_told.get(path, 0) + len(line)
                        reporter.say(line.decode().rstrip("\n"))

    @contextmanager
    def told(self, reporter: Reporter) -> Iterator[None]:
        """Shows the last ones when the block ends, however it ends, and removes the files."""
        try:
            yield
        finally:
            self.tell(reporter)
            shutil.rmtree(self._folder, ignore_errors=True)


class _Appending:
    """A text stream whose file is closed after each sentence, which then is there for all machines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        pass


# On the cluster's machines


@dataclass(frozen=True)
class _Beginning:
    recipe: Recipe
    cache: Cache
    run: Run
    news: News
    threads: int

    def __call__(self, folds: Sequence[int] | None) -> Plan:
        torch.set_num_threads(self.threads)
        return begin(self.recipe, self.cache, self.run, reporter=self.news.collect("run"), folds=folds)


@dataclass(frozen=True)
class _Training:
    """Trains a fold; a signal, or Ray's stand-in for one, ends it with a checkpoint."""

    plan: Plan
    news: News
    threads: int

    def __call__(self, fold: int) -> bool:
        torch.set_num_threads(self.threads)
        require_seen(self.plan.run)
        deadline = time.monotonic() + SECONDS_TO_LET_GO
        with StopRequest() as stop:
            try:
                while not self._try(fold, stop, is_last=time.monotonic() > deadline):
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    stop.raise_if_made()
            except Interrupted:
                return False
        return True

    def _try(self, fold: int, stop: StopRequest, *, is_last: bool) -> bool:
        """Returns whether the fold could be held; a machine that is lost may hold it a while yet."""
        try:
            train_fold(self.plan, fold, stop=stop, reporter=self.news.collect(f"fold_{fold}"))
        except FolderInUse:
            if is_last:
                raise
            return False
        return True
