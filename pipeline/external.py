"""A run on labelled images of elsewhere: predicted, judged and reported, gone on with where it stopped."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import pandas as pd

from data_prep.cache.folder import Cache
from data_prep.cache.tables import PREPARED
from data_prep.errors import UserError, count
from data_prep.rsna.exam_table import locate_images, read_exams
from data_prep.storage.atomic import Journal, remove_temporaries, write_csv
from data_prep.storage.locks import locked
from data_prep.storage.places import Place
from pipeline.evaluation.age.age_regression import AGE, BY_PIXELS
from pipeline.evaluation.audit.flow import describe_external_flow
from pipeline.evaluation.audit.traits import to_file_traits
from pipeline.evaluation.compare import Difference, compare
from pipeline.evaluation.evaluate_oof import Evaluation
from pipeline.evaluation.external.external_set import OperatingRule
from pipeline.evaluation.external.judge_external import (
    Circumstances,
    judge_external,
    read_predictions,
    select_predictions,
    tabulate_external_cases,
)
from pipeline.evaluation.external.seen import (
    Learned,
    find_seen_patients,
    find_seen_pictures,
    read_learned,
    refuse_seen,
)
from pipeline.evaluation.external.tones import measure_cache_tones, measure_own_tones
from pipeline.evaluation.oof import collect_oof
from pipeline.inference.engine import open_engine
from pipeline.inference.predict_test_set import predict_labelled
from pipeline.inference.run_metrics import read_rule
from pipeline.inference.run_predictions import RunPredictions
from pipeline.reporting.cases.case_images import CachedCaseImages, CaseImages, FileCaseImages
from pipeline.reporting.external_report import write_external_report
from pipeline.runs.evaluation_folder import ExternalFolder
from pipeline.runs.recipe import load_recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.progress import Reporter

if TYPE_CHECKING:
    from data_prep.parallel.ray_cluster import Cluster

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, _ . and -, a letter or digit first"


MOST_NAMED = 5
"""Patients who are named on the terminal."""


@dataclass(frozen=True)
class ExternalResult:
    """What became of an external set.

    Attributes:
        failures: patient_id, image_id, reason, message of images that could not be used.
    """

    folder: ExternalFolder
    evaluation: Evaluation
    failures: pd.DataFrame


@dataclass(frozen=True)
class _Known:
    """What is known of a set before it is judged."""

    exams: pd.DataFrame
    manifest: pd.DataFrame
    failures: pd.DataFrame
    left_out: pd.DataFrame
    not_compared: str


def name_set(data: Place | Cache, name: str | None) -> str:
    """Returns what a set is called: as asked, or by the name of its folder.

    Raises:
        UserError: if that is no plain name of a folder.
    """
    place = data.folder if isinstance(data, Cache) else data
    found = name or PurePath(place.resolve() if isinstance(place, Path) else place.text).name
    if not NAME.fullmatch(found):
        raise UserError(f"the set cannot be called {found!r}: choose a --name of {NAME_RULE}")
    return found


def evaluate_external(
    run: Run,
    data: Place | Cache,
    name: str,
    *,
    workers: int,
    reporter: Reporter,
    skip_seen: bool = False,
    cluster: "AbstractContextManager[Cluster | None] | None" = None,
) -> ExternalResult:
    """Judges a run on images with labels that it has not learned from; writes `external/<name>/`.

    What is predicted is kept, so that the same call goes on, or judges anew without a prediction.

    Args:
        run: is finished and evaluated.
        data: folder or URL with train.csv and the images, or a cache of the train split.
        name: of the set.
        workers: processes that decode or load; 0 works in this one.
        reporter: shows the progress.
        skip_seen: leaves out the patients that the run has learned from.
        cluster: is entered once all is checked; None, given or yielded, is this machine.

    Raises:
        UserError: if run and images do not fit together, or the run has learned from one of the patients.
        FolderInUse: if another command judges the same set.
    """
    run.require_finished()
    rule, oof = read_rule(run), collect_oof(run)
    learned = read_learned(run, oof)
    exams = _read_labelled(data)
    seen = _find_seen(data, exams, learned)
    if not skip_seen:
        refuse_seen(seen, run)
    if exams["patient_id"].isin(seen["patient_id"]).all():
        raise UserError(
            f"{run.folder} has learned from all patients of this set: name --data of other patients"
        )
    folder = run.external(name)
    with locked(folder.folder):
        remove_temporaries(folder.folder)
        with open_engine(cluster, workers=workers, reads_files=not isinstance(data, Cache)) as engine:
            predictions = predict_labelled(
                run,
                data,
                workers=engine.workers,
                reporter=reporter,
                journal=Journal(folder.journal),
                without=seen["patient_id"].unique().tolist(),
                predictor=engine.predictor,
                executor=engine.executor,
            )
        manifest = data.read_manifest() if isinstance(data, Cache) else _to_manifest(predictions)
        pictures = find_seen_pictures(_leave_out(manifest, seen), learned)
        if not skip_seen:
            refuse_seen(pictures, run)
        left_out = pd.concat([seen, pictures], ignore_index=True)
        _say_left_out(left_out, folder, reporter)
        _write_predictions(folder, predictions, left_out)
        known = _Known(exams, manifest, predictions.failures, left_out, learned.unknown)
        evaluation = _judge(run, data, folder, oof, rule, known)
        _report(run, data, folder, evaluation, oof, reporter=reporter)
    return ExternalResult(folder, evaluation, predictions.failures)


def compare_external(runs: Sequence[Run], name: str) -> list[Difference]:
    """Compares each run with the first on an external set that all were judged on, by its name.

    Raises:
        UserError: if one was not judged on it, or they were not of the same breasts and labels.
    """
    folders = {str(run.folder): run.external(name) for run in runs}
    for run in runs:
        if not folders[str(run.folder)].metrics.exists():
            raise UserError(
                f"{run.folder} was not judged on {name}: run `mammo evaluate {run.folder} --name {name}` "
                "with its --data first"
            )
    thresholds = {str(run.folder): read_rule(run).threshold_of_mean for run in runs}
    predictions = {str(run.folder): read_predictions(folders[str(run.folder)]) for run in runs}
    for run in runs:
        if (BY_PIXELS in predictions[str(run.folder)]) != (AGE in run.read_inputs()):
            raise UserError(
                f"{run.folder} was judged on {name} before its model.inputs changed: run `mammo evaluate "
                f"{run.folder} --name {name}` with its --data once more"
            )
    return compare(predictions, thresholds=thresholds)


def _read_labelled(data: Place | Cache) -> pd.DataFrame:
    """Reads the table of a set.

    Raises:
        UserError: if it has no labels.
    """
    if not isinstance(data, Cache):
        if (data / "test.csv").is_file() and not (data / "train.csv").is_file():
            raise UserError(
                f"{data} has a test.csv and no train.csv, and so no labels to judge by: `mammo collect` "
                "keeps them with --split train"
            )
        return read_exams(data, "train")
    exams = data.read_all_exams()
    if "cancer" not in exams:
        raise UserError(
            f"{data.folder} is a cache of the test split and has no labels to judge by: "
            "make one with `mammo prepare --split train`"
        )
    return exams


def _find_seen(data: Place | Cache, exams: pd.DataFrame, learned: Learned) -> pd.DataFrame:
    """Returns whom the run has learned from, as far as it is known before an image is read."""
    seen = find_seen_patients(exams, learned.patients)
    if not isinstance(data, Cache):
        return seen
    pictures = find_seen_pictures(data.read_manifest(), learned)
    others = pictures[~pictures["patient_id"].isin(seen["patient_id"])]
    return pd.concat([seen, others], ignore_index=True)


def _to_manifest(predictions: RunPredictions) -> pd.DataFrame:
    """Returns what a manifest would say of images that were predicted from their files."""
    images = predictions.images
    images = images.loc[images["image_id"].isin(list(predictions.records)), ["patient_id", "image_id"]]
    records = [predictions.records[image_id] for image_id in images["image_id"]]
    columns = sorted({name for record in records for name in record})
    facts = pd.DataFrame(records, columns=columns, index=images.index)
    return images.assign(status=PREPARED).join(facts)


def _write_predictions(folder: ExternalFolder, predictions: RunPredictions, seen: pd.DataFrame) -> None:
    """Keeps what was predicted, before it is judged.

    Raises:
        UserError: if nothing is left to be judged.
    """
    images = predictions.images
    is_judged = images["probability"].notna() & ~images["patient_id"].isin(seen["patient_id"])
    if not is_judged.any():
        raise UserError(
            f"there is nothing to judge: of {len(images):,} images {len(predictions.failures):,} cannot be "
            "used, and the run has learned from the patients of the others: name --data of other patients"
        )
    write_csv(folder.oof, select_predictions(images[is_judged]))
    for path, table in {folder.failures: predictions.failures, folder.left_out: seen}.items():
        if len(table):
            write_csv(path, table)
        else:
            path.unlink(missing_ok=True)


def _say_left_out(left_out: pd.DataFrame, folder: ExternalFolder, reporter: Reporter) -> None:
    """Names the patients who are left out."""
    patients = left_out["patient_id"].unique().tolist()
    if patients:
        named = ", ".join(patients[:MOST_NAMED]) + (" and others" if len(patients) > MOST_NAMED else "")
        reporter.say(
            f"{count(len(patients), 'patient')} left out, whom the run has learned from: {named}; "
            f"{folder.left_out} says by what"
        )


def _leave_out(manifest: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    return manifest[~manifest["patient_id"].isin(seen["patient_id"])]


def _judge(
    run: Run,
    data: Place | Cache,
    folder: ExternalFolder,
    oof: pd.DataFrame,
    rule: OperatingRule,
    known: _Known,
) -> Evaluation:
    """Judges what is kept of the predictions."""
    images = read_predictions(folder)
    judged = known.manifest[known.manifest["image_id"].isin(images["image_id"])]
    left_out = set(known.left_out["patient_id"])
    circumstances = Circumstances(
        name=folder.name,
        run_name=run.name,
        flow=describe_external_flow(known.exams, known.failures, left_out, images),
        files=to_file_traits(judged),
        own_tones=measure_own_tones(run, load_recipe(run.settings).prepare, oof["image_id"]),
        tones=measure_cache_tones(data, images["image_id"]) if isinstance(data, Cache) else judged,
        left_out=known.left_out,
        not_compared=known.not_compared,
    )
    return judge_external(images, oof, rule, circumstances)


def _report(
    run: Run,
    data: Place | Cache,
    folder: ExternalFolder,
    evaluation: Evaluation,
    oof: pd.DataFrame,
    *,
    reporter: Reporter,
) -> None:
    """Writes the tables of cases, the figures and the report."""
    assert evaluation.external is not None, "it is of an external set"
    cases = tabulate_external_cases(evaluation, oof)
    write_csv(folder.images, cases.images)
    write_csv(folder.breasts, cases.breasts)
    write_csv(folder.shift, evaluation.external.shift)
    images: CaseImages
    if isinstance(data, Cache):
        images = CachedCaseImages.of_cache(data)
    else:
        paths = locate_images(evaluation.oof, data, "train")
        by_image = dict(zip(evaluation.oof["image_id"], paths, strict=True))
        images = FileCaseImages(by_image, load_recipe(run.settings).prepare)
    write_external_report(run, folder, evaluation, images, reporter=reporter)
