"""Batches of a test set on the machines of a Ray cluster: the same CSV, whatever becomes of a node."""

import shutil
import signal
from pathlib import Path

import pytest

from data_prep.cache.folder import Cache
from data_prep.storage.atomic import Journal
from pipeline.experiment import evaluate_and_report
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.forked import Forked
from tests.pipeline.tiny import make_exams, make_fused_recipe, quiet, write_cache, write_test_data
from tests.ray_nodes import Nodes, wait_until

pytestmark = pytest.mark.slow

EXAMS = make_exams(120, split="test")  # fifteen batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image has no file, one is broken."""
    folder = write_test_data(tmp_path_factory.mktemp("spread") / "data", EXAMS)
    (folder / "test_images/1/101.png").unlink()
    (folder / "test_images/3/110.png").write_bytes(b"no image")
    return folder


def predict(run: Run, out: Path, *options: str) -> Forked:
    command = ["-m", "pipeline", "predict", str(run.folder), "--out", str(out), *options]
    return Forked(*command, "--probabilities", "--allow-failures", new_session=True)


def finish(prediction: Forked, place: Path) -> dict[str, bytes]:
    with prediction:
        _, errors = prediction.communicate(timeout=600)
    assert prediction.returncode == 0, errors
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.fixture(scope="module")
def expected(unbroken: Run, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine writes."""
    place = tmp_path_factory.mktemp("whole")
    return finish(predict(unbroken, place / "out.csv", "--data", str(folder), "--workers", "0"), place)


def wait_for_batches(prediction: Forked, out: Path, count: int) -> None:
    """Waits until so many batches are answered, and others are not."""
    journal = Journal(out.with_name(f"{out.name}.partial"))
    wait_until(lambda: prediction.poll() is not None or len(journal.read()) > count)
    assert prediction.poll() is None, prediction.communicate()


def test_a_prediction_loses_a_node_is_stopped_and_goes_on_to_the_same_bytes(
    nodes: Nodes, unbroken: Run, folder: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    nodes.have(2)
    out = tmp_path / "out.csv"
    options = ("--data", str(folder), "--engine", "ray", "--address", nodes.address)
    with predict(unbroken, out, *options) as prediction:
        wait_for_batches(prediction, out, 1)
        nodes.lose()
        wait_for_batches(prediction, out, 3)
        prediction.send_signal(signal.SIGTERM)
        _, errors = prediction.communicate(timeout=600)
    assert prediction.returncode == 143, errors
    assert "what was done is kept, go on with: mammo predict" in errors
    assert finish(predict(unbroken, out, *options), tmp_path) == expected


def test_a_cache_is_predicted_to_the_same_bytes(nodes: Nodes, unbroken: Run, tmp_path: Path) -> None:
    nodes.have(1)
    exams = EXAMS[:80]
    cache = write_cache(tmp_path / "cache", exams, failed=[exams["image_id"].iloc[3]])
    (tmp_path / "ray").mkdir()
    (tmp_path / "here").mkdir()
    options = ("--cache", str(cache.folder))
    here = finish(predict(unbroken, tmp_path / "here/out.csv", *options), tmp_path / "here")
    options = (*options, "--engine", "ray", "--address", nodes.address)
    assert finish(predict(unbroken, tmp_path / "ray/out.csv", *options), tmp_path / "ray") == here


def test_whole_breasts_are_predicted_to_the_same_bytes(nodes: Nodes, cache: Cache, tmp_path: Path) -> None:
    nodes.have(1)
    run = Run(tmp_path / "run")
    cross_validate(make_fused_recipe("exam", epochs=1), cache, run, reporter=quiet())
    exams = EXAMS[:80]
    test = write_cache(tmp_path / "cache", exams, failed=[exams["image_id"].iloc[3]])
    (tmp_path / "ray").mkdir()
    (tmp_path / "here").mkdir()
    options = ("--cache", str(test.folder))
    here = finish(predict(run, tmp_path / "here/out.csv", *options), tmp_path / "here")
    options = (*options, "--engine", "ray", "--address", nodes.address)
    assert finish(predict(run, tmp_path / "ray/out.csv", *options), tmp_path / "ray") == here


def test_a_run_is_judged_elsewhere_to_the_same_bytes(nodes: Nodes, unbroken: Run, tmp_path: Path) -> None:
    """By `mammo evaluate RUN --data`; all but the lock of the folder."""
    nodes.have(1)
    exams = make_exams(20, 6)
    data = write_test_data(tmp_path / "north", exams.assign(patient_id="h" + exams["patient_id"]))
    judged, left = Run(Path(shutil.copytree(unbroken.folder, tmp_path / "judged"))), []
    evaluate_and_report(judged, reporter=quiet())
    for engine in ([], ["--engine", "ray", "--address", nodes.address]):
        run = Run(Path(shutil.copytree(judged.folder, tmp_path / f"run{len(left)}" / "run")))
        with Forked("-m", "pipeline", "evaluate", str(run.folder), "--data", str(data), *engine) as judging:
            _, errors = judging.communicate(timeout=600)
        assert judging.returncode == 0, errors
        folder = run.external("north").folder
        left.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"})
    assert left[0] == left[1]
