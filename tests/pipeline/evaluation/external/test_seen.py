"""Whom a run has learned from: by itself, and by the weights that it started from."""

from pathlib import Path

import pandas as pd

from data_prep.settings import dump_settings
from pipeline.evaluation.external.seen import (
    PICTURE_COLUMNS,
    find_seen_patients,
    find_seen_pictures,
    read_learned,
)
from pipeline.runs.run_folder import Run
from tests.pipeline.tiny import make_recipe


def write_run(folder: Path, patient: str, image: str, *, init: str = "") -> Run:
    run = Run(folder)
    folder.mkdir()
    run.settings.write_text(dump_settings(make_recipe(init=init)))
    folds = pd.DataFrame({"patient_id": [patient], "fold": [0], "num_images": [1], "num_cancers": [0]})
    folds.to_csv(run.folds, index=False)
    checksums = dict.fromkeys(PICTURE_COLUMNS[2:], f"sum of {image}")
    pd.DataFrame([{"patient_id": patient, "image_id": image, **checksums}]).to_csv(run.pictures, index=False)
    return run


def test_patients_and_pictures_of_earlier_runs_count_as_seen(tmp_path: Path) -> None:
    older = write_run(tmp_path / "older", "1", "11")
    run = write_run(tmp_path / "run", "2", "22", init=str(older.folder))
    learned = read_learned(run, pd.DataFrame({"patient_id": ["2"], "image_id": ["22"]}))
    exams = pd.DataFrame({"patient_id": ["1", "2", "3"]})
    assert find_seen_patients(exams, learned.patients)["patient_id"].tolist() == ["1", "2"]
    checksums = dict.fromkeys(PICTURE_COLUMNS[2:], "sum of 11")
    manifest = pd.DataFrame([{"patient_id": "3", "image_id": "33", "status": "prepared", "contrast": 9.0}])
    seen = find_seen_pictures(manifest.assign(**checksums), learned)
    assert seen[["patient_id", "run_patient_id", "run_image_id"]].to_numpy().tolist() == [["3", "1", "11"]]
    assert learned.unknown == ""


def test_weights_that_nobody_knows_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "2", "22", init=str(tmp_path / "weights.pth"))
    learned = read_learned(run, pd.DataFrame({"patient_id": ["2"], "image_id": ["22"]}))
    assert learned.patients == ["2"]
    assert "have learned from" in learned.unknown
