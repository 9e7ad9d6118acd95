"""From a finished run's out-of-fold predictions to its figures. Knows no model, no picture and no page."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.errors import UserError
from data_prep.exams import sort_by_id
from data_prep.files import write_csv, write_json
from pipeline.aggregate import to_breasts
from pipeline.bootstrap import NUM_REPLICATES, Interval, find_intervals
from pipeline.metrics import BreastMetrics, measure
from pipeline.run import FOLD_METRICS_COLUMNS, Run, read_oof

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """What is known of a run once all its folds are trained; all figures are per breast.

    Attributes:
        oof: out-of-fold image predictions, sorted by patient and image.
        breasts: their means per breast, with fold and cancer.
        folds: figures by fold number.
        pooled: figures of all folds' breasts together.
        intervals: pooled 95 % intervals by figure.
    """

    oof: pd.DataFrame
    breasts: pd.DataFrame
    folds: dict[int, BreastMetrics]
    pooled: BreastMetrics
    intervals: dict[str, Interval]

    @property
    def threshold(self) -> float | None:
        """The best threshold on the pooled predictions, which a submission may use."""
        return self.pooled.threshold_best


def evaluate_run(run: Run) -> Evaluation:
    """Computes the figures of a finished run and writes `oof.csv`, `fold_metrics.csv` and `metrics.json`.

    Raises:
        UserError: if a fold is missing, or its predictions do not fit the run; nothing is written then.
    """
    evaluation = evaluate_oof(collect_oof(run))
    write_csv(run.oof, evaluation.oof)
    write_csv(run.fold_metrics, tabulate_folds(evaluation.folds))
    write_json(run.metrics, to_json(evaluation))
    return evaluation


def collect_oof(run: Run) -> pd.DataFrame:
    """Joins all folds' predictions: each image once, each patient in the fold that `folds.csv` gives.

    Raises:
        UserError: if a fold is not finished or one of these does not hold.
    """
    parts = [_read_fold(run.fold(fold).oof, fold) for fold in run.require_finished()]
    oof = pd.concat(parts, ignore_index=True)
    if oof.empty:
        raise UserError(
            f"{run.folder} holds no predictions: every fold's oof.csv is empty; train the run again"
        )
    _require_images_once(run, oof)
    _require_patients_in_their_fold(run, oof)
    _require_all_images(run, oof)
    return sort_by_id(oof, ["patient_id", "image_id"])


def evaluate_oof(oof: pd.DataFrame) -> Evaluation:
    """Computes per-fold and pooled figures of out-of-fold image predictions.

    Raises:
        UserError: if a breast's images differ in label.
    """
    try:
        breasts = to_breasts(oof)
    except ValueError as error:
        raise UserError(
            f"the predictions contradict themselves: {error}; mend train.csv and train again"
        ) from None
    pooled = _measure(breasts)
    return Evaluation(
        oof=oof,
        breasts=breasts,
        folds={int(str(fold)): _measure(part) for fold, part in breasts.groupby("fold")},
        pooled=pooled,
        intervals=find_intervals(breasts, pooled.threshold_best, seed=BOOTSTRAP_SEED),
    )


def tabulate_folds(folds: dict[int, BreastMetrics]) -> pd.DataFrame:
    """Makes the table of `fold_metrics.csv`; an undefined figure is an empty cell."""
    rows = [{"fold": fold, **asdict(metrics)} for fold, metrics in folds.items()]
    return pd.DataFrame(rows)[FOLD_METRICS_COLUMNS]


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Makes the content of `metrics.json`; an undefined figure is null and has its reason in `undefined`."""
    intervals = evaluation.intervals
    return {
        "folds": [{"fold": fold, **asdict(metrics)} for fold, metrics in evaluation.folds.items()],
        "pooled": {
            **asdict(evaluation.pooled),
            "interval_95": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        },
        "threshold": evaluation.threshold,
        "bootstrap": {
            "seed": BOOTSTRAP_SEED,
            "replicates": NUM_REPLICATES,
            "undefined_replicates": {name: interval.num_undefined for name, interval in intervals.items()},
        },
    }


def _measure(breasts: pd.DataFrame) -> BreastMetrics:
    return measure(breasts["cancer"], breasts["probability"], num_images=int(breasts["num_images"].sum()))


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
    for name, (is_valid, rule) in checks.items():
        if not is_valid.all():
            first = oof[~is_valid].iloc[0]
            raise UserError(
                f"{path}: image {first['image_id']} has {name} {first[name]}, which must be {rule}; "
                "delete the file and give the `mammo train` command again, which writes it anew"
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
    short = expected[found < expected]
    if len(short):
        raise UserError(
            f"{run.folder}: {found[short.index[0]]} images of patient {short.index[0]} are predicted, but "
            f"{run.folds.name} counts {short.iloc[0]}; delete the fold's oof.csv and train again"
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
