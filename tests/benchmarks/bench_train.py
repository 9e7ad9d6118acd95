"""Compares the trainer with bare loops, and measures the loader and how long training waits for it.

Every round takes some steps of each contender, in turn, so that a slow minute hits all of them; ratios are
taken within a round. The bare loop, timm's loop and the loader run twice: their ratio to themselves is the
noise that the others must be judged by. The images are those of `bench_pack.py`, which are like real ones in
size and decoding time.

- the trainer, loader included, beside a bare loop: the same model, batch, dtype, loss and optimizer, a batch
  in memory, no clipping, no averaged weights
- the trainer with mixup beside timm's training loop as its `train.py` has it: timm's Mixup, optimizer,
  parameter groups, autocast, clipping and ModelEmaV3; both on mammo's ViT and loader, so that only the
  loops differ
- the share of a training's time in which it waits for images, from a pack with two workers
- the loader alone in one process and one thread: read, augment, collate, make floats
- with CUDA, real training of the recipes `vit_s16_512` and `vit_b16_512`: images/s, MFU, waiting

    python tests/benchmarks/bench_train.py [--rounds 7] [--images 256] [--device cpu]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from bench_pack import make_cache
from rich.console import Console
from torch import nn

from data_prep.cache.folder import Cache
from data_prep.cache.images import PngImages, PreparedImages, open_images
from data_prep.cache.pack import write_pack
from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import Batch, ImageDataset, load_batches
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import AugmentSettings, Recipe, load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.precision import autocast
from pipeline.runtime.progress import Reporter
from pipeline.runtime.torchvision_compat import allow_torchvision_import
from pipeline.training.fold_task import FoldImages, FoldTask
from pipeline.training.optim import make_optimizer
from pipeline.training.throughput import Meter
from pipeline.training.trainer import Trainer

allow_torchvision_import()

import timm  # noqa: E402
from timm.data import Mixup  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils import ModelEmaV3, dispatch_clip_grad  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs"
SIDE = 512
MIXUP = 0.2
PARTS = ["loader", "loops", "recipes"]
AIMS = {"vit_s16_512": 2000, "vit_b16_512": 600}  # images/s on an H200

Step = Callable[[], object]


class Steps:
    """Takes the steps of a trainer one by one, through as many epochs as are asked for."""

    def __init__(self, recipe: Recipe, cache: Cache, folder: Path) -> None:
        exams = cache.read_exams()
        images = open_images(cache, exams)
        self.task = FoldTask(recipe, FoldImages(exams, exams[:8], images, images), fold=0)
        self.trainer = Trainer(recipe, self.task, Run(folder).fold(0), reporter=Reporter(Console(quiet=True)))
        self._rows = cycle(self.task.plan(0))
        self._parts = self.load(10_000)

    def load(self, num_steps: int) -> Iterator[Batch]:
        """Yields batches as the trainer loads them."""
        return self.trainer.load_parts(list(islice(cycle(self.task.plan(0)), num_steps)))

    def __call__(self) -> None:
        self.trainer.take_step(self._parts, len(next(self._rows)))

    def measure(self, num_steps: int, *, is_epoch: bool = False) -> dict[str, float]:
        """Returns what `throughput.csv` would say of an epoch of so many steps, or of its middle."""
        meter = Meter()
        parts = meter.watch(self.load(num_steps) if is_epoch else self._parts)
        for rows in islice(self._rows, num_steps):
            self.trainer.take_step(parts, len(rows))
            meter.num_images += len(rows)
        self.trainer.stepper.settle()
        compute = self.trainer.compute
        return meter.summarise(self.task.model, compute.precision, compute.device)


def make_bare_step(steps: Steps, recipe: Recipe) -> Step:
    """Returns a step of the shortest loop there is."""
    compute = steps.trainer.compute
    torch.manual_seed(0)
    model = VisionTransformer(recipe.model).to(compute.device)
    optimizer = make_optimizer(model, recipe.train)
    images_BCHW = next(steps.load(1))[0].to(compute.device)
    labels_B = torch.zeros(len(images_BCHW), device=compute.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(compute.precision, compute.device):
            logits_BK = model(images_BCHW)
        nn.functional.binary_cross_entropy_with_logits(logits_BK[:, 0].float(), labels_B).backward()
        optimizer.step()

    return step


def make_timm_step(steps: Steps, recipe: Recipe) -> Step:
    """Returns a step as timm's `train.py` takes it, on the trainer's batches."""
    compute, settings = steps.trainer.compute, recipe.train
    torch.manual_seed(0)
    model = VisionTransformer(recipe.model).to(compute.device)
    optimizer = create_optimizer_v2(
        model, settings.optimizer, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    average = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
    mix = Mixup(mixup_alpha=MIXUP, label_smoothing=0.0, num_classes=2)
    batches, labels = steps.load(10_000), torch.tensor(steps.task.labels)
    updates = iter(range(10**9))

    def step() -> None:
        images_BCHW, rows_B = next(batches)
        whole = len(rows_B) - len(rows_B) % 2  # timm's Mixup wants an even batch
        images_BCHW = images_BCHW[:whole].to(compute.device, non_blocking=True)
        labels_B = labels[rows_B[:whole]].to(compute.device)
        images_BCHW, targets_BK = mix(images_BCHW, labels_B)
        with autocast(compute.precision, compute.device):
            logits_BK = model(images_BCHW)
            loss = nn.functional.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK[:, 1:])
        loss.backward()
        dispatch_clip_grad(model.parameters(), value=settings.clip_norm, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=next(updates))
        loss.item()  # timm's log

    return step


def seconds(step: Step, repeats: int) -> float:
    """Times some steps in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(contenders: dict[str, Step], rivals: dict[str, str], options: argparse.Namespace) -> None:
    """Prints each contender's speed and how many times faster than its rival it is."""
    for step in contenders.values():
        seconds(step, options.steps)
    rounds = [
        {name: seconds(step, options.steps) for name, step in contenders.items()}
        for _ in range(options.rounds)
    ]
    print(f"{'':28} {'images/s':>9}  times faster: median (lowest to highest round)")
    for name in contenders:
        speed = options.batch * options.steps / statistics.median(times[name] for times in rounds)
        line = f"{name:28} {speed:9.2f}"
        if name in rivals:
            ratios = [times[rivals[name]] / times[name] for times in rounds]
            line += f"  {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            line += f" than {rivals[name]}"
        print(line, flush=True)


def compare_loops(cache: Cache, folder: Path, options: argparse.Namespace) -> None:
    """Prints the trainer beside bare loops, and how long it waits for images."""
    recipe = load_recipe(CONFIGS / "vit_ti16_512.toml", [f"train.device={options.device}", "train.workers=2"])
    # A multiple of eight: an eighth of a batch is positive, as in the cache, so all batches are full.
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"batch_size": options.batch})}
    )
    mixed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"mixup": MIXUP})})
    trainer, mixup = Steps(recipe, cache, folder / "plain"), Steps(mixed, cache, folder / "mixed")
    compute = trainer.trainer.compute
    print(f"\nViT-Ti/16, {SIDE} px, batch {options.batch}, {compute.precision}, {compute.device}")
    compare(
        {
            "bare loop": make_bare_step(trainer, recipe),
            "trainer": trainer,
            "bare loop again": make_bare_step(trainer, recipe),
            "timm's loop, mixup": make_timm_step(mixup, mixed),
            "trainer, mixup": mixup,
            "timm's loop, mixup, again": make_timm_step(mixup, mixed),
        },
        {
            "trainer": "bare loop",
            "bare loop again": "bare loop",
            "trainer, mixup": "timm's loop, mixup",
            "timm's loop, mixup, again": "timm's loop, mixup",
        },
        options,
    )
    num_steps = max(8, options.rounds * options.steps)
    for part, is_epoch in {"middle of an epoch": False, "epoch with the workers' start": True}.items():
        speed = trainer.measure(num_steps, is_epoch=is_epoch)
        print(
            f"waiting for images, 2 workers, pack, {part}: {speed['loader_wait_share']:.2%} of {num_steps} "
            f"steps, {speed['seconds']:.1f} s, {speed['images_per_second']:.2f} images/s",
            flush=True,
        )


def time_loader(
    images: PreparedImages, augmentation: Augmentation | None, options: argparse.Namespace
) -> float:
    """Returns images/s of one process that reads all images in random order."""
    order = np.random.default_rng(0).permutation(len(images))
    keys = [[(0, int(row)) for row in part] for part in np.array_split(order, len(order) // options.batch)]
    start = time.perf_counter()
    for _ in load_batches(ImageDataset(images, augmentation=augmentation), keys, workers=0):
        pass
    return len(images) / (time.perf_counter() - start)


def compare_loaders(cache: Cache, options: argparse.Namespace) -> None:
    """Prints the loader's speed per core, from single files and from their pack."""
    threads, augmentation = (torch.get_num_threads(), cv2.getNumThreads()), Augmentation(AugmentSettings())
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    exams = cache.read_exams()
    files, pack = PngImages(cache.image_paths(exams)), open_images(cache, exams)
    contenders = {
        "PNG files": (files, augmentation),
        "pack": (pack, augmentation),
        "PNG files again": (files, augmentation),
        "pack again": (pack, augmentation),
        "PNG files, not augmented": (files, None),
        "pack, not augmented": (pack, None),
    }
    rounds = [
        {name: time_loader(*arguments, options) for name, arguments in contenders.items()}
        for _ in range(1 + options.rounds)
    ][1:]
    print("\nthe loader in one process, one thread: images/s, median (lowest to highest round)")
    for name in contenders:
        speeds = [speeds[name] for speeds in rounds]
        print(f"{name:28} {statistics.median(speeds):9.0f}  ({min(speeds):.0f} to {max(speeds):.0f})")
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def measure_recipes(cache: Cache, folder: Path, options: argparse.Namespace) -> None:
    """Prints real training of the recipes on a GPU."""
    for name, aim in AIMS.items():
        overrides = ["train.device=cuda", f"train.workers={options.workers}"]
        overrides += ["train.compile=true"] if options.compile else []
        recipe = load_recipe(CONFIGS / f"{name}.toml", overrides)
        steps = Steps(recipe, cache, folder / name)
        steps.measure(10)
        torch.cuda.synchronize()
        speeds = [steps.measure(50) for _ in range(options.rounds)]
        medians = {
            key: statistics.median(speed[key] for speed in speeds)
            for key in ("images_per_second", "mfu", "loader_wait_share", "peak_memory_mb")
        }
        print(
            f"{name}, batch {recipe.train.batch_size}, {options.workers} workers: "
            f"{medians['images_per_second']:.0f} images/s (aim on an H200: {aim}), MFU {medians['mfu']:.1%}, "
            f"waiting {medians['loader_wait_share']:.2%}, {medians['peak_memory_mb']:,.0f} MB",
            flush=True,
        )


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=256, help="images in the cache")
    parser.add_argument("--batch", type=int, default=8, help="a multiple of 8")
    parser.add_argument("--steps", type=int, default=1, help="steps per timing; more on fast devices")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=8, help="of the recipes on a GPU")
    parser.add_argument("--compile", action="store_true", help="the recipes on a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, OpenCV {cv2.__version__}, "
        f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, {where}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = make_cache(folder / "cache", options.images, SIDE)
        write_pack(cache, workers=0)
        if "loader" in options.parts:
            compare_loaders(cache, options)
        if "loops" in options.parts:
            compare_loops(cache, folder, options)
        if not torch.cuda.is_available() or options.device == "cpu":
            print("\nno CUDA device here: vit_s16_512 and vit_b16_512 were not run")
        elif "recipes" in options.parts:
            measure_recipes(cache, folder, options)


if __name__ == "__main__":
    main()
