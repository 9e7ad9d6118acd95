"""Compares the Vision Transformer with timm's of the same size, and explicit with fused attention.

"kept" models see 383 patches of an image, "kept 2x" ones 1,151 patches of an image of twice the side; in
both, T is a multiple of 128.

Every round runs all contenders once, in turn, so that a slow minute hits all of them; ratios are taken within
a round. timm runs twice: the ratio of timm to itself is the noise that the others must be judged by. Peak
memory is that of a process of its own. On a GPU, images/s and model FLOPs utilisation (MFU) come on top.

    python tests/benchmarks/bench_vit.py [--variants Ti/16 S/16] [--precisions float32 bf16] [--compile]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.models.vit import VARIANTS, make_variant
from pipeline.runs.recipe import ModelSettings
from pipeline.runtime.torchvision_compat import allow_torchvision_import
from pipeline.training.throughput import count_flops, find_peak_flops

allow_torchvision_import()

import timm  # noqa: E402

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
TIMM_NAMES = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/16": "vit_small_patch16_224",
    "B/16": "vit_base_patch16_224",
}
KEPT = {"kept": (1, 383), "kept 2x": (2, 1151)}  # times the side, patches
CONTENDERS = ["timm", "timm again", "sdpa", "explicit"]
CONTENDERS += [f"{kind} {attention}" for kind in KEPT for attention in ("sdpa", "explicit")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(contender: str, variant: str, image_size: int) -> nn.Module:
    """Returns a new model for grey images and one logit."""
    torch.manual_seed(0)
    if contender.startswith("timm"):
        model = timm.create_model(TIMM_NAMES[variant], img_size=image_size, in_chans=1, num_classes=1)
    else:
        kind, _, attention = contender.rpartition(" ")
        times, num_kept = KEPT.get(kind, (1, 0))
        changes = {"image_size": times * image_size, "kept_patches": num_kept, "attention": attention}
        model = make_variant(variant, **changes)
    return model.to(DEVICE)


def draw_images(contender: str, options: argparse.Namespace) -> Tensor:
    """Returns a batch of noise of the side that a contender takes."""
    side = options.size * KEPT.get(contender.rpartition(" ")[0], (1, 0))[0]
    return torch.rand(options.batch, 1, side, side, device=DEVICE)


def make_steps(
    model: nn.Module, images_BCHW: Tensor, precision: str, *, is_compiled: bool
) -> dict[str, Callable[[], None]]:
    """Returns what is timed: a forward pass, and a training step with AdamW."""
    compiled = torch.compile(model) if is_compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels_B1 = torch.zeros(len(images_BCHW), 1, device=DEVICE)

    def run() -> Tensor:
        with torch.autocast(DEVICE, DTYPES[precision], enabled=precision != "float32"):
            return compiled(images_BCHW)

    def forward() -> None:
        with torch.inference_mode():
            run()

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(run().float(), labels_B1).backward()
        optimizer.step()

    return {"forward": forward, "training": train}


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Times some calls in a row."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure_peak_mb(contender: str, variant: str, precision: str, options: argparse.Namespace) -> float:
    """Returns the peak memory of some training steps in a fresh process, without that of an idle one."""
    command = [sys.executable, __file__, "--memory-of", contender, "--variants", variant]
    command += ["--precisions", precision, "--batch", str(options.batch), "--size", str(options.size)]
    command += ["--compile"] if options.compile else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_own_peak(contender: str, options: argparse.Namespace) -> None:
    """Trains some steps in this process and prints how many MB they took."""
    before = read_memory_mb("VmRSS")
    model = make_model(contender, options.variants[0], options.size)
    images_BCHW = draw_images(contender, options)
    steps = make_steps(model, images_BCHW, options.precisions[0], is_compiled=options.compile)
    for _ in range(3):
        steps["training"]()
    if DEVICE == "cuda":
        print(torch.cuda.max_memory_allocated() / 1e6)
    else:
        print(read_memory_mb("VmHWM") - before)


def read_memory_mb(name: str) -> float:
    """Returns a figure of Linux's about this process: VmRSS is what it holds now, VmHWM the most it held."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return float(line.split()[1]) / 1e3


def compare(variant: str, precision: str, options: argparse.Namespace) -> None:
    """Prints one table."""
    steps = {
        contender: make_steps(
            make_model(contender, variant, options.size),
            draw_images(contender, options),
            precision,
            is_compiled=options.compile,
        )
        for contender in CONTENDERS
    }
    mode = "compiled" if options.compile else "eager"
    print(f"\nViT-{variant}, {options.size} px, batch {options.batch}, {precision}, {mode}, {DEVICE}")
    flops = count_flops(ModelSettings(image_size=options.size, **VARIANTS[variant]))
    print(f"{flops / 1e9:.1f} GFLOP per training image")
    print(f"{'':9} {'':16} {'images/s':>9}  times faster than timm: median (lowest to highest round)")
    for kind in ("forward", "training"):
        for contender in CONTENDERS:
            seconds(steps[contender][kind], 2)  # warm-up and compilation
        rounds = [
            {contender: seconds(steps[contender][kind], options.repeats) for contender in CONTENDERS}
            for _ in range(options.rounds)
        ]
        for contender in CONTENDERS:
            ratios = [times["timm"] / times[contender] for times in rounds]
            speed = options.batch / statistics.median(times[contender] for times in rounds)
            line = f"{kind:9} {contender:16} {speed:9.2f}"
            if contender != "timm":
                line += f"  {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            if kind == "training":
                peak = find_peak_flops(precision, DEVICE)
                line += f"  MFU {speed * flops / peak:.1%}" if peak and "kept" not in contender else ""
            print(line, flush=True)
    peaks = {
        name: measure_peak_mb(name, variant, precision, options) for name in CONTENDERS if "again" not in name
    }
    print("peak of training, MB:  " + "   ".join(f"{name} {peak:,.0f}" for name, peak in peaks.items()))


def main() -> None:
    """Runs the comparisons that the options ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=list(TIMM_NAMES), default=["Ti/16", "S/16"])
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=1, help="calls per timing; more on fast devices")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_own_peak(options.memory_of, options)
        return
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} cores, no GPU"
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, {where}")
    if DEVICE == "cpu":
        print("no accelerator here: no MFU; the figures below are the CPU's")
    for variant in options.variants:
        for precision in options.precisions:
            compare(variant, precision, options)


if __name__ == "__main__":
    main()
