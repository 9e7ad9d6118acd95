"""A whole experiment: the folds of a run are trained, here or on a cluster, evaluated and reported."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.cache.folder import Cache
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.bootstrap import NUM_REPLICATES
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.report import write_report
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
    cluster: "Cluster | None" = None,
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
        cluster: trains several folds at once; None is this machine.
        gpus_per_fold: on a cluster; None is one where there are any.

    Returns:
        The evaluation; None while folds are still to be trained, and but in the main process.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
        Interrupted: after a signal; checkpoints are saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
    """
    if cluster is None:
        cross_validate(recipe, cache, run, reporter=reporter, folds=folds, group=group)
    else:
        from pipeline.training.ray_folds import cross_validate_on_ray  # noqa: PLC0415  an optional extra

        cross_validate_on_ray(cluster, recipe, cache, run, reporter=reporter, folds=folds, gpus=gpus_per_fold)
    if not group.is_main or run.unfinished_folds():
        return None
    return evaluate_and_report(run, reporter=reporter, cache=cache)


def evaluate_and_report(run: Run, *, reporter: Reporter, cache: Cache | None = None) -> Evaluation:
    """Computes all figures of a finished run and writes tables and reports.

    Args:
        run: with all folds trained.
        reporter: shows the progress.
        cache: that the run was trained on; None takes the one that the run names, if it is still there.

    Raises:
        UserError: if a fold is missing, its predictions do not fit the run, or a file or the given cache is
            damaged.
    """
    if cache is not None:
        cache.read_manifest()  # a cache that is named is no longer optional
    reporter.say(f"figures and intervals from {NUM_REPLICATES:,} bootstrap replicates, then the report")
    evaluation = evaluate_run(run, cache)
    write_report(run, evaluation, reporter=reporter, cache=cache)
    return evaluation
