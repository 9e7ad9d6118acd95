"""A GPU whose memory is full: one sentence with a way out, in the place of torch's error."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from data_prep.errors import UserError
from pipeline.runs.recipe import Recipe

OTHER_SIGNS = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch says where the driver or a library finds no memory, and not torch's own allocator."""
WORTH_SAYING = 0.1  # of the GPU's memory, if others hold it: a process takes some hundred MB before any work
WAY_OUT_OF_PREDICTION = (
    "what was done is kept, run the same command again when no other program needs the GPU, with "
    "CUDA_VISIBLE_DEVICES=1 in front for the second GPU, or with CUDA_VISIBLE_DEVICES= for the CPU"
)
"""A batch of prediction has a fixed size, and what is kept of it does not depend on the device."""


class GpuMemoryFull(UserError):
    """The memory of a GPU is full; what was saved is kept."""

    exit_code = 3  # as of all that stops a training


@contextmanager
def explain_out_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Puts one sentence in the place of torch's error; `what` needed the memory.

    Raises:
        GpuMemoryFull: where torch, the driver or a library found no memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise GpuMemoryFull(f"{what}: the memory of {_describe_gpu()} is full: {way_out}") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that a GPU has not enough memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OTHER_SIGNS)


def explain_full_training(
    name: str, recipe: Recipe, *, world_size: int = 1, is_saved: bool = True
) -> AbstractContextManager[None]:
    """Explains as `explain_out_of_memory` does, for a training of that name in so many processes."""
    settings, kept = recipe.train, "what was saved is kept, " if is_saved else ""
    return explain_out_of_memory(
        f"{name} with train.batch_size {settings.batch_size} and train.accumulation {settings.accumulation}",
        kept + advise_training(recipe, world_size=world_size),
    )


def advise_training(recipe: Recipe, *, world_size: int = 1) -> str:
    """Returns what lets a training go on with less memory; no run forbids it, whether it has begun or not."""
    settings, parts = recipe.train, 2 * recipe.train.accumulation
    if 2 * parts * world_size <= settings.batch_size:  # two images each, as some batches may be smaller
        change = f"--set train.accumulation={parts}, which takes the same batches in smaller parts"
    elif not recipe.model.gradient_checkpointing:
        change = "--set model.gradient_checkpointing=true, which takes a third more time"
    else:
        return "take a GPU with more memory, or another --run with a smaller model"
    return f"run the same command with {change}, or another --run with a smaller train.batch_size"


def _describe_gpu() -> str:
    if not torch.cuda.is_available():
        return "the GPU"
    free, total = torch.cuda.mem_get_info()
    return describe_memory(
        torch.cuda.get_device_name(), total=total, free=free, own=torch.cuda.memory_reserved()
    )


def describe_memory(name: str, *, total: int, free: int, own: int) -> str:
    """Returns a GPU's name and memory, given bytes, and what other programs hold of it if that is much."""
    others = total - free - own
    held = f", {others / 1e9:.0f} GB of them held by other programs" if others > WORTH_SAYING * total else ""
    return f"{name} ({total / 1e9:.0f} GB{held})"
