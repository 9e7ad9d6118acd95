"""The folds of a run on the machines of a Ray cluster, several at once.

A fold whose machine is lost goes on elsewhere from its checkpoint, so cache and run must lie on storage that
all machines share. Each computes with as many threads as this process would, and so to the same weights. What
it says comes through a file there: of Ray's messages some would never arrive once a machine is lost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Generic, Protocol, TypeVar, cast

import torch
from rich.console import Console

from data_prep.cache.folder import Cache
from data_prep.errors import FolderInUse, TrainingStopped, UserError
from data_prep.parallel.executor import Outcome
from data_prep.parallel.ray_cluster import Cluster, Needs
from data_prep.storage.atomic import SharedLog
from data_prep.storage.locks import STALE_S, require_unlocked
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run, RunFolder, TrainingFolder
from pipeline.runtime.distributed import SINGLE_PROCESS
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import Interrupted, StopRequest
from pipeline.runtime.workers import MOST_BESIDE_A_GPU
from pipeline.training.cross_validate import Plan, begin, say_who_takes_part
from pipeline.training.run_setup import say_if_split_otherwise, say_what_follows, with_absolute_init

Result = TypeVar("Result")
Begun = TypeVar("Begun", bound="BegunRun")

SECONDS_TO_LET_GO = STALE_S + 60.0  # of the lock of a machine that is lost
SECONDS_BETWEEN_TRIES = 1.0


class BegunRun(Protocol):
    """A run that has begun, whose folds machines train one by one."""

    @property
    def recipe(self) -> Recipe:
        """With device and precision resolved."""

    @property
    def run(self) -> RunFolder:
        """On storage that all machines share."""

    @property
    def folds(self) -> Sequence[Any]:
        """The numbers of those to train."""

    def training(self, fold: Any) -> TrainingFolder:
        """Returns what a fold's training leaves."""

    def train(self, fold: Any, *, stop: StopRequest, reporter: Reporter) -> None:
        """Trains a fold, or goes on with it."""


def cross_validate_on_ray(
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

    Raises:
        UserError: as `train_on_ray` does, or if recipe, cache and run do not fit together.
        Interrupted: after a signal; each fold has saved a checkpoint.
        TrainingStopped: if a loss is not finite, no checkpoint can be read, or a fold's process dies twice.
    """
    # Machines have other working folders.
    cache, run = Cache(cache.folder.absolute()), Run(run.folder.absolute())

    def announce(plan: Plan) -> None:
        say_who_takes_part(cache, plan.fold_table, reporter)

    begin_there = partial(begin, cache=cache, run=run, folds=folds)
    train_on_ray(cluster, begin_there, recipe, run, reporter=reporter, gpus=gpus, announce=announce)


def train_on_ray(
    cluster: Cluster,
    begin_there: Callable[[Recipe], Begun],
    recipe: Recipe,
    run: RunFolder,
    *,
    reporter: Reporter,
    gpus: float | None,
    announce: Callable[[Begun], None] = lambda _plan: None,
) -> Begun:
    """Begins a run on one machine of a cluster and trains its folds on all of them.

    Args:
        cluster: with the machines.
        begin_there: makes the run folder, or makes sure that the same run goes on.
        recipe: as it was read.
        run: by an absolute path.
        reporter: shows what the folds say.
        gpus: for each fold; None is one if the cluster has any.
        announce: says what is to be known before the first fold.

    Raises:
        UserError: if the recipe's device does not fit `gpus`, or a machine does not see what it must.
        Interrupted: after a signal; each fold has saved a checkpoint.
        TrainingStopped: if a loss is not finite, no checkpoint can be read, or a fold's process dies twice.
    """
    recipe, needs = _choose(cluster, with_absolute_init(recipe), gpus)
    if needs.gpus and not cluster.count("GPU"):
        reporter.say("no machine of the cluster has a GPU: waiting for one to join")
    with StopRequest() as stop:
        beginning = _Beginning(begin_there, torch.get_num_threads())
        plan = _take(*cluster.map_whole(beginning, [recipe], needs=needs, on_wait=stop.raise_if_made))
        require_seen(run)
        say_if_split_otherwise(run, plan.recipe, SINGLE_PROCESS, reporter)
        say_what_follows(recipe, plan.recipe, reporter)
        announce(plan)
        for fold in plan.folds:
            require_unlocked(plan.training(fold).folder)
        logs = [SharedLog(plan.training(fold).log) for fold in plan.folds]

        def on_wait() -> None:
            _tell(logs, reporter)
            stop.raise_if_made()

        training, waiting = _Training(plan, torch.get_num_threads()), plan.folds
        try:
            while waiting:  # a fold whose machine alone was told to stop goes on elsewhere
                outcomes = cluster.map_whole(training, waiting, needs=needs, on_wait=on_wait)
                waiting = [outcome.item for outcome in outcomes if not _take(outcome)]
        finally:
            _tell(logs, reporter)
    return plan


def _tell(logs: Sequence[SharedLog], reporter: Reporter) -> None:
    for log in logs:
        for sentence in log.read():
            reporter.say(sentence)


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
    train, cpus = recipe.train.model_copy(update={"device": device}), torch.get_num_threads()
    largest = int(cluster.largest("CPU", "GPU" if gpus else "CPU"))
    if gpus:
        num_folds = max(1, int(cluster.largest("GPU", "GPU") / gpus))  # that share a machine's CPUs
        share = min(1 + MOST_BESIDE_A_GPU, max(1, largest // num_folds)) - 1
        num_workers: int = share if isinstance(train.workers, str) else train.workers
        train, cpus = train.model_copy(update={"workers": num_workers}), 1 + num_workers
    return recipe.model_copy(update={"train": train}), Needs(min(cpus, largest or cpus), gpus)


def _take(outcome: Outcome[Any, Result]) -> Result:
    if outcome.result is None:
        what = f"fold {outcome.item}" if isinstance(outcome.item, int) else "the run's beginning"
        raise TrainingStopped(
            f"{what}: {outcome.message}; what was saved is kept, go on with the same command"
        )
    return outcome.result


def require_seen(run: RunFolder) -> None:
    """Makes sure that this machine sees what another one has written.

    Raises:
        UserError: if not.
    """
    if not run.settings.exists():
        raise UserError(
            f"{run.folder} is not the same folder on all machines of the cluster: name one on storage that "
            "all of them share"
        )


# On the cluster's machines


@dataclass(frozen=True)
class _Beginning(Generic[Begun]):
    begin: Callable[[Recipe], Begun]
    threads: int

    def __call__(self, recipe: Recipe) -> Begun:
        torch.set_num_threads(self.threads)
        return self.begin(recipe)


@dataclass(frozen=True)
class _Training:
    """Trains a fold; a signal, or Ray's stand-in for one, ends it with a checkpoint."""

    plan: BegunRun
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
        file = cast("IO[str]", SharedLog(self.plan.training(fold).log))
        reporter = Reporter(Console(file=file, force_terminal=False, soft_wrap=True))
        try:
            self.plan.train(fold, stop=stop, reporter=reporter)
        except FolderInUse:
            if is_last:
                raise
            return False
        return True
