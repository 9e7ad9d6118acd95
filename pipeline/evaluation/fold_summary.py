"""Who is in which fold, and that nobody is in two."""

import pandas as pd

from data_prep.rsna.exam_table import name_breast

SUMMARIES = {"sites": "site_id", "machines": "machine_id"}


def describe_folds(oof: pd.DataFrame) -> pd.DataFrame:
    """Counts what each fold holds.

    Args:
        oof: one row per image: fold, patient_id, laterality, cancer; site_id, machine_id, age where known.

    Returns:
        One row per fold: patients, breasts, images, cancers, `prevalence` (of breasts), `sites` and
        `machines` (patients of each, as `1: 20, 2: 15`), ages (of patients), and `num_patients_elsewhere`:
        those who are in another fold too, counted from the predictions themselves. Columns of what is not
        recorded are absent.
    """
    num_folds_of = oof.groupby("patient_id")["fold"].nunique()
    rows = [
        {"fold": fold, **_describe(part), "num_patients_elsewhere": _count_shared(part, num_folds_of)}
        for fold, part in oof.groupby("fold")
    ]
    return pd.DataFrame(rows)


def _describe(part: pd.DataFrame) -> dict[str, object]:
    breasts = part.drop_duplicates(name_breast(part))
    patients = part.drop_duplicates("patient_id")
    row: dict[str, object] = {
        "num_patients": len(patients),
        "num_breasts": len(breasts),
        "num_images": len(part),
        "num_cancers": int(breasts["cancer"].sum()),
        "num_cancer_images": int(part["cancer"].sum()),
        "prevalence": float(breasts["cancer"].mean()),
    }
    for name, column in SUMMARIES.items():
        if column in part:
            counts = part.fillna({column: "not recorded"}).groupby(column)["patient_id"].nunique()
            row[name] = ", ".join(f"{value}: {count}" for value, count in counts.items())
    if "age" in part:
        ages = patients["age"].astype(float)
        for name, share in {"age_5_percent": 0.05, "age_median": 0.5, "age_95_percent": 0.95}.items():
            row[name] = float(ages.quantile(share))
        row["num_without_age"] = int(ages.isna().sum())
    return row


def _count_shared(part: pd.DataFrame, num_folds_of: "pd.Series[int]") -> int:
    return int((num_folds_of[part["patient_id"].unique()] > 1).sum())
