"""The batches of a test set on the machines of a Ray cluster.

Each is decoded and predicted as a whole where there is room for it, with as many threads as this process
would use, and so to the same floats.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from data_prep.errors import UserError
from data_prep.parallel.executor import Executor
from data_prep.parallel.ray_cluster import Cluster, Needs
from data_prep.parallel.ray_worker import map_here
from pipeline.inference.image_sources import ImageSource, RowGroup
from pipeline.inference.predict_test_set import BatchRecord, PredictGroups, predict_locally
from pipeline.runs.run_folder import Run

READERS_PER_GPU = 4  # processes that decode for one GPU


class RayPredictor:
    """Has batches predicted on a cluster; a `Predictor`.

    Attributes:
        num_readers: how many processes decode for each batch.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._gpus = float(cluster.count("GPU") > 0)
        wanted = READERS_PER_GPU if self._gpus else torch.get_num_threads()
        self.num_readers = min(wanted, int(cluster.largest("CPU", "GPU" if self._gpus else "CPU")) or wanted)

    @property
    def read_with_all(self) -> Executor:
        """What decodes a batch's files where it is predicted."""
        return partial(map_here, readers=self.num_readers)

    def __call__(self, run: Run, source: ImageSource, *, flip: bool) -> PredictGroups:
        """Gives run and source away; no model is loaded here."""
        device = "cuda" if self._gpus else "cpu"
        prediction = _BatchPrediction(run, source, flip, device, torch.get_num_threads())
        needs = Needs(self.num_readers, self._gpus)

        def predict(groups: Sequence[RowGroup]) -> Generator[BatchRecord, None, None]:
            for outcome in self._cluster.map_whole(prediction, groups, needs=needs):
                if outcome.result is None:
                    raise UserError(
                        f"a batch could not be predicted: {outcome.message}; what was done is kept, go on "
                        "with the same command"
                    )
                yield outcome.result

        return predict


@dataclass
class _BatchPrediction:
    """Predicts one batch on a machine of the cluster, and keeps the models for the next."""

    run: Run
    source: ImageSource
    flip: bool
    device: str
    threads: int

    @cached_property
    def _predict(self) -> PredictGroups:
        return predict_locally(self.run, self.source, flip=self.flip, device=self.device)

    def __call__(self, rows: RowGroup) -> BatchRecord:
        torch.set_num_threads(self.threads)
        (record,) = self._predict([rows])
        return record
