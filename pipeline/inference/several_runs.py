"""Several runs of the same patients and folds as one: the mean of their log-odds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit

from data_prep.errors import UserError
from data_prep.settings import differences
from pipeline.evaluation.estimates import find_threshold_of_mean
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.case_tables import BESIDE, list_fold_columns
from pipeline.evaluation.formulas import to_logits
from pipeline.evaluation.metrics import measure
from pipeline.evaluation.oof import collect_oof
from pipeline.inference.run_metrics import RecallBy, RecallRule
from pipeline.inference.run_predictions import RunPredictions
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import IMAGE_PROBABILITY, Run


def join_oof(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the out-of-fold predictions of a run, or those of several together.

    Raises:
        UserError: if one of them cannot be used, or they differ in patients, folds, images or labels.
    """
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice: name each once")
    first, *others = ((run, collect_oof(run)) for run in runs)
    for run, oof in others:
        _require_same_cases(first, (run, oof))
    return _join([first[1], *(oof for _, oof in others)])


def require_one_cache(runs: Sequence[Run]) -> None:
    """Makes sure that all runs can read one cache.

    Raises:
        UserError: if they take differently prepared images.
    """
    first, *others = (load_recipe(run.settings).prepare for run in runs)
    for run, settings in zip(runs[1:], others, strict=True):
        if changed := differences(first, settings):
            raise UserError(
                f"{runs[0].folder} and {run.folder} take differently prepared images ({'; '.join(changed)}), "
                "which no one cache has: name --data instead of --cache"
            )


def find_joint_rule(oof: pd.DataFrame, by: RecallBy) -> RecallRule:
    """Finds what recalls breasts best out of fold, as an evaluation of the runs together would.

    Raises:
        UserError: if no breast has cancer.
    """
    breasts = require_breasts(oof)
    threshold = measure(breasts["cancer"], breasts["probability"]).threshold_best
    if threshold is None:
        raise UserError(
            "none of the runs' breasts has cancer, so there is no threshold: ask for --probabilities"
        )
    rate = float((breasts["probability"] >= threshold).mean())
    return RecallRule(find_threshold_of_mean(breasts, rate), rate if by == "rate" else None)


def join_predictions(found: Sequence[RunPredictions]) -> RunPredictions:
    """Joins what several runs say of the same images; one that a run could not use has the others' mean."""
    if len(found) == 1:
        return found[0]
    images = _join([each.images for each in found])
    failures = pd.concat([each.failures for each in found]).drop_duplicates("image_id")
    return RunPredictions(images, failures.reset_index(drop=True), found[0].prior)


def _join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns a table of images with the mean log-odds of all, column by column of probabilities."""
    first, *others = tables
    if not others:
        return first
    columns = ["probability", *list_fold_columns(first)]
    beside = [*BESIDE, IMAGE_PROBABILITY]
    columns += [name for name in beside if all(name in table for table in tables)]
    by_image = [table.set_index("image_id").loc[first["image_id"], columns] for table in tables]
    logits = np.stack([to_logits(table) for table in by_image])
    is_known = ~np.isnan(logits)
    total = np.where(is_known, logits, 0.0).sum(axis=0)
    means = expit(
        np.divide(total, is_known.sum(axis=0), out=np.full_like(total, np.nan), where=is_known.any(axis=0))
    )
    kept = first.drop(columns=[name for name in beside if name in first and name not in columns])
    return kept.assign(**{name: means[:, column] for column, name in enumerate(columns)})


def _require_same_cases(first: tuple[Run, pd.DataFrame], other: tuple[Run, pd.DataFrame]) -> None:
    (run, oof), (second, second_oof) = first, other
    columns = ["patient_id", "laterality", "fold", "cancer"]
    ours, theirs = (table.set_index("image_id")[columns].sort_index() for table in (oof, second_oof))
    if not ours.index.equals(theirs.index):
        lacking = ours.index.symmetric_difference(theirs.index)
        raise UserError(
            f"{run.folder} and {second.folder} cannot be joined: they have not learned from the same images, "
            f"of which {lacking[0]} is in one alone"
        )
    for name in columns:
        differing = ours.index[(ours[name] != theirs[name]).to_numpy()]
        if len(differing):
            image_id = differing[0]
            raise UserError(
                f"{run.folder} and {second.folder} cannot be joined: image {image_id} has {name} "
                f"{ours.loc[image_id, name]} in one and {theirs.loc[image_id, name]} in the other"
                + ("; train both with the same train.seed and train.num_folds" if name == "fold" else "")
            )
