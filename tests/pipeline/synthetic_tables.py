"""Tables of predictions made of random numbers, for the tests of figures, intervals and calibration."""

import numpy as np
import pandas as pd


def make_breasts(num_patients=200, num_cancers=20, *, num_folds=4, skill=1.0, seed=0):
    """Two breasts a patient; those with cancer tend to higher probabilities."""
    generator = np.random.default_rng(seed)
    cancer = np.zeros(2 * num_patients, dtype=int)
    cancer[generator.choice(2 * num_patients, num_cancers, replace=False)] = 1
    score = generator.normal(size=2 * num_patients) + skill * cancer - 1
    patient = np.repeat(np.arange(num_patients), 2)
    return pd.DataFrame(
        {
            "patient_id": patient.astype(str),
            "laterality": ["L", "R"] * num_patients,
            "fold": patient % num_folds,
            "cancer": cancer,
            "num_images": 2,
            "probability": 1 / (1 + np.exp(-score)),
            "threshold": 0.5,
        }
    )


def shuffle(table, seed=1):
    """The same rows in another order."""
    return table.sample(frac=1, random_state=seed)
