"""The batches of a test set on the machines of a Ray cluster. Knows no journal, no metric and no ray.

Each is decoded and answered as a whole where there is room for it, with as many threads as this process would
use, and so to the same floats.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from data_prep.cluster import Cluster, Needs
from data_prep.errors import UserError
from pipeline.image_sources import ImageSource, Rows
from pipeline.inference import Answer, Record, ask_here
from pipeline.run import Run

MOST_READERS = 4  # processes that decode for one GPU


class SpreadBatches:
    """Has batches answered on a cluster; a `Responder`.

    Attributes:
        num_readers: how many processes decode for each batch.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._gpus = float(cluster.count("GPU") > 0)
        wanted = MOST_READERS if self._gpus else torch.get_num_threads()
        self.num_readers = min(wanted, int(cluster.largest("CPU", "GPU" if self._gpus else "CPU")) or wanted)

    def __call__(self, run: Run, source: ImageSource, *, flip: bool) -> Answer:
        """Gives run and source away; no model is loaded here."""
        device = "cuda" if self._gpus else "cpu"
        asking = _Asking(run, source, flip, device, torch.get_num_threads())
        needs = Needs(self.num_readers, self._gpus)

        def answer(groups: Sequence[Rows]) -> Generator[Record, None, None]:
            for outcome in self._cluster.map_whole(asking, groups, needs=needs):
                if outcome.result is None:
                    raise UserError(
                        f"a batch could not be predicted: {outcome.message}; what was done is kept, go on "
                        "with the same command"
                    )
                yield outcome.result

        return answer


@dataclass
class _Asking:
    """Answers one batch on a machine of the cluster, and keeps the models for the next."""

    run: Run
    source: ImageSource
    flip: bool
    device: str
    threads: int

    @cached_property
    def _answer(self) -> Answer:
        return ask_here(self.run, self.source, flip=self.flip, device=self.device)

    def __call__(self, rows: Rows) -> Record:
        torch.set_num_threads(self.threads)
        (record,) = self._answer([rows])
        return record
