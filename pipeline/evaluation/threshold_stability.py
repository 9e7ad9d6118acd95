"""How much pF1 depends on the threshold and on how common cancer is."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.evaluation.bootstrap import NUM_REPLICATES, SEED, draw_weights, find_interval
from pipeline.evaluation.formulas import f1, to_logits
from pipeline.evaluation.patient_stats import Floats

LOGIT_SHIFTS = np.linspace(-2, 2, 17)
PREVALENCE_FACTORS = 2.0 ** np.linspace(-2, 2, 9)
STABILITY_COLUMNS = ["change", "by", "threshold", "prevalence", "pf1", "low", "high"]


def sweep(
    breasts: pd.DataFrame, threshold: float | None, *, seed: int = SEED, num_replicates: int = NUM_REPLICATES
) -> pd.DataFrame:
    """Computes F1 with a shifted threshold, and with the same threshold where cancer is rarer or more common.

    Args:
        breasts: a table of predictions.
        threshold: the one to start from; None gives an empty table, as do breasts of one class.
        seed: of the bootstrap.
        num_replicates: draws.

    Returns:
        One row per variation: `change` is `threshold` (`by`: added to its logit) or `prevalence` (`by`: its
        factor; breasts with cancer are weighed so that it holds); threshold, prevalence, F1 and its interval.
    """
    if threshold is None or len(breasts["cancer"].unique()) < 2:  # no prevalence but 0 or 1 can be had
        return pd.DataFrame(columns=STABILITY_COLUMNS)
    prevalence = float(breasts["cancer"].mean())
    factors = PREVALENCE_FACTORS[PREVALENCE_FACTORS * prevalence < 1]
    start = to_logits(threshold)
    thresholds = np.where(LOGIT_SHIFTS == 0, threshold, expit(start + LOGIT_SHIFTS))  # 0 keeps the very same
    variations = [
        ("threshold", shift, value, prevalence) for shift, value in zip(LOGIT_SHIFTS, thresholds, strict=True)
    ]
    variations += [("prevalence", factor, threshold, factor * prevalence) for factor in factors]
    table = pd.DataFrame(variations, columns=STABILITY_COLUMNS[:4])
    find_f1 = _prepare(breasts, table, prevalence)
    num_patients = breasts["patient_id"].nunique()
    draws = draw_weights(num_patients, seed=seed, num_replicates=num_replicates)
    replicates_GR = np.concatenate([find_f1(weights_MR) for weights_MR in draws], axis=1)
    intervals = [find_interval(replicates_R) for replicates_R in replicates_GR]
    return table.assign(
        pf1=find_f1(np.ones((num_patients, 1)))[:, 0],
        low=[interval.low if interval else np.nan for interval in intervals],
        high=[interval.high if interval else np.nan for interval in intervals],
    )


def _prepare(
    breasts: pd.DataFrame, variations: pd.DataFrame, prevalence: float
) -> Callable[[Floats], Floats]:
    """Returns a function from patients' weights [M, R] to the F1 of each variation, [G, R]."""
    _, patients_N = np.unique(breasts["patient_id"].to_numpy(np.str_), return_inverse=True)
    is_cancer_N = breasts["cancer"].to_numpy() == 1
    recalled_NG = breasts["probability"].to_numpy()[:, None] >= variations["threshold"].to_numpy()
    found_GM = _add_up(recalled_NG & is_cancer_N[:, None], patients_N)
    wrong_GM = _add_up(recalled_NG & ~is_cancer_N[:, None], patients_N)
    cancers_GM = _add_up(np.broadcast_to(is_cancer_N[:, None], recalled_NG.shape), patients_N)
    wanted_G1 = variations["prevalence"].to_numpy()[:, None]
    weight_G1 = wanted_G1 * (1 - prevalence) / (prevalence * (1 - wanted_G1))

    def find_f1(weights_MR: Floats) -> Floats:
        found_GR, wrong_GR = weight_G1 * (found_GM @ weights_MR), wrong_GM @ weights_MR
        cancers_GR = weight_G1 * (cancers_GM @ weights_MR)
        return np.where(cancers_GR > 0, f1(found_GR, found_GR + wrong_GR, cancers_GR), np.nan)

    return find_f1


def _add_up(flags_NG: NDArray[np.bool_], patients_N: NDArray[np.int64]) -> Floats:
    """Counts the flags of each patient, [G, M]."""
    num_patients = int(patients_N.max()) + 1
    return np.stack(
        [np.bincount(patients_N, weights=flags_N, minlength=num_patients) for flags_N in flags_NG.T]
    )
