"""The whole pipeline on twelve phantom patients, as a user would run it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from data_prep.phantom.dataset import write_phantoms
from tests.forked import run

TINY = [
    *("--set", "model.width=16", "--set", "model.depth=1", "--set", "model.num_heads=2"),
    *("--set", "train.epochs=1", "--set", "train.workers=0", "--set", "train.batch_size=8"),
]


def mammo(*arguments: str | Path, folder: Path, exit_code: int = 0) -> str:
    """Runs the command in a folder and returns what it printed."""
    done = run("-m", "pipeline", *map(str, arguments), cwd=folder)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_twelve_patients_become_a_report_and_a_valid_submission(tmp_path: Path) -> None:
    configs = Path(__file__).parents[1] / "configs"
    data = tmp_path / "data"
    write_phantoms(data, num_patients=12, seed=1)
    broken = next((data / "test_images").rglob("*.dcm"))
    broken.write_bytes(broken.read_bytes()[:2000])

    mammo("prepare", "data", "--cache", "cache", folder=tmp_path)
    images = list((tmp_path / "cache/images").rglob("*.png"))
    assert len(images) == 48
    assert {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in images} == {(512, 512)}

    printed = mammo(
        *("train", configs / "smoke.toml", "--cache", "cache", "--run", "run", "--set", "train.num_folds=3"),
        *TINY,
        folder=tmp_path,
    )
    assert "all folds" in printed
    exams = pd.read_csv(data / "train.csv")
    oof = pd.read_csv(tmp_path / "run/oof.csv")
    assert sorted(oof["image_id"]) == sorted(exams["image_id"])
    assert oof.groupby("patient_id")["fold"].nunique().max() == 1
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1, 2]
    assert metrics["pooled"]["num_breasts"] == 24
    assert len(pd.read_csv(tmp_path / "run/fold_metrics.csv")) == 3
    assert "<svg" in (tmp_path / "run/report.html").read_text()

    answers = ["--probabilities", "--out", "submission.csv"]  # such a model may give one answer to all
    mammo("predict", "run", "--data", "data", *answers, folder=tmp_path, exit_code=1)
    submission = pd.read_csv(tmp_path / "submission.csv")
    tests = pd.read_csv(data / "test.csv")
    assert sorted(submission["prediction_id"]) == sorted(tests["prediction_id"].unique())
    assert np.isfinite(submission["cancer"]).all()
    assert pd.read_csv(tmp_path / "submission_failures.csv")["image_id"].tolist() == [int(broken.stem)]
    mammo("check", "submission.csv", "--data", "data", folder=tmp_path)
