"""What all folds of a run say of a test set, or of one with labels, kept in a journal on the way."""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from data_prep.parallel.executor import Executor, map_unordered
from data_prep.rsna.exam_table import EXAM_ID
from data_prep.storage.atomic import Journal
from data_prep.storage.places import Place
from pipeline.data.breasts import BreastTable
from pipeline.evaluation.age.age_regression import BY_PIXELS
from pipeline.evaluation.evaluate_oof import require_breasts
from pipeline.evaluation.external.case_tables import FOLD_PROBABILITY
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
from pipeline.inference.journal import EVALUATE, PREDICT, BatchRecord, JournalOwner, hash_run, recall, rewrite
from pipeline.inference.run_predictions import FAILURES_COLUMNS, FILE, RunPredictions, count_age
from pipeline.models.breast_transformer import BreastInputs
from pipeline.models.weights_file import load_weights
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import IMAGE_PROBABILITY, OOF_EXAM_COLUMNS, Run
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.progress import Reporter

KEPT_COLUMNS = ["patient_id", "image_id", "laterality", "prediction_id", EXAM_ID, "cancer", *OOF_EXAM_COLUMNS]
"""What predictions have of the exam table, where it has it."""

PredictGroups = Callable[[Sequence[RowGroup]], Generator[BatchRecord, None, None]]
"""Yields a record for each of some groups of a source's rows, in any order."""


class Predictor(Protocol):
    """Where a run's models predict."""

    def __call__(self, run: Run, source: ImageSource, *, flip: bool) -> PredictGroups:
        """Gets a run's models ready for the images of a source."""


def predict_locally(run: Run, source: ImageSource, *, flip: bool, device: str = "auto") -> PredictGroups:
    """Gets a run's models ready in this process; a `Predictor`.

    Raises:
        UserError: if a fold's weights cannot be read, and on the way if one of them says no number.
    """
    ensemble = load_ensemble(run, flip=flip, device=device)
    image_ids = source.exams["image_id"].tolist()
    table = _find_breasts(run, source)

    def predict(groups: Sequence[RowGroup]) -> Generator[BatchRecord, None, None]:
        with closing(source.load(groups, device=ensemble.device)) as batches:
            for batch in batches:
                yield _predict_batch(ensemble, batch, image_ids, table)

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


def predict_labelled(
    run: Run,
    data: Place | Cache,
    *,
    workers: int,
    reporter: Reporter,
    journal: Journal,
    without: Collection[str] = (),
    predictor: Predictor = predict_locally,
    executor: Executor = map_unordered,
) -> RunPredictions:
    """Predicts the images of a folder's train.csv, or of a cache of the train split; keeps the journal.

    At the end that holds its batches in their order, so that it does not depend on what got ready first, and
    another call predicts nothing.

    Args:
        run: is finished.
        data: the folder, its URL, or the cache.
        workers: as `predict_folder` takes them.
        reporter: shows the progress.
        journal: of what was predicted.
        without: ids of patients to leave out.
        predictor: where it is predicted.
        executor: decodes for the `predictor`.

    Raises:
        UserError: as `predict_folder` and `predict_cache` do.
    """
    run.require_finished()
    settings = load_recipe(run.settings).prepare
    source: ImageSource
    if isinstance(data, Cache):
        source = CacheSource(
            data, settings, workers=workers, config=run.settings, split="train", without=without
        )
    else:
        source = FolderSource(
            data, settings, workers=workers, executor=executor, split="train", without=without
        )
    return _predict(run, source, journal, predictor, flip=False, reporter=reporter, owner=EVALUATE)


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
    owner: JournalOwner = PREDICT,
) -> RunPredictions:
    oof = collect_oof(run)
    prior = float(require_breasts(oof)["cancer"].mean())
    predict = predictor(run, source, flip=flip)
    header = {"run": hash_run(run), "exams": hash_exams(source.exams), "flip": flip}
    image_ids = source.exams["image_id"].tolist()
    table = _find_breasts(run, source)
    if table is not None and not table.knows_views and "view" in oof:
        reporter.say("no views are recorded here, and this run's models look at them: all count as other")
    groups = {source.fingerprint(rows): rows for rows in _group(source, table)}
    names = {frozenset(image_ids[row] for row in rows): name for name, rows in groups.items()}
    records = [record for record in recall(journal, header, owner) if record["batch"] in groups]
    known = {record["batch"] for record in records}
    waiting = [rows for name, rows in groups.items() if name not in known]
    with (
        reporter.track("predict", len(image_ids)) as advance,
        closing(predict(waiting)) as found_records,
    ):
        advance(len(image_ids) - sum(map(len, waiting)))
        for said in found_records:
            record = {"batch": names[frozenset(_image_ids_of(said))], **said}
            if journal:
                journal.append(record)
            records.append(record)
            advance(len(_image_ids_of(record)))
    if journal and owner.keeps:
        rewrite(journal, header, records, order=list(groups))
    absent = {image_ids[row]: [error.reason, str(error)] for row, error in source.absent.items()}
    found = _tabulate(source, [*records, {"failures": absent}], run.list_folds(), prior=prior)
    return count_age(found, oof, reporter) if BY_PIXELS in oof else found


def _find_breasts(run: Run, source: ImageSource) -> BreastTable | None:
    """Returns which images the run judges together; None where it judges each by itself."""
    model = load_recipe(run.settings).model
    return None if model.fusion == "none" else BreastTable.of(source.exams, model, judges_images=True)


def _group(source: ImageSource, table: BreastTable | None) -> Iterator[list[int]]:
    """Yields the rows of each batch: an image that comes or goes changes no batch but its own."""
    for rows in _cut(len(source.exams)) if table is None else table.pack_units(BATCH_SIZE):
        if present := [row for row in rows if row not in source.absent]:
            yield present


def _cut(num_rows: int) -> list[list[int]]:
    rows = [*range(num_rows)]
    return [rows[start : start + BATCH_SIZE] for start in range(0, num_rows, BATCH_SIZE)]


def _predict_batch(
    ensemble: Ensemble, batch: SourceBatch, image_ids: list[str], table: BreastTable | None
) -> BatchRecord:
    names = [image_ids[row] for row in batch.rows]
    mean: list[float] = []
    each: list[list[float]] = [[] for _ in names]
    alone: dict[str, float] = {}
    if batch.images_BCHW is not None:
        images = batch.images_BCHW
        predicted = ensemble.predict_each(
            images if table is None else BreastInputs(images, table.place(batch.rows))
        )
        mean, each = predicted.mean.tolist(), predicted.each.T.tolist()
        alone = {} if predicted.alone is None else dict(zip(names, predicted.alone.tolist(), strict=True))
    undefined = [
        name for name, probability in zip(names, mean, strict=True) if not math.isfinite(probability)
    ]
    if undefined:
        raise UserError(
            f"the models give image {undefined[0]} a value that is not a number: their weights have "
            "diverged, or fp16 is too coarse for them; look at history.csv and train again with a lower "
            "train.learning_rate"
        )
    record = {
        "probabilities": dict(zip(names, mean, strict=True)),
        "folds": dict(zip(names, each, strict=True)),
        "failures": {image_ids[row]: [error.reason, str(error)] for row, error in batch.failures.items()},
    }
    records = {image_ids[row]: found for row, found in batch.records.items()}
    more = {"records": records, "image_probabilities": alone}
    return record | {name: found for name, found in more.items() if found}


def _image_ids_of(record: BatchRecord) -> list[str]:
    return [*record["probabilities"], *record["failures"]]


def _tabulate(
    source: ImageSource, records: list[BatchRecord], folds: list[int], *, prior: float
) -> RunPredictions:
    """Puts probabilities and failures into the order of the exam table, whatever order they came in."""
    exams = source.exams
    known = _join(records, "probabilities")
    of_folds, failed = _join(records, "folds"), _join(records, "failures")
    images = exams[[name for name in KEPT_COLUMNS if name in exams]].assign(file=_name_files(source))
    image_ids = exams["image_id"].tolist()
    images["probability"] = np.array([known.get(image_id, np.nan) for image_id in image_ids], np.float64)
    for number, fold in enumerate(folds):
        said = [of_folds[image_id][number] if image_id in of_folds else np.nan for image_id in image_ids]
        images[f"{FOLD_PROBABILITY}{fold}"] = np.array(said, np.float64)
    if alone := _join(records, "image_probabilities"):
        images[IMAGE_PROBABILITY] = np.array([alone.get(image_id, np.nan) for image_id in image_ids])
    failures = exams[exams["image_id"].isin(list(failed))]
    reasons = [failed[image_id] for image_id in failures["image_id"]]
    failures = failures.assign(
        reason=[reason for reason, _ in reasons], message=[text for _, text in reasons]
    )
    return RunPredictions(
        images,
        failures[[*FAILURES_COLUMNS, *([FILE] if FILE in exams else [])]],
        prior,
        _join(records, "records"),
    )


def _name_files(source: ImageSource) -> list[str]:
    """Returns the user's own name of each row's file: the table's, or else the source's."""
    named = source.exams[FILE].fillna("").tolist() if FILE in source.exams else [""] * len(source.exams)
    return [name or other for name, other in zip(named, source.files, strict=True)]


def _join(records: list[BatchRecord], name: str) -> dict[str, Any]:
    """Returns what all batches say under a name, by image_id."""
    return {image_id: value for record in records for image_id, value in record.get(name, {}).items()}
