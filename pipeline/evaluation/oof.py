"""A finished run's out-of-fold predictions, joined and checked."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from data_prep.errors import UserError
from data_prep.rsna.exam_table import EXAM_ID, sort_by_id
from pipeline.evaluation.age.age_regression import AGE, add_age_to_oof
from pipeline.runs.run_folder import Run, read_oof


def collect_oof(run: Run, *, inputs: Collection[str] | None = None) -> pd.DataFrame:
    """Joins all folds' predictions: each image once, each patient in the fold that `folds.csv` gives.

    Where the run takes age, or the given `inputs` do, `probability` is by both, with `pixel_probability` and
    `age_probability` beside.

    Raises:
        UserError: if a fold is not finished or one of these does not hold.
    """
    parts = [_read_fold(run.fold(fold).oof, fold) for fold in run.require_finished()]
    oof = pd.concat(parts, ignore_index=True)
    if oof.empty:
        raise UserError(
            f"{run.folder} holds no predictions: every fold's oof.csv is empty; train the run again"
        )
    if EXAM_ID in oof and oof[EXAM_ID].isna().any():
        raise UserError(
            f"{run.folder}: some folds' oof.csv have a column {EXAM_ID} and others have none: they are of "
            "different tables; train the run again in a new folder"
        )
    _require_images_once(run, oof)
    _require_patients_in_their_fold(run, oof)
    _require_all_images(run, oof)
    oof = sort_by_id(oof, ["patient_id", "image_id"])
    return add_age_to_oof(oof) if AGE in (run.read_inputs() if inputs is None else inputs) else oof


def _read_fold(path: Path, fold: int) -> pd.DataFrame:
    """Reads one fold's predictions and checks each value."""
    oof = read_oof(path)
    cancer = pd.to_numeric(oof["cancer"], errors="coerce")
    probability = pd.to_numeric(oof["probability"], errors="coerce")
    checks = {
        "fold": (oof["fold"] == fold, f"{fold} like its folder"),
        "laterality": (oof["laterality"].isin(["L", "R"]), "L or R"),
        "cancer": (cancer.isin([0, 1]), "0 or 1"),
        "probability": (probability.between(0, 1), "a number from 0 to 1"),
    }
    if EXAM_ID in oof:
        checks[EXAM_ID] = (oof[EXAM_ID].notna(), "an exam's id")
    if "age" in oof:
        age = pd.to_numeric(oof["age"], errors="coerce")
        checks["age"] = (oof["age"].isna() | age.between(0, 150), "years or empty")
    for name, (is_valid, rule) in checks.items():
        if not is_valid.all():
            first = oof[~is_valid].iloc[0]
            raise UserError(
                f"{path}: image {first['image_id']} has {name} {first[name]}, which must be {rule}; "
                "delete the file and run the `mammo train` command again, which writes it anew"
            )
    return oof.assign(cancer=cancer.astype(int), probability=probability.astype(float))


def _require_images_once(run: Run, oof: pd.DataFrame) -> None:
    twice = oof[oof["image_id"].duplicated(keep=False)]
    if len(twice):
        image_id = twice["image_id"].iloc[0]
        folds = twice["fold"][twice["image_id"] == image_id]
        raise UserError(
            f"{run.folder}: image {image_id} is predicted in folds {', '.join(map(str, folds))}; each image "
            "belongs to one fold's validation part, so train the run again in a new folder"
        )


def _require_all_images(run: Run, oof: pd.DataFrame) -> None:
    expected = run.read_folds().set_index("patient_id")["num_images"]
    found = oof["patient_id"].value_counts().reindex(expected.index, fill_value=0)
    differing = expected[found != expected]
    if len(differing):
        patient_id = differing.index[0]
        raise UserError(
            f"{run.folder}: {found[patient_id]} images of patient {patient_id} are predicted, but "
            f"{run.folds.name} counts {differing.iloc[0]}; delete the fold's oof.csv and train again"
        )


def _require_patients_in_their_fold(run: Run, oof: pd.DataFrame) -> None:
    folds = run.read_folds()
    twice = folds["patient_id"][folds["patient_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"{run.folds}: patient {twice.iloc[0]} stands there twice; a patient belongs to one fold, or the "
            "figures flatter the model, so train the run again in a new folder"
        )
    expected = oof["patient_id"].map(folds.set_index("patient_id")["fold"])
    strays = oof[expected != oof["fold"]]  # a patient who is not in folds.csv at all differs too
    if len(strays):
        first = strays.iloc[0]
        raise UserError(
            f"{run.fold(first['fold']).oof}: patient {first['patient_id']} is not in fold {first['fold']} of "
            f"{run.folds.name}; a patient in two folds flatters the model, so train again in a new folder"
        )
