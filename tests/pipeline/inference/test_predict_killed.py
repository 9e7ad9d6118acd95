"""Real `mammo predict` processes, killed or stopped at chosen moments: the next one leaves the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.storage.atomic import Journal
from pipeline.runs.run_folder import Run
from tests import forked
from tests.pipeline.tiny import make_exams, write_test_data

PROGRAM = """
import sys
from pathlib import Path
from data_prep.storage.atomic import Journal
from pipeline.__main__ import main
from pipeline.inference import predict_test_set
from pipeline.inference.ensemble import Ensemble
from tests.killing import die_in_call, write_half

name, number, kind = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))

predict_test_set.BATCH_SIZE = 2
if name == "model":
    die_in_call(Ensemble, "predict_each", number, kind=kind)
elif name == "journal":
    die_in_call(Journal, "append", number, kind=kind, half_done=write_half)
elif name == "rename":
    die_in_call(Path, "replace", number, kind=kind)
elif name == "end":
    die_in_call(Journal, "remove", number, kind=kind)
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images; one has no file, one is broken."""
    folder = write_test_data(tmp_path_factory.mktemp("killed") / "data", make_exams(4, split="test"))
    (folder / "test_images/1/101.png").unlink()
    (folder / "test_images/3/110.png").write_bytes(b"no image")
    return folder


def arguments(
    run: Run, folder: Path, out: Path, *, workers: int, moment: str = "never", number: int = 0, kind: int = 9
) -> list[str]:
    """Those of `PROGRAM`."""
    return [
        *[moment, str(number), str(kind), "predict", str(run.folder)],
        *["--data", str(folder), "--out", str(out), "--workers", str(workers)],
        *["--probabilities", "--allow-failures"],
    ]


def predict(
    run: Run, folder: Path, out: Path, *, workers: int, moment: str = "never", number: int = 0, kind: int = 9
) -> subprocess.CompletedProcess[str]:
    what = arguments(run, folder, out, workers=workers, moment=moment, number=number, kind=kind)
    finished = forked.run("-c", PROGRAM, *what)
    assert "Traceback" not in finished.stderr, finished.stderr
    return finished


@pytest.fixture(scope="module")
def expected(unbroken: Run, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a prediction leaves that nothing breaks."""
    place = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-c", PROGRAM, *arguments(unbroken, folder, place / "out.csv", workers=0)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    return left_in(place)


def left_in(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "workers"),
    [
        ("model", 1, 0),
        ("model", 4, 2),
        ("journal", 1, 0),
        ("journal", 5, 2),
        ("rename", 2, 0),
        ("end", 1, 2),
    ],
    ids=str,
)
def test_a_prediction_killed_at_any_moment_ends_with_the_same_bytes(
    unbroken: Run,
    folder: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    moment: str,
    number: int,
    workers: int,
) -> None:
    """In the model, half way through a line of the journal, before either table is there, at the very end."""
    assert sorted(expected) == ["out.csv", "out_breasts.csv", "out_failures.csv", "out_images.csv"]
    out = tmp_path / "out.csv"
    killed = predict(unbroken, folder, out, workers=workers, moment=moment, number=number)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out.csv.partial").exists()
    assert predict(unbroken, folder, out, workers=workers).returncode == 0
    for path in tmp_path.glob(".tmp-*"):  # a killed writer's, which says so in its name
        path.unlink()
    assert left_in(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_prediction_that_is_stopped_says_how_to_go_on_and_does(
    unbroken: Run, folder: Path, expected: dict[str, bytes], tmp_path: Path, number: int, exit_code: int
) -> None:
    out = tmp_path / "out.csv"
    stopped = predict(unbroken, folder, out, workers=2, moment="model", number=3, kind=number)
    assert stopped.returncode == exit_code
    name = signal.Signals(number).name
    assert f"mammo: stopped by {name}; what was done is kept, go on with: mammo " in stopped.stderr
    assert len(Journal(tmp_path / "out.csv.partial").read()) in {3, 4}  # the batch in hand is finished
    assert predict(unbroken, folder, out, workers=2).returncode == 0
    assert left_in(tmp_path) == expected
