"""Real processes of `mammo evaluate RUN --data`, killed at moments: the next one leaves the same bytes."""

import shutil
import signal
from pathlib import Path

import pytest

from pipeline.experiment import evaluate_and_report
from pipeline.runs.run_folder import Run
from tests import forked
from tests.pipeline.tiny import make_exams, quiet, write_test_data

PROGRAM = """
import sys
from pathlib import Path
from data_prep.storage.atomic import Journal
from pipeline import external
from pipeline.__main__ import main
from pipeline.inference import predict_test_set
from pipeline.inference.ensemble import Ensemble
from tests.killing import die_in_call, write_half

name, number = sys.argv.pop(1), int(sys.argv.pop(1))

predict_test_set.BATCH_SIZE = 4
if name == "model":
    die_in_call(Ensemble, "predict_each", number)
elif name == "journal":
    die_in_call(Journal, "append", number, half_done=write_half)
elif name == "rename":
    die_in_call(Path, "replace", number)
elif name == "judging":
    die_in_call(external, "judge_external", number)
main()
"""


@pytest.fixture(scope="module")
def place(unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated `run`, and `north`, twenty images of other women, of which one is broken."""
    place = tmp_path_factory.mktemp("killed")
    run = Run(Path(shutil.copytree(unbroken.folder, place / "run")))
    evaluate_and_report(run, reporter=quiet())
    exams = make_exams(5, 2)
    others = exams.assign(
        patient_id="h" + exams["patient_id"],
        image_id=(exams["image_id"].astype(int) + 5000).astype(str),
        prediction_id="h" + exams["prediction_id"],
    )
    data = write_test_data(place / "north", others)
    (data / "train_images/h3/5110.png").write_bytes(b"no image")
    return place


def judge(run: Run, place: Path, *, moment: str = "never", number: int = 0, workers: int = 0) -> int:
    command = ["evaluate", str(run.folder), "--data", str(place / "north"), "--workers", str(workers)]
    ended = forked.run("-c", PROGRAM, moment, str(number), *command, "--allow-failures")
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode


def left_in(run: Run) -> dict[str, bytes]:
    folder = run.external("north").folder
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def expected(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an evaluation leaves that nothing breaks."""
    run = Run(Path(shutil.copytree(place / "run", tmp_path_factory.mktemp("whole") / "run")))
    assert judge(run, place) == 0
    return left_in(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "workers"),
    [("model", 2, 0), ("journal", 4, 2), ("judging", 1, 0), ("rename", 3, 0), ("rename", 9, 2)],
    ids=str,
)
def test_an_evaluation_killed_at_any_moment_ends_with_the_same_bytes(
    place: Path, expected: dict[str, bytes], tmp_path: Path, moment: str, number: int, workers: int
) -> None:
    """In the model, half way through a line of the journal, before judging, before and amid the tables."""
    run = Run(Path(shutil.copytree(place / "run", tmp_path / "run")))
    assert judge(run, place, moment=moment, number=number, workers=workers) == -signal.SIGKILL
    assert judge(run, place, workers=workers) == 0
    assert left_in(run) == expected
