"""How many processes load and augment the images of a training."""

import shutil

from data_prep.errors import UserError
from data_prep.parallel.resource_limits import SHARED_MEMORY, count_cores
from pipeline.runs.recipe import Recipe
from pipeline.runtime.torchrun import count_local_processes

MOST_BESIDE_A_GPU = 16
MOST_BESIDE_A_CPU = 2  # which computes for seconds on a batch that is loaded in a tenth of one
WAITING_PER_WORKER = 2  # batches, torch's prefetch_factor
IMAGES_PER_ROW = {"none": 1, "views": 2, "exam": 4}  # by model.fusion, as screening has them
BATCH_SIZE = 32  # held-out images, as `pipeline.inference.ensemble` has it


def choose_workers(recipe: Recipe, device: str, *, world_size: int = 1) -> int:
    """Returns the number that the recipe says; for "auto" one for each core of this process but its own.

    Cores and shared memory are divided by the processes that torchrun has started here. No more images are
    loaded than `device` can take, and no more batches than fit into half of the shared memory, of which
    containers often have 64 MB. Without room for any, the training process loads them itself.

    Raises:
        UserError: if the recipe's number needs more shared memory than there is, so that a worker would hang.
    """
    wanted, num_processes = recipe.train.workers, count_local_processes()
    free = _count_shared_bytes() / num_processes
    size = _count_bytes(recipe, world_size)
    if not isinstance(wanted, str):
        needed = (WAITING_PER_WORKER * wanted + 1) * size
        if wanted and needed > free:
            raise UserError(
                f"train.workers {wanted} may need {needed / 1e6:,.0f} MB of {SHARED_MEMORY}, which has "
                f'{free / 1e6:,.0f} MB for each process: set it to "auto", or give a container more '
                "(docker run --shm-size 8g)"
            )
        return wanted
    most = MOST_BESIDE_A_GPU if device == "cuda" else MOST_BESIDE_A_CPU
    room = (free / 2 / size - 1) / WAITING_PER_WORKER
    return int(max(0, min(most, count_cores() // num_processes - 1, room)))


def _count_bytes(recipe: Recipe, world_size: int) -> int:
    """Returns the size of a part of a batch and of a held-out batch, whose loaders live together."""
    model, parts = recipe.model, world_size * recipe.train.accumulation
    num_images = -(-recipe.train.batch_size // parts) * IMAGES_PER_ROW[model.fusion] + BATCH_SIZE
    return num_images * model.in_channels * model.image_size**2 * recipe.prepare.bit_depth // 8


def _count_shared_bytes() -> float:
    """Returns how much is free, without a limit where workers use something else."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else float("inf")
