"""How well a training uses its machine: speed, waiting for images, MFU, memory."""

import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from pipeline.models.breast_transformer import NUM_LAYERS
from pipeline.runs.recipe import ModelSettings, Precision
from pipeline.runtime.progress import Reporter

PEAKS_WITH_BF16 = {
    "NVIDIA B200": 2250.0,
    "NVIDIA GH200 480GB": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H200 NVL": 835.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A40": 149.7,
    "NVIDIA A30": 165.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A10G": 70.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L4": 121.0,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 3080": 59.5,
}
PEAKS_WITHOUT_BF16 = {
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-SXM2-32GB": 125.0,
    "Tesla V100-PCIE-16GB": 112.0,
    "Tesla V100-PCIE-32GB": 112.0,
    "Tesla T4": 65.0,
}
"""TFLOPS in fp16 and, where a GPU has it, bf16, by the name that torch prints: dense matrices, sums in
float32, from the maker's data sheets and white papers."""

Item = TypeVar("Item")


def count_flops(model: ModelSettings, *, images_per_breast: float = 1.0) -> float:
    """Returns the floating-point operations of a training step per image: three times the forward pass's.

    With `fusion` its layers are counted too, for so many images of a breast. Counted are the matrix products,
    a multiplication and an addition each; what gradient checkpointing computes again is not (Chowdhery et al.
    2022, arXiv:2204.02311, appendix B).
    """
    T, D = model.num_tokens, model.width
    dense = 2 * T * D * (4 * D + 2 * int(model.mlp_ratio * D))  # qkv and projection, both layers of the MLP
    attention = 2 * 2 * T * T * D
    patches = 2 * (T - model.num_prefix_tokens) * D * model.in_channels * model.patch_size**2
    fused = count_fusion_flops(model, images_per_breast) / images_per_breast
    return 3.0 * (model.depth * (dense + attention) + patches + fused)


def count_fusion_flops(model: ModelSettings, images_per_breast: float) -> float:
    """Returns the operations of the forward pass through the layers over a breast's images."""
    if model.fusion == "none":
        return 0.0
    T, D = 1 + images_per_breast * (1 + model.fusion_patches), model.width
    dense = 2 * T * D * (4 * D + 2 * int(model.mlp_ratio * D))
    return NUM_LAYERS * (dense + 2 * 2 * T * T * D)


def find_peak_flops(precision: Precision, device: str) -> float | None:
    """Returns the operations per second that the device's maker promises; None where that is not known.

    In float32 it is known with TF32 alone, which has half the speed of bf16 on each of these GPUs.
    """
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = PEAKS_WITH_BF16.get(name)
    if precision == "fp16":
        peak = peak or PEAKS_WITHOUT_BF16.get(name)
    if precision == "float32":
        has_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        peak = peak / 2 if peak and has_tf32 else None
    return 1e12 * peak if peak else None


def say_if_peak_unknown(precision: Precision, device: str, reporter: Reporter) -> None:
    """Says why there will be no MFU, where a GPU's peak is not known."""
    if device == "cuda" and find_peak_flops(precision, device) is None:
        name = torch.cuda.get_device_name()
        reporter.say(f"no peak is known for {name} in {precision}: MFU (of its peak) is left empty")


@dataclass
class Meter:
    """Measures one epoch of a training."""

    num_rows: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items and adds up how long each was waited for."""
        remaining = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(remaining)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield item

    def summarise(
        self,
        model: ModelSettings,
        precision: Precision,
        device: str,
        *,
        num_devices: int = 1,
        images_per_row: float = 1.0,
    ) -> dict[str, float]:
        """Returns the columns of `throughput.csv`; NaN where the hardware's peak is not known.

        Images and MFU are those of all devices together, waiting and memory those of this process.
        """
        seconds = time.perf_counter() - self.started
        images = self.num_rows * images_per_row
        speed, peak = images / seconds, find_peak_flops(precision, device)
        return {
            "images": round(images),
            "seconds": seconds,
            "images_per_second": speed,
            "loader_wait_share": self.waited / seconds,
            "mfu": speed * count_flops(model, images_per_breast=images_per_row) / (num_devices * peak)
            if peak
            else float("nan"),
            "peak_memory_mb": _peak_memory_mb(device),
        }


def _peak_memory_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kB
