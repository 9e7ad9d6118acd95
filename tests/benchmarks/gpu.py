"""Measures one GPU in less than ten minutes and prints a section for reports/LOG.md.

    python tests/benchmarks/gpu.py [--parts gradients speed] [--smoke]

- gradients: fused attention by each of torch's kernels, beside the paper's formula in float64
- resume: a training that was stopped and goes on, beside one that was not
- fp16: a training with loss scaling beside one in float32
- memory: what a user reads where the memory is full
- speed: the trainer's steps on images in memory: images/s, MFU, the most memory
- epoch: a whole epoch with loader and augmentation, from a pack
- predict: a packed cache of the test split, by one fold

Each part is a process of its own with a limit of time: one that fails, hangs or fills the memory is a row of
the table, and the next goes on. `--smoke` runs every part in small and in one process, on a CPU too; its
figures say nothing.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from bench_pack import make_cache
from bench_predict import write_run
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from data_prep.cache.images import PreparedImages, open_images
from data_prep.cache.pack import write_pack
from data_prep.parallel.resource_limits import count_cores
from pipeline.inference.predict_test_set import predict_cache
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import FoldFolder, Run, TrainingFolder
from pipeline.runtime.gpu_memory import GpuMemoryFull
from pipeline.runtime.progress import Reporter
from pipeline.runtime.signals import Interrupted, StopRequest
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.cross_validate import cross_validate
from pipeline.training.dry_run import time_steps
from pipeline.training.fold_task import FoldImages, FoldTask
from pipeline.training.throughput import count_flops, find_peak_flops
from pipeline.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
VARIANTS = {"S": "vit_s16_512.toml", "B": "vit_b16_512.toml"}
AIMS = {("S", False): 1800, ("S", True): 5000, ("B", False): 650, ("B", True): 2000}
"""Images/s in training on an H200 in bf16: by all patches, or by those that are kept."""
UNCHANGED = [f"augment.{name}=0" for name in ("vertical_flip", "affine", "tone", "coarse_dropout")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SILENT = Reporter(Console(quiet=True))


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        changes: of every recipe, after all others.
        kept_patches: 0 is all.
        tokens: of the attention whose gradients are compared.
        modes: of the steps that are timed: batch, and whether the model is compiled.
        num_steps: that are timed.
        num_drawn, num_rows: images, and how many an epoch has of them.
        fraction: of the GPU's memory, too little for a training.
    """

    changes: list[str]
    kept_patches: tuple[int, int]
    tokens: tuple[int, int]
    modes: list[tuple[int, bool]]
    num_steps: int
    num_drawn: int
    num_rows: int
    fraction: float = 0.02


FULL = Size(
    [],
    kept_patches=(0, 383),
    tokens=(1025, 384),
    modes=[(256, False), (128, False), (32, False), (256, True), (128, True), (32, True)],
    num_steps=10,
    num_drawn=512,
    num_rows=16_384,
)
SMALL = Size(
    [
        *("prepare.side=64", "model.image_size=64", "model.width=32", "model.depth=2", "model.num_heads=2"),
        "train.workers=0",
    ],
    kept_patches=(0, 7),
    tokens=(17, 8),
    modes=[(16, False)],
    num_steps=1,
    num_drawn=32,
    num_rows=64,
)


def show(part: str, what: str, figure: str, aim: str = "") -> None:
    """Prints a row of the table."""
    print("|", " | ".join(cell.replace("|", "/") for cell in (part, what, figure, aim)), "|", flush=True)


@contextmanager
def guarded(part: str, what: str) -> Iterator[None]:
    """Shows a row where something fails, so that the next can be measured."""
    if DEVICE == "cuda":
        gc.collect()  # what the one before has left, its traceback included
        torch.cuda.empty_cache()
    try:
        yield
    except torch.OutOfMemoryError:
        show(part, what, "out of memory")
    except Exception as error:  # whatever a kernel or a compiler may say
        show(part, what, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


# What is trained


class Pictures:
    """A few images of noise in memory, again and again."""

    def __init__(self, side: int, num_rows: int) -> None:
        self._images = np.random.default_rng(0).integers(0, 256, (8, side, side), dtype=np.uint8)
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int, /) -> np.ndarray:
        return self._images[row % len(self._images)]


def make_recipe(variant: str, size: Size, *changes: str) -> Recipe:
    """Returns a recipe of `configs/` for this machine, with some settings changed."""
    return load_recipe(CONFIGS / VARIANTS[variant], [f"train.device={DEVICE}", *changes, *size.changes])


def make_exams(num_rows: int) -> pd.DataFrame:
    """Returns rows of which every eighth is a cancer, as in the batches of the recipes."""
    ids = [str(1000 + row) for row in range(num_rows)]
    cancer = (np.arange(num_rows) % 8 == 0).astype(int)
    return pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L", "cancer": cancer})


def make_trainer(
    recipe: Recipe, folder: Path, exams: pd.DataFrame, images: PreparedImages | None = None
) -> Trainer:
    """Returns the trainer of a fold, which holds out eight images."""
    images = images or Pictures(recipe.model.image_size, len(exams))
    held_out = Pictures(recipe.model.image_size, 8)
    task = FoldTask(recipe, FoldImages(exams, exams[:8], images, held_out), fold=0)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(recipe, task, FoldFolder(folder), reporter=SILENT)


class StopAfter(StopRequest):
    """A stop that is asked for at the third question."""

    def __init__(self) -> None:
        super().__init__()
        self._num_left = 3

    @property
    def is_made(self) -> bool:
        self._num_left -= 1
        return self._num_left <= 0

    def raise_if_made(self) -> None:
        if self._num_left <= 0:
            raise Interrupted(15)


# The parts


def measure_gradients(size: Size) -> None:
    """Relative errors of attention and its gradients, by the norm."""
    half = torch.bfloat16 if DEVICE == "cpu" or torch.cuda.is_bf16_supported(False) else torch.float16
    kernels = {"the formula": None, **SDPBackend.__members__}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH", "the formula"):
        for dtype, aim in ((half, "below 1e-2"), (torch.float32, "below 1e-5")):
            if dtype == torch.float32 and name in {"FLASH_ATTENTION", "CUDNN_ATTENTION"}:
                continue  # which have none
            for num_tokens in size.tokens:
                what = f"{name}, T = {num_tokens:,}, {str(dtype).removeprefix('torch.')}"
                with guarded("gradients", what):
                    output, gradients = compare_attention(kernels[name], num_tokens, dtype)
                    show("gradients", what, f"output {output:.1e}, gradients {gradients:.1e}", aim)


def compare_attention(kernel: SDPBackend | None, num_tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the errors of the output and of the worst of its three gradients."""
    torch.manual_seed(0)
    qkv_BT3hd = torch.randn(2, num_tokens, 3, 6, 64, device=DEVICE, dtype=dtype)
    d_BhTd = torch.randn(2, 6, num_tokens, 64, device=DEVICE, dtype=dtype)
    exact, d_exact = attend(qkv_BT3hd.double(), d_BhTd.double(), None)
    output, d_output = attend(qkv_BT3hd, d_BhTd, kernel)
    errors = [relative_error(d_output[:, :, part], d_exact[:, :, part]) for part in range(3)]
    return relative_error(output, exact), max(errors)


def attend(qkv_BT3hd: Tensor, d_BhTd: Tensor, kernel: SDPBackend | None) -> tuple[Tensor, Tensor]:
    """Returns attention by a kernel or, without one, by the formula, and the gradient of qkv."""
    qkv_BT3hd = qkv_BT3hd.detach().requires_grad_()
    q_BhTd, k_BhTd, v_BhTd = qkv_BT3hd.permute(2, 0, 3, 1, 4).unbind(0)  # as `models.vit` has them
    if kernel is None:
        A_BhTT = torch.softmax(q_BhTd * q_BhTd.shape[-1] ** -0.5 @ k_BhTd.transpose(-2, -1), dim=-1)
        output_BhTd = A_BhTT @ v_BhTd
    else:
        with sdpa_kernel(kernel):
            output_BhTd = scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd)
    (gradient_BT3hd,) = torch.autograd.grad(output_BhTd, qkv_BT3hd, d_BhTd)
    return output_BhTd.detach(), gradient_BT3hd


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Returns the norm of the difference over the norm."""
    return float((found.double() - exact).norm() / exact.norm())


def measure_resume(size: Size) -> None:
    """Whether a training that was stopped ends with the weights of one that was not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products ask for
    kept = f"model.kept_patches={size.kept_patches[1]}"
    recipe = make_recipe("S", size, kept, "train.epochs=2", "train.batch_size=32", "train.workers=2")
    exams = make_exams(4 * 32)
    for is_deterministic in (False, True):
        how = "deterministic" if is_deterministic else "as torch computes"
        torch.use_deterministic_algorithms(is_deterministic)
        with guarded("resume", how), tempfile.TemporaryDirectory() as name:
            once, twice, stopped = (Path(name, each) for each in ("once", "twice", "stopped"))
            for folder in (once, twice):
                make_trainer(recipe, folder, exams).run(StopRequest())
            try:
                make_trainer(recipe, stopped, exams).run(StopAfter())
                show("resume", f"stopped, {how}", "failed: it was not stopped")
            except Interrupted:
                make_trainer(recipe, stopped, exams).run(StopRequest())
            for what, folder in {"twice the same": twice, "stopped and gone on with": stopped}.items():
                aim = "the last bit" if is_deterministic else ""
                show("resume", f"{what}, {how}", compare_weights(FoldFolder(once), FoldFolder(folder)), aim)
    torch.use_deterministic_algorithms(False)


def compare_weights(ours: TrainingFolder, theirs: TrainingFolder) -> str:
    """Says how far two models are from each other."""
    left, right = (safetensors.torch.load_file(folder.weights) for folder in (ours, theirs))
    if all(torch.equal(left[name], right[name]) for name in left):
        return "the same to the last bit"
    most = max(float((left[name] - right[name]).abs().max()) for name in left)
    return f"weights differ by {most:.1e} at most"


def measure_fp16(size: Size) -> None:
    """Loss scaling: the loss of a short training beside that of float32."""
    with guarded("fp16", "loss of the second epoch"), tempfile.TemporaryDirectory() as name:
        losses = {}
        for precision in ("fp16", "float32"):
            kept = f"model.kept_patches={size.kept_patches[1]}"
            changes = [kept, f"train.precision={precision}", "train.epochs=2", "train.workers=2"]
            trainer = make_trainer(make_recipe("S", size, *changes), Path(name, precision), make_exams(256))
            trainer.run(StopRequest())
            losses[precision] = pd.read_csv(trainer.folder.history)["train_loss"].iloc[-1]
        checkpoint = load_checkpoint(FoldFolder(Path(name, "fp16")))
        scale = (checkpoint or {})["scaler"].get("scale", 1.0)
        figures = ", ".join(f"{precision} {loss:.4f}" for precision, loss in losses.items())
        show("fp16", "loss of the second epoch", f"{figures}; scale {scale:,.0f}", "equal to rounding")


def measure_memory(size: Size) -> None:
    """What a user reads where a training finds too little memory."""
    recipe = make_recipe("S", size, "train.num_folds=2", "train.workers=0")
    with guarded("memory", "too little"), tempfile.TemporaryDirectory() as name, too_little(size):
        cache = make_cache(Path(name, "cache"), 64, recipe.prepare.side)
        try:
            cross_validate(recipe, cache, Run(Path(name, "run")), reporter=SILENT, folds=[0])
            show("memory", "too little", "failed: it was enough")
        except GpuMemoryFull as error:
            show("memory", "too little", f"exit code {error.exit_code}: {error}", "one sentence")


@contextmanager
def too_little(size: Size) -> Iterator[None]:
    """Leaves a part of the GPU's memory; without a GPU a model finds none."""
    if DEVICE == "cpu":
        full = torch.OutOfMemoryError("planted")
        with mock.patch.object(VisionTransformer, "forward", side_effect=full):
            yield
        return
    torch.cuda.set_per_process_memory_fraction(size.fraction)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_speed(size: Size) -> None:
    """Steps of the trainer; images come from memory, so that no loader is waited for."""
    for (batch, is_compiled), variant, kept in product(size.modes, VARIANTS, size.kept_patches):
        changes = [f"train.batch_size={batch}", f"train.compile={str(is_compiled).lower()}", *UNCHANGED]
        recipe = make_recipe(variant, size, f"model.kept_patches={kept}", *changes)
        mode = "compiled" if is_compiled else "eager"
        what = f"ViT-{variant}, T = {recipe.model.num_tokens:,}, batch {batch}, {mode}"
        with guarded("speed", what), tempfile.TemporaryDirectory() as name:
            if is_compiled:
                torch.compiler.reset()  # else other shapes are compiled as unknown ones
            reset_peak()
            trainer = make_trainer(recipe, Path(name), make_exams(8 * batch))
            step = time_steps(trainer, size.num_steps)
            speed = step.num_images / step.seconds
            aim = f"{AIMS[variant, kept > 0]:,} images/s"
            show("speed", what, describe_speed(recipe, trainer, speed, step.memory_mb), aim)


def reset_peak() -> None:
    """Forgets how much memory was taken before."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def describe_speed(recipe: Recipe, trainer: Trainer, speed: float, memory_mb: float) -> str:
    """Returns images/s, MFU and memory."""
    peak = find_peak_flops(trainer.compute.precision, trainer.compute.device)
    mfu = f"{speed * count_flops(recipe.model) / peak:.1%}" if peak else "not known"
    return f"{speed:,.0f} images/s, MFU {mfu}, {memory_mb / 1000:.1f} GB"


def measure_epoch(size: Size) -> None:
    """The second of two epochs, with whatever a real one does."""
    with tempfile.TemporaryDirectory() as name:
        cache = make_cache(Path(name, "cache"), size.num_drawn, make_recipe("S", size).prepare.side)
        write_pack(cache, workers=0)
        ids = cache.read_exams()["image_id"]
        exams = make_exams(size.num_rows)
        exams["image_id"] = [ids[row % len(ids)] for row in range(size.num_rows)]
        batch = max(batch for batch, _ in size.modes)
        for kept in size.kept_patches:
            changes = [f"model.kept_patches={kept}", f"train.batch_size={batch}", "train.epochs=2"]
            recipe = make_recipe("S", size, *changes)
            what = f"ViT-S, T = {recipe.model.num_tokens:,}, batch {batch}, eager"
            with guarded("epoch", what):
                reset_peak()
                trainer = make_trainer(recipe, Path(name, f"kept_{kept}"), exams, open_images(cache, exams))
                trainer.run(StopRequest())
                row = pd.read_csv(trainer.folder.throughput).iloc[-1]
                figures = describe_speed(recipe, trainer, row["images_per_second"], row["peak_memory_mb"])
                waited = f"{row['loader_wait_share']:.1%} of {row['seconds']:.0f} s waited for images"
                show("epoch", what, f"{figures}; {waited}", f"{AIMS['S', kept > 0]:,} images/s, 3 % waited")


def measure_predict(size: Size) -> None:
    """The second of two predictions: model loaded, workers started, tables read in both."""
    with tempfile.TemporaryDirectory() as name:
        side, num_images = make_recipe("S", size).prepare.side, size.num_rows // 4
        cache = make_cache(Path(name, "cache"), num_images, side, split="test", num_drawn=size.num_drawn)
        write_pack(cache, workers=0)
        for kept in size.kept_patches:
            recipe = make_recipe("S", size, f"model.kept_patches={kept}")
            what = f"ViT-S, T = {recipe.model.num_tokens:,}, one fold"
            with guarded("predict", what):
                run = Run(Path(name, f"kept_{kept}"))
                write_run(run.folder, 1, recipe)
                for _ in range(2):
                    start = time.perf_counter()
                    predict_cache(run, cache, workers=count_cores(), reporter=SILENT)
                    seconds = time.perf_counter() - start
                show("predict", what, f"{num_images / seconds:,.0f} images/s, {seconds:.1f} s")


PARTS: dict[str, tuple[int, Callable[[Size], None]]] = {
    "gradients": (30, measure_gradients),
    "resume": (70, measure_resume),
    "fp16": (40, measure_fp16),
    "memory": (25, measure_memory),
    "speed": (290, measure_speed),
    "epoch": (75, measure_epoch),
    "predict": (60, measure_predict),
}
"""Seconds that each may take, ten minutes in all, and what it does; the most important cases come first."""


def run_part(part: str, command: list[str], limit_s: float) -> None:
    """Passes on the rows of a process, and adds one if it fails or takes too long."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process:
            clock = threading.Timer(limit_s, os.killpg, [process.pid, signal.SIGKILL])  # its compilers too
            clock.start()
            for line in process.stdout or ():
                if line.startswith("| "):
                    print(line, end="", flush=True)
            code = process.wait()
            clock.cancel()
        errors.seek(0)
        said = errors.read().strip().splitlines()[-1:]
    if code == -signal.SIGKILL and time.monotonic() - start >= limit_s:
        show(part, "what follows", f"not measured: the part's {limit_s:.0f} s are over")
    elif code:
        show(part, "what follows", f"failed: ended with {code}: {''.join(said)}")


def describe_machine() -> str:
    """Returns the device, versions and cores in a line."""
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"
    return f"{where}, torch {torch.__version__}, Python {sys.version.split()[0]}, {count_cores()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="every part in small, on a CPU too")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # a part in its process
    options = parser.parse_args()
    if options.alone:
        for part in options.parts:
            PARTS[part][1](FULL)
        return
    if DEVICE == "cpu" and not options.smoke:
        print(f"nothing was measured: {describe_machine()}; --smoke runs every part in small")
        return
    print(f"## {datetime.now(UTC):%Y-%m-%d} · one GPU{', in small' if options.smoke else ''}\n")
    print(f"`python tests/benchmarks/gpu.py`, {describe_machine()}.\n")
    print("| part | what | figure | aim |\n| --- | --- | --- | --- |", flush=True)
    for part in options.parts:
        limit_s, measure = PARTS[part]
        if options.smoke:
            measure(SMALL)
        else:
            run_part(part, [sys.executable, __file__, "--alone", "--parts", part], limit_s)


if __name__ == "__main__":
    main()
