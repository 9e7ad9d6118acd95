"""Whether pretraining without labels is worth its time: an encoder with it and one without, at equal FLOPs.

    python tests/benchmarks/bench_pretrain.py phantoms --seeds 0 1 2 --out WORK
    python tests/benchmarks/bench_pretrain.py fashion --images IDX_FOLDER --seeds 0 1 2 --out WORK

`phantoms` are labelled women, and other women without labels for the encoder to learn from. `fashion` is
Fashion-MNIST from the four files that Debian's `dataset-fashion-mnist` installs; every tenth training image
has a label. What is finished in WORK is not done again.
"""

import argparse
import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.cache.build import prepare_dataset
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.phantom.dataset import write_phantoms
from data_prep.preprocessing.settings import PrepareSettings
from pipeline.classification.class_run import ClassRun
from pipeline.classification.image_folder import TEST, TRAIN
from pipeline.classification.metrics import evaluate_classes
from pipeline.classification.train_classes import train_classes
from pipeline.evaluation.compare import compare
from pipeline.evaluation.estimates import measure_levels
from pipeline.evaluation.oof import collect_oof
from pipeline.pretraining.images import Sources
from pipeline.pretraining.masked_autoencoder import count_visible
from pipeline.pretraining.pretrain import pretrain
from pipeline.runs.pretrain_run import PretrainRun
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from pipeline.training.throughput import count_flops
from tests.pipeline.tiny import quiet

COMMON = {
    "model.pool": "gap",
    "augment.coarse_dropout": 0,
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.ema_decay": 0.99,
    "train.device": "cpu",
    "train.workers": 0,
    "pretrain.decoder_width": 64,
    "pretrain.decoder_depth": 1,
}
PHANTOMS = COMMON | {
    "prepare.side": 128,
    "model.patch_size": 8,
    "model.width": 96,
    "model.depth": 6,
    "model.num_heads": 3,
    "model.kept_patches": 191,
    "augment.affine": 0,
    "augment.tone": 0,
    "train.num_folds": 2,
    "train.positive_share": 0.3,
}
FASHION = COMMON | {
    "model.image_size": 28,
    "model.patch_size": 4,
    "model.width": 96,
    "model.depth": 6,
    "model.num_heads": 3,
    "model.num_classes": 10,
    "augment.affine": 0,
    "augment.tone": 0,
    "augment.vertical_flip": 0,
    "augment.horizontal_flip": 0.5,
}
NUM_LABELLED = {TRAIN: 6_000, TEST: 4_000}
"""Images of Fashion-MNIST that count as labelled, and of the 10,000 tests, with which each epoch ends."""
FOR_PRETRAINING = {"train.positive_share": 0.125, "model.num_classes": 1}


@dataclass(frozen=True)
class Subject:
    """What is learned.

    Attributes:
        settings: of all trainings.
        num_labelled: images that a training goes through in an epoch.
        num_unlabelled: the same of a pretraining.
        train: trains by a recipe into a folder and returns the figure that counts.
        pretrain: makes the encoder that `train.init` is to name.
    """

    settings: dict
    num_labelled: int
    num_unlabelled: int
    train: Callable[[Recipe, Path], float]
    pretrain: Callable[[Recipe, Path], None]


def main() -> None:
    """Trains and prints a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=["phantoms", "fashion"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--unlabelled-patients", type=int, default=300)
    parser.add_argument("--pretrain-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        folder = options.out / options.subject / str(seed)
        if options.subject == "phantoms":
            subject = make_phantoms(folder, seed, options.patients, options.unlabelled_patients)
        else:
            subject = make_fashion(folder, options.images, seed)
        measure(subject, folder, seed, options)


def measure(subject: Subject, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Trains with and without pretraining, and without for as many epochs as cost the same."""

    def make_recipe(**changes: object) -> Recipe:
        values = subject.settings | {"train.seed": seed} | changes
        return load_recipe(None, [*(f"{name}={value}" for name, value in values.items()), *options.overrides])

    encoders, epochs = folder / "encoders", options.epochs
    settings = {name: value for name, value in FOR_PRETRAINING.items() if name in subject.settings}
    alone = make_recipe(**{"train.epochs": epochs})
    before = make_recipe(**settings, **{"train.epochs": options.pretrain_epochs})
    cost = count_pretraining_flops(before) * subject.num_unlabelled * options.pretrain_epochs
    equal = epochs + round(cost / (count_flops(alone.model) * subject.num_labelled))
    began = time.perf_counter()
    subject.pretrain(before, encoders)
    print(f"{options.subject}, seed {seed}: pretrained in {time.perf_counter() - began:.0f} s", flush=True)
    for name, changes in {
        "after pretraining": {"train.epochs": epochs, "train.init": encoders},
        "from nothing": {"train.epochs": epochs},
        "from nothing, equal FLOPs": {"train.epochs": equal},
    }.items():
        began = time.perf_counter()
        figure = subject.train(make_recipe(**changes), folder / name.replace(",", "").replace(" ", "_"))
        seconds = time.perf_counter() - began
        print(f"  {name}: {changes['train.epochs']} epochs, {figure:.4f}, {seconds:.0f} s", flush=True)
    if options.subject == "phantoms":
        print_differences(folder)


def count_pretraining_flops(recipe: Recipe) -> float:
    """Returns the operations of a pretraining step per image, of encoder and decoder."""
    model, settings = recipe.model, recipe.pretrain
    num_shown = torch.tensor(model.num_tokens - model.num_prefix_tokens)
    visible = model.model_copy(update={"kept_patches": int(count_visible(num_shown, settings.visible))})
    width, depth = settings.decoder_width, settings.decoder_depth
    decoder = model.model_copy(update={"width": width, "depth": depth})
    return count_flops(visible) + count_flops(decoder)


def print_differences(folder: Path) -> None:
    """Prints what pretraining gains over each training from nothing."""
    names = ("after_pretraining", "from_nothing", "from_nothing_equal_FLOPs")
    tables = {name: collect_oof(Run(folder / name)) for name in names}
    for reference in names[1:]:
        for found in compare({reference: tables[reference], names[0]: tables[names[0]]}):
            if found.figure == "auc" and found.interval:
                low, high = found.interval.low, found.interval.high
                print(
                    f"  gain over {reference}: {found.difference:+.3f} ({low:+.3f} to {high:+.3f})",
                    flush=True,
                )


# Phantoms


def make_phantoms(folder: Path, seed: int, num_patients: int, num_unlabelled: int) -> Subject:
    """Prepares women with labels, and others without, whose patients are not among them."""
    side = PHANTOMS["prepare.side"]
    labelled = prepare_phantoms(folder / "labelled", side, seed, num_patients)
    unlabelled = prepare_phantoms(folder / "unlabelled", side, 1_000 + seed, num_unlabelled)

    def train(recipe: Recipe, run: Path) -> float:
        cross_validate(recipe, labelled, Run(run), reporter=quiet())
        return measure_levels(collect_oof(Run(run)))[0].figures["auc"]

    def pretrain_one(recipe: Recipe, run: Path) -> None:
        pretrain(recipe, Sources([unlabelled], None, recipe.model), PretrainRun(run), reporter=quiet())

    # Two folds train on half of the images each.
    num_images = len(labelled.read_manifest())
    return Subject(PHANTOMS, num_images, len(unlabelled.read_manifest()), train, pretrain_one)


def prepare_phantoms(folder: Path, side: int, seed: int, num_patients: int) -> Cache:
    """Writes phantoms and their cache, unless they are there."""
    if not (folder / "data" / "sample_submission.csv").exists():
        write_phantoms(folder / "data", num_patients=num_patients, seed=seed)
    cache = Cache(folder / "cache")
    settings = CacheSettings(split="train", prepare=PrepareSettings(side=side))
    prepare_dataset(folder / "data", cache, settings, workers=1, track=quiet().track)
    return cache


# Fashion-MNIST


def make_fashion(folder: Path, images: Path, seed: int) -> Subject:
    """Writes PNG files: all training images in one folder, and a folder of classes with every tenth one."""
    classes, everything = folder / "classes", folder / "unlabelled"
    for split, prefix in ((TRAIN, "train"), (TEST, "t10k")):
        pixels = read_idx(images / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(images / f"{prefix}-labels-idx1-ubyte.gz")
        order = np.random.default_rng(seed).permutation(len(labels))
        labelled = set(order[: NUM_LABELLED[split]])
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            if number in labelled:
                write_png(classes / split / f"class_{label}" / f"{number}.png", image)
            if split == TRAIN:
                write_png(everything / f"{number}.png", image)

    def train(recipe: Recipe, run: Path) -> float:
        train_classes(recipe, classes, ClassRun(run), reporter=quiet())
        return evaluate_classes(ClassRun(run)).accuracy

    def pretrain_one(recipe: Recipe, run: Path) -> None:
        pretrain(recipe, Sources([], everything, recipe.model), PretrainRun(run), reporter=quiet())

    return Subject(FASHION, NUM_LABELLED[TRAIN], 60_000, train, pretrain_one)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns the array of a file in the IDX format (http://yann.lecun.com/exdb/mnist/)."""
    content = gzip.decompress(path.read_bytes())
    num_dimensions = content[3]
    shape = np.frombuffer(content, ">i4", num_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an image, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


if __name__ == "__main__":
    main()
