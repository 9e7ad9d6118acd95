"""Batches of a test set on a Ray cluster with GPUs, which here Ray alone believes in."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from data_prep.errors import UserError
from data_prep.parallel.executor import Executor, Outcome
from data_prep.parallel.ray_cluster import Cluster, connect
from pipeline.inference import ray_batches
from pipeline.inference.predict_test_set import predict_folder
from pipeline.inference.ray_batches import RayPredictor
from pipeline.runs.run_folder import Run
from tests.pipeline.tiny import make_exams, quiet, write_test_data
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow

EXAMS = make_exams(64, split="test")  # eight batches
GPUS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_data(tmp_path_factory.mktemp("gpus") / "data", EXAMS)


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    """A machine with two GPUs and three cores, among others without GPUs."""
    with nodes.joined(cpus=3, gpus=GPUS), connect(nodes.address) as cluster:
        yield cluster


@dataclass(frozen=True)
class Noting:
    """An executor that notes its process for each batch, and each file's; none works before all do."""

    folder: Path
    executor: Executor

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, workers: int, ahead: int = 0
    ) -> Iterator[Outcome[Any, Any]]:
        self.note("batches")
        wait_until(lambda: len(self.count("batches")) == GPUS)
        yield from self.executor(partial(self.run, function), items, workers=workers, ahead=ahead)

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        self.note("files")
        return function(item)

    def note(self, kind: str) -> None:
        with (self.folder / f"{kind} {os.getpid()}").open("a") as stream:
            stream.write("x")

    def count(self, kind: str) -> list[int]:
        """How many each process has had."""
        return [len(path.read_text()) for path in self.folder.glob(f"{kind} *")]


def test_each_gpu_has_one_process_for_the_whole_prediction(
    cluster: Cluster, unbroken: Run, folder: Path, tmp_path: Path
) -> None:
    """Which keeps its readers, one for each whole core that is its share; the floats are those of here."""
    here = predict_folder(unbroken, folder, workers=0, reporter=quiet())
    predictor = RayPredictor(cluster, device="cpu")
    noting = Noting(tmp_path, predictor.read_with_all)
    there = predict_folder(
        unbroken,
        folder,
        workers=predictor.num_readers,
        reporter=quiet(),
        predictor=predictor,
        executor=noting,
    )
    pd.testing.assert_frame_equal(there.images, here.images, check_exact=True)
    assert (len(noting.count("batches")), sum(noting.count("batches"))) == (GPUS, 8)
    assert (len(noting.count("files")), sum(noting.count("files"))) == (GPUS, len(EXAMS))


def test_a_gpu_that_torch_cannot_use_is_one_sentence(
    unbroken: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def map_here(cluster: object, make: Callable[[], Any], items: Iterable[Any], *, needs: object) -> Any:
        return map(make(), items)

    monkeypatch.setattr(ray_batches, "map_in_actors", map_here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cluster = SimpleNamespace(count=lambda resource: 1, cpus_per_gpu=lambda: 1)
    with pytest.raises(UserError, match="has a GPU that torch cannot use: ask `mammo doctor` there"):
        predict_folder(unbroken, folder, workers=1, reporter=quiet(), predictor=RayPredictor(cluster))
