"""Whether whole breasts are judged better than the mean of their images: on phantoms made for that.

    python tests/benchmarks/bench_breasts.py --kind "one view" --seeds 0 1 2

trains the same tiny model on single images, on breasts and on exams, and prints a line for each seed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from pipeline.evaluation.aggregate import to_breasts
from pipeline.evaluation.compare import compare
from pipeline.evaluation.estimates import measure_levels
from pipeline.evaluation.oof import collect_oof
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import IMAGE_PROBABILITY, Run
from pipeline.runtime.progress import Reporter
from pipeline.training.cross_validate import cross_validate
from tests.breast_phantoms import write_breast_phantoms
from tests.pipeline.tiny import quiet

SETTINGS = {
    "prepare.side": "48",
    "model.image_size": "48",
    "model.patch_size": "8",
    "model.width": "48",
    "model.depth": "3",
    "model.num_heads": "4",
    "model.fusion_patches": "8",
    "augment.coarse_dropout": "0",
    "augment.affine": "0",
    "augment.tone": "0",
    "train.num_folds": "2",
    "train.batch_size": "32",
    "train.positive_share": "0.3",
    "train.learning_rate": "2e-3",
    "train.ema_decay": "0.99",
    "train.precision": "float32",
    "train.device": "cpu",
    "train.workers": "0",
}


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["one view", "one view alone", "asymmetry"], default="one view")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--fusions", nargs="+", default=["none", "views", "exam"])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            measure(Path(folder) / str(seed), seed, options, quiet())


def measure(folder: Path, seed: int, options: argparse.Namespace, reporter: Reporter) -> None:
    """Trains each kind of model on the phantoms of one seed; prints their AUCs and paired differences."""
    cache = write_breast_phantoms(
        folder / "cache", kind=options.kind, num_patients=options.patients, side=48, seed=seed
    )
    tables = {}
    for fusion in options.fusions:
        values = SETTINGS | {"train.seed": seed, "train.epochs": options.epochs, "model.fusion": fusion}
        # A row is a breast: half as many images in a batch of as many rows.
        values |= {"train.batch_size": 16} if fusion != "none" else {}
        recipe = load_recipe(
            None, [*(f"{name}={value}" for name, value in values.items()), *options.overrides]
        )
        began, run = time.perf_counter(), Run(folder / fusion)
        cross_validate(recipe, cache, run, reporter=reporter)
        tables[fusion] = oof = collect_oof(run)
        of_breasts, of_images = (each.figures["auc"] for each in measure_levels(oof))
        alone = ""
        if IMAGE_PROBABILITY in oof:
            views = to_breasts(oof.assign(probability=oof[IMAGE_PROBABILITY]))
            alone = f", mean of its images' heads {measure_levels(views)[0].figures['auc']:.3f}"
        seconds = time.perf_counter() - began
        print(
            f"{options.kind}, seed {seed}, {fusion}: breasts {of_breasts:.3f}{alone}, "
            f"images {of_images:.3f}, {seconds:.0f} s",
            flush=True,
        )
    for difference in compare(tables) if len(tables) > 1 else []:
        if difference.figure == "auc":
            low, high = (difference.interval.low, difference.interval.high) if difference.interval else (0, 0)
            print(f"  {difference.run} - {difference.reference}: {difference.difference:+.3f}", end=" ")
            print(f"({low:+.3f} to {high:+.3f})", flush=True)


if __name__ == "__main__":
    main()
