"""The whole pipeline on synthetic mammograms: no download, no GPU, a few minutes."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.cache.build import prepare_dataset
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.errors import UserError
from data_prep.parallel.resource_limits import count_cores
from data_prep.phantom.dataset import write_phantoms
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.experiment import train_and_evaluate
from pipeline.inference.submission import predict_submission
from pipeline.runs.augment_settings import AugmentSettings
from pipeline.runs.recipe import ModelSettings, Recipe, TrainSettings
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

NUM_PATIENTS = 100


def make_recipe(seed: int) -> Recipe:
    """Returns the demo's recipe: narrow and shallow, but 512 px in patches of 16 like the real ones."""
    return Recipe(
        model=ModelSettings(width=64, depth=4, num_heads=4, kept_patches=383),
        augment=AugmentSettings(affine=0.0, tone=0.0, coarse_dropout=0.0),
        train=TrainSettings(
            seed=seed,
            num_folds=2,
            epochs=3,
            batch_size=8,  # many small steps: what a few minutes allow
            positive_share=0.5,
            learning_rate=1e-3,
            warmup_epochs=0.5,
            workers=0,
        ),
    )


@dataclass(frozen=True)
class DemoResult:
    """Where the demo left its run, and the figures."""

    run: Run
    evaluation: Evaluation


def run_demo(folder: Path, *, seed: int, num_patients: int, recipe: Recipe, reporter: Reporter) -> DemoResult:
    """Makes phantoms, prepares them, trains two folds, evaluates and writes report and submission.

    Each step is left alone where it was done before, so that a demo that was stopped goes on.
    """
    data, run = folder / "data", Run(folder)
    if not (data / "sample_submission.csv").exists():
        with reporter.track("phantoms", num_patients, "patients") as advance:
            write_phantoms(
                data, num_patients=num_patients, seed=seed, workers=count_cores(), progress=advance
            )
    cache, settings = Cache(folder / "cache"), CacheSettings(split="train", prepare=recipe.prepare)
    summary = prepare_dataset(data, cache, settings, workers=count_cores(), track=reporter.track)
    if summary.num_failed:
        raise UserError(f"{summary.num_failed} phantoms could not be prepared: see {cache.failures_path}")
    evaluation = train_and_evaluate(recipe, cache, run, reporter=reporter)
    assert evaluation is not None, "all folds are trained"
    predict_submission([run], data, run.submission, workers=0, reporter=reporter)
    return DemoResult(run, evaluation)
