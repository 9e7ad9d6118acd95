"""A submission: a test set predicted by one run or several, written, checked and laid out by case."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.storage.atomic import Journal, require_replaceable, require_writable, write_csv
from data_prep.storage.places import Place
from pipeline.evaluation.aggregate import Views
from pipeline.inference.engine import PredictionEngine, open_engine
from pipeline.inference.predict_test_set import predict_cache, predict_folder
from pipeline.inference.run_metrics import RecallBy, is_spoilt_by_counting, read_recall_rule
from pipeline.inference.run_predictions import FAILURES_COLUMNS, FILE, RunPredictions
from pipeline.inference.several_runs import find_joint_rule, join_oof, join_predictions, require_one_cache
from pipeline.inference.submission_cases import require_case_table, write_cases
from pipeline.inference.submission_file import SUBMISSION_COLUMNS, find_problems, write_submission
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

if TYPE_CHECKING:
    from data_prep.parallel.ray_cluster import Cluster

COUNTING_SPOILS = (
    "the highest of a breast's images grows with their number, which alone tells the label in the run's "
    "data: use --views mean"
)


@dataclass(frozen=True)
class Submission:
    """A submission that was written.

    Attributes:
        path: of the CSV.
        table: what stands in it.
        rule: which breasts are given 1, in words; empty where probabilities are written.
        failures: patient_id, image_id, reason, message of images that could not be used; `file` if known.
        failures_path: where these stand, if there are any.
        images_path: where a row per image stands, with the probability of each fold.
        breasts_path: the same per breast.
        problems: what `check_submission` would say of it, and that counting spoils `--views max`.
    """

    path: Path
    table: pd.DataFrame
    rule: str
    failures: pd.DataFrame
    failures_path: Path
    images_path: Path
    breasts_path: Path
    problems: list[str]


def predict_submission(
    runs: Sequence[Run],
    source: Place | Cache,
    path: Path,
    *,
    workers: int,
    reporter: Reporter,
    views: Views = "mean",
    probabilities: bool = False,
    recall_by: RecallBy = "threshold",
    flip: bool = False,
    cluster: "AbstractContextManager[Cluster | None] | None" = None,
) -> Submission:
    """Predicts a test set and writes a submission; goes on where a call that was broken off has stopped.

    Args:
        runs: are finished, and a single one evaluated unless probabilities are written. Several have the
            same patients, labels and folds: each image gets the mean of their log-odds.
        source: folder or URL with test.csv and the images, or a cache of the test split.
        path: of the CSV; what is known stands in `<path>.partial` until it is written, of several runs in
            `<path>.<number>.partial`.
        workers: processes that decode or load; 0 works in this one.
        reporter: shows the progress.
        views: what a breast's probability is of those of its images.
        probabilities: writes them instead of 0 and 1.
        recall_by: what decides over 0 and 1: the runs' threshold or their recall rate.
        flip: shows each image upside down too.
        cluster: is entered once all is checked; None, given or yielded, is this machine.

    Raises:
        UserError: if runs and images do not fit together, or the CSV would replace something else.
        FolderInUse: if another command writes the same submission.
    """
    for run in runs:
        run.require_finished()
    oof = join_oof(runs)
    if isinstance(source, Cache):
        require_one_cache(runs)
    rule = None
    if not probabilities:
        rule = read_recall_rule(runs[0], recall_by) if len(runs) == 1 else find_joint_rule(oof, recall_by)
    failures_path, images_path, breasts_path = (
        path.with_name(f"{path.stem}_{what}.csv") for what in ("failures", "images", "breasts")
    )
    require_replaceable(path, SUBMISSION_COLUMNS)
    require_replaceable(failures_path, FAILURES_COLUMNS, optional=[FILE])
    for table_path in (images_path, breasts_path):
        require_case_table(table_path)
    require_writable(path)
    journals = _name_journals(path, len(runs))
    with ExitStack() as stack:
        for journal in journals:
            stack.enter_context(journal.held())
        is_cache = isinstance(source, Cache)
        engine = stack.enter_context(open_engine(cluster, workers=workers, reads_files=not is_cache))
        predictions = join_predictions(
            [
                _predict(run, source, journal, engine, flip=flip, reporter=reporter)
                for run, journal in zip(runs, journals, strict=True)
            ]
        )
        breasts, required_ids = predictions.breasts(views), predictions.required_ids
        threshold, described = rule.decide(breasts["probability"]) if rule else (None, "")
        table = write_submission(breasts, path, required_ids=required_ids, threshold=threshold)
        if len(predictions.failures):
            write_csv(failures_path, predictions.failures)
        else:
            failures_path.unlink(missing_ok=True)
        write_cases(oof, predictions, breasts, threshold, images_path=images_path, breasts_path=breasts_path)
        for journal in journals:
            journal.remove()
    problems = find_problems(path, required_ids)
    if views == "max" and any(map(is_spoilt_by_counting, runs)):
        problems.append(COUNTING_SPOILS)
    return Submission(
        path, table, described, predictions.failures, failures_path, images_path, breasts_path, problems
    )


def _name_journals(path: Path, number: int) -> list[Journal]:
    if number == 1:
        return [Journal(path.with_name(f"{path.name}.partial"))]
    return [Journal(path.with_name(f"{path.name}.{place}.partial")) for place in range(1, number + 1)]


def _predict(
    run: Run,
    source: Place | Cache,
    journal: Journal,
    engine: PredictionEngine,
    *,
    flip: bool,
    reporter: Reporter,
) -> RunPredictions:
    predict = (
        partial(predict_cache, run, source)
        if isinstance(source, Cache)
        else partial(predict_folder, run, source, executor=engine.executor)
    )
    return predict(
        workers=engine.workers, reporter=reporter, flip=flip, journal=journal, predictor=engine.predictor
    )
