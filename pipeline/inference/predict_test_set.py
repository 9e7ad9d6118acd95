"""What all folds of a run say of a test set, kept in a journal on the way."""

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.rsna.exam_table import EXAM_ID, name_breast
from data_prep.storage.atomic import Journal
from data_prep.storage.files import read_own
from data_prep.storage.places import Place
from pipeline.evaluation.aggregate import Views, to_breasts
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.oof import collect_oof
from pipeline.inference.ensemble import BATCH_SIZE, Ensemble
from pipeline.inference.image_sources import (
    CacheSource,
    FolderSource,
    ImageSource,
    RowGroup,
    SourceBatch,
    hash_exams,
)
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter

BEGINNING = b'{"run": '
FAILURES_COLUMNS = ["patient_id", "image_id", "reason", "message"]
FILE = "file"
"""The last column of the failures, where test.csv has it."""

BatchRecord = dict[str, Any]
"""A line of the journal: a batch, its probabilities by image_id, and reason and message of its failures."""

PredictGroups = Callable[[Sequence[RowGroup]], Generator[BatchRecord, None, None]]
"""Yields a record for each of some groups of a source's rows, in any order."""


class Predictor(Protocol):
    """Where a run's models predict."""

    def __call__(self, run: Run, source: ImageSource, *, flip: bool) -> PredictGroups:
        """Gets a run's models ready for the images of a source."""


@dataclass(frozen=True)
class RunPredictions:
    """What all folds of a run say of a set of images.

    Attributes:
        images: patient_id, image_id, laterality, prediction_id, exam_id where exams are told apart,
            probability (NaN where the image failed).
        failures: patient_id, image_id, reason, message of images that could not be used, and `file` if the
            exam table has it.
        prior: share of cancers among the breasts that the run was trained on.
    """

    images: pd.DataFrame
    failures: pd.DataFrame
    prior: float

    @property
    def required_ids(self) -> list[str]:
        """Every prediction_id once."""
        return list(self.images["prediction_id"].unique())

    def breasts(self, views: Views = "mean") -> pd.DataFrame:
        """Returns prediction_id and probability per breast: of its usable images, or else the prior."""
        breasts = to_breasts(self.images, views).fillna({"probability": self.prior})
        breast = name_breast(self.images)
        identifiers = self.images[[*breast, "prediction_id"]].drop_duplicates()
        return breasts.drop(columns="prediction_id").merge(identifiers, on=breast)


def predict_locally(run: Run, source: ImageSource, *, flip: bool, device: str = "auto") -> PredictGroups:
    """Gets a run's models ready in this process; a `Predictor`.

    Raises:
        UserError: if a fold's weights cannot be read, and on the way if one of them says no number.
    """
    ensemble = load_ensemble(run, flip=flip, device=device)
    image_ids = source.exams["image_id"].tolist()

    def predict(groups: Sequence[RowGroup]) -> Generator[BatchRecord, None, None]:
        with closing(source.load(groups, device=ensemble.device)) as batches:
            for batch in batches:
                yield _predict_batch(ensemble, batch, image_ids)

    return predict


def predict_folder(
    run: Run,
    folder: Place,
    *,
    workers: int,
    reporter: Reporter,
    flip: bool = False,
    journal: Journal | None = None,
    predictor: Predictor = predict_locally,
    executor: Executor = map_unordered,
) -> RunPredictions:
    """Predicts the images of a folder's test.csv from their files, a few batches in memory at a time.

    With a journal, goes on where a call that was broken off has stopped, to the same predictions. Images that
    have come, gone or changed since are asked for again, with their batch. `executor` decodes for the
    `predictor`.

    Raises:
        UserError: if the run is not finished, test.csv cannot be used, all of its images are absent, or the
            journal is of another run or another test.csv.
    """
    run.require_finished()
    source = FolderSource(folder, load_recipe(run.settings).prepare, workers=workers, executor=executor)
    return _predict(run, source, journal, predictor, flip=flip, reporter=reporter)


def predict_cache(
    run: Run,
    cache: Cache,
    *,
    workers: int,
    reporter: Reporter,
    flip: bool = False,
    journal: Journal | None = None,
    predictor: Predictor = predict_locally,
) -> RunPredictions:
    """Predicts the images of a cache of the test split, as `predict_folder` does those of a folder.

    Raises:
        UserError: if the run is not finished, the cache is not of the test split and the run's settings, or
            the journal is of another run or another test.csv.
    """
    run.require_finished()
    settings = load_recipe(run.settings).prepare
    source = CacheSource(cache, settings, workers=workers, config=run.settings)
    return _predict(run, source, journal, predictor, flip=flip, reporter=reporter)


def load_ensemble(run: Run, *, flip: bool = False, device: str = "auto") -> Ensemble:
    """Loads all folds' models.

    Raises:
        UserError: if the run is not finished or a fold's weights cannot be read.
    """
    folds, recipe = run.require_finished(), load_recipe(run.settings)
    models = [load_weights(run.fold(fold), recipe.model) for fold in folds]
    return Ensemble(models, ComputeSettings.choose(device, recipe.train.precision), flip=flip)


def _predict(
    run: Run,
    source: ImageSource,
    journal: Journal | None,
    predictor: Predictor,
    *,
    flip: bool,
    reporter: Reporter,
) -> RunPredictions:
    prior = float(require_breasts(collect_oof(run))["cancer"].mean())
    predict = predictor(run, source, flip=flip)
    header = {"run": _hash_run(run), "exams": hash_exams(source.exams), "flip": flip}
    image_ids = source.exams["image_id"].tolist()
    groups = {source.fingerprint(rows): rows for rows in _group(source)}
    names = {frozenset(image_ids[row] for row in rows): name for name, rows in groups.items()}
    records = [record for record in _recall(journal, header) if record["batch"] in groups]
    known = {record["batch"] for record in records}
    waiting = [rows for name, rows in groups.items() if name not in known]
    with (
        reporter.track("predict", len(image_ids)) as advance,
        closing(predict(waiting)) as found_records,
    ):
        advance(len(image_ids) - sum(map(len, waiting)))
        for found in found_records:
            record = {"batch": names[frozenset(_image_ids_of(found))], **found}
            if journal:
                journal.append(record)
            records.append(record)
            advance(len(_image_ids_of(record)))
    absent = {image_ids[row]: [error.reason, str(error)] for row, error in source.absent.items()}
    return _tabulate(source.exams, [*records, {"failures": absent}], prior=prior)


def _group(source: ImageSource) -> Iterator[list[int]]:
    """Yields the rows of each batch: an image that comes or goes changes no batch but its own."""
    for start in range(0, len(source.exams), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(source.exams)))
        if present := [row for row in rows if row not in source.absent]:
            yield present


def _predict_batch(ensemble: Ensemble, batch: SourceBatch, image_ids: list[str]) -> BatchRecord:
    probabilities = [] if batch.images_BCHW is None else ensemble.predict(batch.images_BCHW).tolist()
    names = [image_ids[row] for row in batch.rows]
    undefined = [
        name for name, probability in zip(names, probabilities, strict=True) if not math.isfinite(probability)
    ]
    if undefined:
        raise UserError(
            f"the models give image {undefined[0]} a value that is not a number: their weights have "
            "diverged, or fp16 is too coarse for them; look at history.csv and train again with a lower "
            "train.learning_rate"
        )
    failures = {image_ids[row]: [error.reason, str(error)] for row, error in batch.failures.items()}
    return {"probabilities": dict(zip(names, probabilities, strict=True)), "failures": failures}


def _image_ids_of(record: BatchRecord) -> list[str]:
    return [*record["probabilities"], *record["failures"]]


def _tabulate(exams: pd.DataFrame, records: list[BatchRecord], *, prior: float) -> RunPredictions:
    """Puts probabilities and failures into the order of the exam table, whatever order they came in."""
    known = {key: value for record in records for key, value in record.get("probabilities", {}).items()}
    failed = {key: value for record in records for key, value in record["failures"].items()}
    columns = ["patient_id", "image_id", "laterality", "prediction_id", EXAM_ID]
    images = exams[[name for name in columns if name in exams]]
    probabilities = [known.get(image_id, np.nan) for image_id in exams["image_id"]]
    failures = exams[exams["image_id"].isin(list(failed))]
    reasons = [failed[image_id] for image_id in failures["image_id"]]
    failures = failures.assign(
        reason=[reason for reason, _ in reasons], message=[text for _, text in reasons]
    )
    return RunPredictions(
        images.assign(probability=np.array(probabilities, np.float64)),
        failures[[*FAILURES_COLUMNS, *([FILE] if FILE in exams else [])]],
        prior,
    )


# The journal


def _recall(journal: Journal | None, header: Mapping[str, Any]) -> list[BatchRecord]:
    """Returns what an earlier command has found; begins the journal if it is new.

    Raises:
        UserError: if that was of another run, another test.csv, or another way to ask.
    """
    if journal is None:
        return []
    if journal.path.exists() and not BEGINNING.startswith(read_own(journal.path)[: len(BEGINNING)]):
        raise UserError(
            f"{journal.path} is not a journal of `mammo predict`: move it, or choose another --out"
        )
    journal.mend()
    records = journal.read()
    if not records:
        journal.append(dict(header))
        return []
    if not all(set(record) == {"batch", "probabilities", "failures"} for record in records[1:]):
        raise UserError(f"{journal.path} is damaged: remove it and run the same command again")
    names = {"run": "another run", "exams": "another test.csv", "flip": "another --flip"}
    changed = [text for name, text in names.items() if records[0].get(name) != header[name]]
    if changed:
        raise UserError(
            f"{journal.path} keeps what was predicted with {' and '.join(changed)} before that command was "
            "broken off: choose another --out, or remove this file to begin anew"
        )
    return records[1:]


def _hash_run(run: Run) -> str:
    """Returns a hash of all that the predictions of a run depend on: its settings and weights."""
    digest = hashlib.sha256(read_own(run.settings))
    for fold in run.list_folds():
        digest.update(hashlib.sha256(read_own(run.fold(fold).weights)).digest())
    return digest.hexdigest()
