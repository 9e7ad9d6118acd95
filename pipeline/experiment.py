"""A whole experiment: trains the folds of a run, here or on a cluster, then evaluates it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from data_prep.cache.folder import Cache
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.report import evaluate_and_report
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.progress import Reporter
from pipeline.training.cross_validate import cross_validate

if TYPE_CHECKING:
    from data_prep.parallel.ray_cluster import Cluster


def train_and_evaluate(
    recipe: Recipe,
    cache: Cache,
    run: Run,
    *,
    reporter: Reporter,
    folds: Sequence[int] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    cluster: "AbstractContextManager[Cluster | None] | None" = None,
    gpus_per_fold: float | None = None,
) -> Evaluation | None:
    """Trains all folds, or some, and evaluates the run once all are trained; goes on with what is there.

    Args:
        recipe: how to train.
        cache: of the train split.
        run: is made if absent; on a cluster, cache and run lie on storage that all machines share.
        reporter: shows the progress.
        folds: None trains all.
        group: the processes that train each fold together.
        cluster: is entered to train several folds at once; None, given or yielded, is this machine.
        gpus_per_fold: on a cluster; None is one where there are any.

    Returns:
        The evaluation; None while folds are still to be trained, and but in the main process.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
        Interrupted: after a signal; checkpoints are saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
    """
    with cluster or nullcontext() as connected:
        if connected is None:
            cross_validate(recipe, cache, run, reporter=reporter, folds=folds, group=group)
        else:
            from pipeline.training.ray_folds import cross_validate_on_ray  # noqa: PLC0415  an optional extra

            cross_validate_on_ray(
                connected, recipe, cache, run, reporter=reporter, folds=folds, gpus=gpus_per_fold
            )
    if not group.is_main or run.unfinished_folds():
        return None
    return evaluate_and_report(run, reporter=reporter)
