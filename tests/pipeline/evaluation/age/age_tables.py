"""Out-of-fold predictions of women of whom age and pixels each tell something, for the tests of age."""

import numpy as np
import pandas as pd

from pipeline.evaluation.age.age_regression import read_ages
from pipeline.evaluation.external.case_tables import FOLD_PROBABILITY


def make_oof_of_ages(num_patients=1500, *, by_age=0.8, by_pixels=1.0, unknown=0.1, num_folds=3, seed=0):
    """Two breasts a woman, two images a breast; the log-odds rise by `by_age` in ten years."""
    generator = np.random.default_rng(seed)
    ages = generator.integers(40, 86, num_patients).astype(float)
    rows = []
    for patient, age in enumerate(ages):
        for laterality in "LR":
            cancer = int(generator.random() < 1 / (1 + np.exp(3.5 - by_age * (age - 60) / 10)))
            score = generator.normal(by_pixels * cancer - 2)
            for view in ("CC", "MLO"):
                probability = 1 / (1 + np.exp(-score - generator.normal(0, 0.3)))
                ids = (str(len(rows)), str(patient), laterality)
                rows.append((patient % num_folds, *ids, cancer, probability, view, age))
    columns = ["fold", "image_id", "patient_id", "laterality", "cancer", "probability", "view", "age"]
    table = pd.DataFrame(rows, columns=columns)
    lost = generator.random(num_patients) < unknown
    return table.assign(age=table["age"].mask(lost[table["patient_id"].astype(int)]))


def shuffle_ages(oof, seed=1):
    """Every woman gets the age of another one."""
    by_patient = pd.Series(read_ages(oof), index=oof["patient_id"]).groupby(level=0).first()
    shuffled = pd.Series(by_patient.sample(frac=1, random_state=seed).to_numpy(), index=by_patient.index)
    return oof.assign(age=oof["patient_id"].map(shuffled))


def as_ensemble(oof, num_folds=3):
    """The same images as predictions of all folds' models together, who say the same."""
    of_folds = {f"{FOLD_PROBABILITY}{fold}": oof["probability"] for fold in range(num_folds)}
    return oof.assign(fold=0, **of_folds)
