"""The batches of a test set on the machines of a Ray cluster.

Each is decoded and predicted as a whole in one process, with as many threads as this one would use, and so to
the same floats. A process keeps its models and its readers for the whole prediction, and decodes the next
batches while it computes.
"""

import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data_prep.errors import UserError
from data_prep.parallel.executor import Executor
from data_prep.parallel.ray_actors import map_in_actors
from data_prep.parallel.ray_cluster import Cluster, Needs
from data_prep.parallel.ray_worker import map_here
from pipeline.inference.image_sources import ImageSource, RowGroup
from pipeline.inference.journal import BatchRecord
from pipeline.inference.predict_test_set import PredictGroups, predict_locally
from pipeline.runs.run_folder import Run


class RayPredictor:
    """Has batches predicted on a cluster, one process per GPU; a `Predictor`.

    Without GPUs there is one for each as many CPUs as this process uses threads. `device` is where they
    compute: "cuda" if there are GPUs, unless another one is named.

    Attributes:
        num_readers: how many processes decode for each of them.
    """

    def __init__(self, cluster: Cluster, *, device: str | None = None) -> None:
        self._cluster = cluster
        if cluster.count("GPU"):
            self._needs, self._device = Needs(cluster.cpus_per_gpu(), 1.0), device or "cuda"
        else:
            threads = torch.get_num_threads()
            cpus = min(threads, int(cluster.largest("CPU", "CPU")) or threads)
            self._needs, self._device = Needs(cpus), device or "cpu"
        self.num_readers = max(1, self._needs.cpus)

    @property
    def read_with_all(self) -> Executor:
        """What decodes a batch's files where it is predicted."""
        return partial(map_here, readers=self.num_readers)

    def __call__(self, run: Run, source: ImageSource, *, flip: bool) -> PredictGroups:
        """Gives run and source away; no model is loaded here."""
        start = _Start(run, source, flip, self._device, torch.get_num_threads())

        def predict(groups: Sequence[RowGroup]) -> Generator[BatchRecord, None, None]:
            for outcome in map_in_actors(self._cluster, start, groups, needs=self._needs):
                if outcome.result is None:
                    raise UserError(
                        f"a batch could not be predicted: {outcome.message}; what was done is kept, go on "
                        "with the same command"
                    )
                yield outcome.result

        return predict


@dataclass(frozen=True)
class _Start:
    """Loads the models in a process of the cluster, and returns what predicts one batch with them."""

    run: Run
    source: ImageSource
    flip: bool
    device: str
    threads: int

    def __call__(self) -> Callable[[RowGroup], BatchRecord]:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"{socket.gethostname()}, a machine of the cluster, has a GPU that torch cannot use: ask "
                "`mammo doctor` there, or give its `ray start` the option --num-gpus 0"
            )
        predict = predict_locally(self.run, self.source, flip=self.flip, device=self.device)

        def predict_one(rows: RowGroup) -> BatchRecord:
            torch.set_num_threads(self.threads)  # of this thread, one of several
            (record,) = predict([rows])
            return record

        return predict_one
