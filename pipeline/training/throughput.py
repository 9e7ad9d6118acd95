"""How well a training uses its machine: speed, waiting for images, MFU, memory."""

import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from pipeline.runs.recipe import ModelSettings, Precision

TENSOR_CORES = {"H100 80GB HBM3": 989.0, "H100 PCIe": 756.0, "H200": 989.0, "A100": 312.0}
PEAK_TFLOPS = {  # dense, from the makers' data sheets
    "bf16": TENSOR_CORES,
    "fp16": TENSOR_CORES | {"Tesla V100": 125.0, "Tesla T4": 65.0, "Tesla P100": 18.7},
}

Item = TypeVar("Item")


def count_flops(model: ModelSettings) -> float:
    """Returns the floating-point operations of a training step per image: three times the forward pass's.

    Counted are the matrix products, a multiplication and an addition each; what gradient checkpointing
    computes again is not (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
    """
    T, D = model.num_tokens, model.width
    dense = 2 * T * D * (4 * D + 2 * int(model.mlp_ratio * D))  # qkv and projection, both layers of the MLP
    attention = 2 * 2 * T * T * D
    patches = 2 * (T - 1) * D * model.in_channels * model.patch_size**2
    return 3.0 * (model.depth * (dense + attention) + patches)


def find_peak_flops(precision: Precision, device: str) -> float | None:
    """Returns the operations per second that the device's maker promises; None where that is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peaks = [peak for part, peak in PEAK_TFLOPS.get(precision, {}).items() if part in name]
    return 1e12 * peaks[0] if peaks else None


@dataclass
class Meter:
    """Measures one epoch of a training."""

    num_images: int = 0
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
        self, model: ModelSettings, precision: Precision, device: str, *, num_devices: int = 1
    ) -> dict[str, float]:
        """Returns the columns of `throughput.csv`; NaN where the hardware's peak is not known.

        Images and MFU are those of all devices together, waiting and memory those of this process.
        """
        seconds = time.perf_counter() - self.started
        speed, peak = self.num_images / seconds, find_peak_flops(precision, device)
        return {
            "images": self.num_images,
            "seconds": seconds,
            "images_per_second": speed,
            "loader_wait_share": self.waited / seconds,
            "mfu": speed * count_flops(model) / (num_devices * peak) if peak else float("nan"),
            "peak_memory_mb": _peak_memory_mb(device),
        }


def _peak_memory_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kB
