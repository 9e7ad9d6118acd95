"""The whole pipeline on synthetic mammograms: no download, no GPU, a few minutes."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.cache import Cache, CacheSettings
from data_prep.errors import UserError
from data_prep.exams import read_exams, require_images
from data_prep.machine import count_cores
from data_prep.phantom_data import write_phantoms
from data_prep.prepare import prepare
from pipeline.cross_validate import cross_validate
from pipeline.evaluate import evaluate_run
from pipeline.evaluation import Evaluation
from pipeline.inference import predict_folder
from pipeline.progress import Reporter
from pipeline.report import write_report
from pipeline.run import Run
from pipeline.settings import AugmentSettings, ModelSettings, Recipe, TrainSettings
from pipeline.submission import write_submission

NUM_PATIENTS = 100


def make_recipe(seed: int) -> Recipe:
    """Returns the demo's recipe: narrow and shallow, but 512 px and 1,025 tokens like the real ones."""
    return Recipe(
        model=ModelSettings(width=64, depth=4, num_heads=4),
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
    cache = _prepare(data, Cache(folder / "cache"), recipe, reporter)
    cross_validate(recipe, cache, run, reporter=reporter)
    evaluation = evaluate_run(run)
    write_report(run, evaluation, reporter=reporter)
    predictions = predict_folder(run, data, workers=0, reporter=reporter)
    write_submission(
        predictions.breasts(),
        run.submission,
        required_ids=predictions.required_ids,
        threshold=evaluation.threshold,
    )
    return DemoResult(run, evaluation)


def _prepare(data: Path, cache: Cache, recipe: Recipe, reporter: Reporter) -> Cache:
    located = require_images(read_exams(data, "train"), data, "train")
    with reporter.track("prepare", len(located.exams)) as advance:
        summary = prepare(
            located.exams,
            located.paths,
            cache,
            CacheSettings(split="train", prepare=recipe.prepare),
            workers=count_cores(),
            on_image=lambda is_failure: advance(),  # noqa: ARG005
        )
    if summary.num_failed:
        raise UserError(f"{summary.num_failed} phantoms could not be prepared: see {cache.failures_path}")
    return cache
