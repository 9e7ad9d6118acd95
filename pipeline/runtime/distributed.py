"""The processes that train one model together, as `torchrun` starts them.

A rank is such a process. All collectives are sums, so nothing but numbers goes over the network.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.runtime.gpu_memory import is_out_of_memory
from pipeline.runtime.torchrun import is_under_torchrun


class RankLost(UserError):
    """Another process of the training has ended, so that this one cannot go on."""


SEPARATE_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Must be 1 where torchrun itself starts, or its restarts hang on the store of the killed processes."""


PATIENCE = timedelta(hours=6)
"""How long the others may wait for the main process, which alone reads, checks and downloads at first."""

GPU_PATIENCE = timedelta(minutes=10)
"""How long GPUs may wait for one another's gradients. All ranks have agreed on the step just before, without
their GPUs, so that only a GPU or a link that has failed takes longer than a step."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: this process's number, from 0, that of the main process, which alone writes files and speaks.
        world_size: how many there are.
        of_gpus: torch's group for what the GPUs add up; None where that is the CPUs' own.
    """

    rank: int = 0
    world_size: int = 1
    of_gpus: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: ArrayLike) -> NDArray[np.float64]:
        """Returns the sums over all ranks, the same in each; the values must have one shape everywhere.

        Raises:
            RankLost: if another rank has ended.
        """
        total = torch.from_numpy(np.array(values, np.float64))
        self._add_up(total)
        return total.numpy()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over all ranks.

        In one piece and always the same order, which DistributedDataParallel's buckets would not keep when a
        training goes on; so it ends with the same weights.

        Raises:
            RankLost: if another rank has ended.
        """
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._add_up(flat, self.of_gpus)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Lets the main process through the block before the others; if it fails there, they never enter."""
        if not self.is_main:
            self.sum(0)
        yield
        if self.is_main:
            self.sum(0)

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """Returns this rank's part of the rows; all parts together are the rows, in their order."""
        bounds = [len(rows) * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return rows[bounds[0] : bounds[1]]

    def _add_up(self, total: Tensor, group: dist.ProcessGroup | None = None) -> None:
        if self.world_size == 1:
            return
        try:
            dist.all_reduce(total, group=group)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RankLost(
                "another process of this training has ended or does not answer: its own message says why; "
                f"what was saved is kept, go on with the same command ({str(error).splitlines()[0]})"
            ) from error


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """Joins the ranks that `torchrun` has started, each with a GPU of its own if there are any.

    Without torchrun this process is alone, and torch.distributed is not touched.

    Raises:
        UserError: if there are more processes than GPUs.
    """
    if not is_under_torchrun():
        yield SINGLE_PROCESS
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(_choose_gpu())
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        of_gpus = dist.new_group(backend="nccl", timeout=GPU_PATIENCE) if has_gpus else None
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), of_gpus)
    finally:
        dist.destroy_process_group()


def _choose_gpu() -> int:
    local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise UserError(
            f"torchrun has started {os.environ['LOCAL_WORLD_SIZE']} processes here for {num_gpus} GPUs: "
            f"give --nproc-per-node {num_gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return local_rank


def warn_of_restarts() -> str:
    """Returns what is wrong if torchrun would hang at its first restart, else nothing."""
    may_restart = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if not may_restart or os.environ.get(SEPARATE_STORE) == "1":
        return ""
    return (
        f"warning: torchrun --max-restarts hangs after a process was killed unless {SEPARATE_STORE}=1 is set "
        f"before torchrun starts: export {SEPARATE_STORE}=1"
    )
