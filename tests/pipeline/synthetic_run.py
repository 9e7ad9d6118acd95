"""A finished run folder made of random numbers, for the tests of evaluation and report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.runs.run_folder import OOF_COLUMNS, Run


def make_oof(num_patients=60, num_folds=3, *, num_cancers=15, skill=1.0, seed=0):
    """Two breasts a patient, two images a breast; more `skill` separates the classes further."""
    generator = np.random.default_rng(seed)
    cancers = set(generator.choice(2 * num_patients, num_cancers, replace=False))
    rows = []
    for patient in range(num_patients):
        for side, laterality in enumerate("LR"):
            cancer = int(2 * patient + side in cancers)
            scores = generator.normal(skill * cancer - 2, 1) + generator.normal(0, 0.3, size=2)
            for score in scores:
                ids = (str(1_000_000 - len(rows)), str(patient), laterality)
                rows.append((patient % num_folds, *ids, cancer, 1 / (1 + np.exp(-score))))
    return pd.DataFrame(rows, columns=OOF_COLUMNS)


def add_exam_columns(oof, seed=0):
    """The columns of an exam table that RSNA has: by image the view, by patient the rest, with gaps."""
    generator = np.random.default_rng(seed)
    patients = sorted(oof["patient_id"].unique(), key=int)
    site = generator.integers(1, 3, len(patients))
    exams = pd.DataFrame(
        {
            "patient_id": patients,
            "site_id": site.astype(str),
            "machine_id": (10 * site + generator.integers(0, 2, len(patients))).astype(str),
            "age": np.where(
                generator.random(len(patients)) < 0.1, np.nan, generator.integers(35, 90, len(patients))
            ),
            "density": np.where(site == 1, generator.choice(list("ABCD"), len(patients)), None),
            "implant": generator.integers(0, 2, len(patients)).astype(str),
        }
    )
    view = np.where(oof.groupby(["patient_id", "laterality"]).cumcount() == 0, "CC", "MLO")
    return oof.assign(view=view).merge(exams, on="patient_id", how="left", validate="many_to_one")


def make_history(num_epochs, seed=0):
    """Losses that fall and a validation AUC that rises."""
    epochs = np.arange(1, num_epochs + 1)
    noise = np.random.default_rng(seed).normal(0, 0.02, size=(3, num_epochs))
    return pd.DataFrame(
        {
            "epoch": epochs,
            "step": epochs * 100,
            "learning_rate": 1e-3,
            "train_loss": 0.7 / np.sqrt(epochs) + noise[0],
            "val_loss": 0.7 / epochs**0.25 + noise[1],
            "val_pf1": 0.1,
            "val_auc": 0.8 - 0.3 / epochs + noise[2],
            "val_average_precision": 0.2,
        }
    )


def write_run(folder: Path, oof: pd.DataFrame, *, num_epochs=8) -> Run:
    """Writes what training leaves behind, without the weights."""
    run = Run(folder)
    folder.mkdir(parents=True)
    patients = oof.groupby(["patient_id", "fold"], as_index=False)["cancer"].agg(["size", "sum"])
    patients.columns = ["patient_id", "fold", "num_images", "num_cancers"]
    patients.to_csv(run.folds, index=False)
    run.settings.write_text('[model]\nname = "vit"\nembed_dim = 64\n\n[train]\nepochs = 8\nseed = 0\n')
    versions = {"python": "3.11.2", "packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "device": "cpu"}
    run.environment.write_text(json.dumps(versions))
    for fold, part in oof.groupby("fold"):
        run.fold(fold).folder.mkdir()
        part.to_csv(run.fold(fold).oof, index=False)
        make_history(num_epochs, seed=fold).to_csv(run.fold(fold).history, index=False)
    return run
