"""Where a run's models predict: in this process, or on the machines of a cluster."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.parallel.executor import Executor, map_unordered
from pipeline.inference.predict_test_set import Predictor, predict_locally
from pipeline.runtime.gpu_memory import WAY_OUT_OF_PREDICTION, explain_out_of_memory

if TYPE_CHECKING:
    from data_prep.parallel.ray_cluster import Cluster


@dataclass(frozen=True)
class PredictionEngine:
    """What predicts, what decodes for it, and by how many processes.

    Attributes:
        workers: that decode or load; 0 works in the process that predicts.
    """

    predictor: Predictor
    executor: Executor
    workers: int


@contextmanager
def open_engine(
    cluster: "AbstractContextManager[Cluster | None] | None", *, workers: int, reads_files: bool
) -> Iterator[PredictionEngine]:
    """Enters the cluster, or takes this machine; a GPU whose memory is full is explained.

    Args:
        cluster: None, given or yielded, is this machine.
        workers: as asked for this machine.
        reads_files: whether images are decoded from files, not read from a cache.
    """
    explained = explain_out_of_memory("prediction", WAY_OUT_OF_PREDICTION)
    with explained, cluster or nullcontext() as connected:
        if connected is None:
            yield PredictionEngine(predict_locally, map_unordered, workers)
            return
        from pipeline.inference.ray_batches import RayPredictor  # noqa: PLC0415  an optional extra

        on_ray = RayPredictor(connected)
        yield PredictionEngine(on_ray, on_ray.read_with_all, on_ray.num_readers if reads_files else 0)
