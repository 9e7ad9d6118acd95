"""A whole experiment: the folds of a run are trained, here or on a cluster, evaluated and reported.

An experiment may have repeats: whole runs of their own below the run's folder, with other seeds and splits.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.evaluation.artifacts import evaluate_run
from pipeline.evaluation.bootstrap import NUM_REPLICATES
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.reporting.report import write_report
from pipeline.runs.ancestry import belongs_to_one_split
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from pipeline.runtime.progress import Reporter
from pipeline.training.cross_validate import cross_validate, draw_folds
from pipeline.training.run_setup import take_inputs

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
    num_repeats: int = 1,
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
        num_repeats: cross-validations with other seeds and splits, the run itself included.

    Returns:
        The evaluation of the run; None while its folds are still to be trained, and but in the main process.

    Raises:
        UserError: if recipe, cache and run folder do not fit together, or folds cannot be made.
        Interrupted: after a signal; checkpoints are saved.
        TrainingStopped: if a loss is not finite or no checkpoint can be read.
    """
    recipes = [make_repeat(recipe, number) for number in range(num_repeats)]
    with group.main_process_first():
        if group.is_main:
            _require_repeatable(recipes, cache)
    for number, own_recipe in enumerate(recipes):
        repeat = run.repeat(number)
        if num_repeats > 1:
            reporter.say(f"repeat {number}, train.seed {own_recipe.train.seed}: {repeat.folder}")
        if cluster is None:
            cross_validate(own_recipe, cache, repeat, reporter=reporter, folds=folds, group=group)
        else:
            from pipeline.training.ray_folds import cross_validate_on_ray  # noqa: PLC0415  an optional extra

            cross_validate_on_ray(
                cluster, own_recipe, cache, repeat, reporter=reporter, folds=folds, gpus=gpus_per_fold
            )
        if group.is_main:
            take_inputs(repeat, own_recipe, reporter)
        if num_repeats > 1 and group.is_main:
            _evaluate_once(repeat, cache, reporter=reporter)
    if not group.is_main or run.unfinished_folds():
        return None
    return evaluate_and_report(run, reporter=reporter, cache=cache)


def make_repeat(recipe: Recipe, number: int) -> Recipe:
    """Returns the recipe with the `train.seed` of a repeat; that of repeat 0 is the recipe's own."""
    if number == 0:
        return recipe
    drawn = np.random.SeedSequence(recipe.train.seed, spawn_key=(number,)).generate_state(1)
    train = recipe.train.model_copy(update={"seed": int(drawn[0]) >> 1})  # a seed has 31 bits
    return recipe.model_copy(update={"train": train})


def _evaluate_once(run: Run, cache: Cache, *, reporter: Reporter) -> None:
    """Evaluates a run that has just been finished; the model card is the last file that this writes."""
    if not (run.unfinished_folds() or run.model_card.exists()):
        evaluate_and_report(run, reporter=reporter, cache=cache)


def _require_repeatable(recipes: Sequence[Recipe], cache: Cache) -> None:
    """Makes sure that no repeat fails after days, at the start of the next one.

    Raises:
        UserError: if first weights belong to one split, or a repeat's folds cannot be made.
    """
    first, *others = recipes
    if others and belongs_to_one_split(first.train.init):
        raise UserError(
            f"--repeats draws other splits, and train.init {first.train.init} belongs to one: its models "
            "have learned from patients whom a repeat holds out; leave --repeats out, or take other weights"
        )
    for recipe in others:
        draw_folds(recipe, cache)


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
    run.require_finished()
    reporter.say(f"figures and intervals from {NUM_REPLICATES:,} bootstrap replicates, then the report")
    evaluation = evaluate_run(run, cache)
    write_report(run, evaluation, reporter=reporter, cache=cache)
    return evaluation
