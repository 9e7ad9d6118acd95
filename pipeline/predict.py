"""Images to probabilities, by one model or by all folds of a run. Knows no metric and no training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.cache import Cache, CacheSettings
from data_prep.errors import ImageError, UserError
from data_prep.exams import BREAST, locate_images, read_exams
from data_prep.frame import Image
from data_prep.pack import Images, open_images
from data_prep.prepare import stream_images
from data_prep.settings import differences
from pipeline.aggregate import to_breasts
from pipeline.checkpoint import load_weights
from pipeline.dataset import CachedImages, in_order, load_batches, to_tensor
from pipeline.optim import autocast, choose_device, choose_precision
from pipeline.progress import Reporter
from pipeline.run import Run, read_oof
from pipeline.settings import Precision, load_recipe

Probabilities = NDArray[np.float64]

BATCH_SIZE = 32
Numbered = tuple[int, Image | ImageError]
"""A row of the exam table, and its image or what is wrong with it."""


@dataclass(frozen=True)
class Arithmetic:
    """Where and how precisely a model computes."""

    device: str
    precision: Precision

    @classmethod
    def choose(cls, device: str, precision: Precision) -> "Arithmetic":
        """Takes what is wanted where this machine has it, else the nearest.

        Raises:
            UserError: if a GPU is asked for by name and there is none.
        """
        device = choose_device(device)
        return cls(device, choose_precision(precision, device))


@torch.inference_mode()
def find_logits(model: nn.Module, images_BCHW: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Returns logits_BK, float64, on the model's device."""
    with autocast(arithmetic.precision, arithmetic.device):
        logits_BK = model(images_BCHW.to(arithmetic.device, non_blocking=True))
    return logits_BK.double()


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images_BCHW: Tensor, *, logit_shift: float, arithmetic: Arithmetic
) -> Probabilities:
    """Returns one probability of cancer per image; `logit_shift` undoes the sampler's prior."""
    logits_B = find_logits(model, images_BCHW, arithmetic)[:, 0]
    return torch.sigmoid(logits_B + logit_shift).cpu().numpy()


def predict_cached(
    model: nn.Module,
    images: Images,
    rows: Sequence[int],
    *,
    logit_shift: float,
    arithmetic: Arithmetic,
    workers: int,
) -> Iterator[Probabilities]:
    """Yields the probabilities of these images of a cache, a batch at a time, in their order."""
    batches = load_batches(
        CachedImages(images), in_order(rows, BATCH_SIZE), workers=workers, device=arithmetic.device
    )
    for images_BCHW, _ in batches:
        yield predict_batch(model, images_BCHW, logit_shift=logit_shift, arithmetic=arithmetic)


@dataclass(frozen=True)
class RunPredictions:
    """What all folds of a run say of a set of images.

    Attributes:
        images: patient_id, image_id, laterality, prediction_id, probability (NaN where the image failed).
        failures: patient_id, image_id, reason, message of images that could not be used.
        prior: share of cancers among the breasts that the run was trained on.
    """

    images: pd.DataFrame
    failures: pd.DataFrame
    prior: float

    @property
    def required_ids(self) -> list[str]:
        """Every prediction_id once."""
        return list(self.images["prediction_id"].unique())

    def breasts(self) -> pd.DataFrame:
        """Returns prediction_id and probability per breast: the mean of its usable images, else the prior."""
        breasts = to_breasts(self.images).fillna({"probability": self.prior})
        identifiers = self.images[["patient_id", "laterality", "prediction_id"]].drop_duplicates()
        return breasts.drop(columns="prediction_id").merge(identifiers, on=BREAST)


class Ensemble:
    """All folds of a run: the mean of their probabilities.

    Raises:
        UserError: if the run is not finished or a fold's weights cannot be read.
    """

    def __init__(self, run: Run) -> None:
        self.folds = run.require_finished()
        self.recipe = load_recipe(run.settings)
        self.arithmetic = Arithmetic.choose("auto", self.recipe.train.precision)
        self._models = [load_weights(run.fold(fold), self.recipe.model) for fold in self.folds]
        for model, _ in self._models:
            model.to(self.arithmetic.device)

    def predict(self, images_BCHW: Tensor) -> Probabilities:
        """Returns one probability per image."""
        each = [
            predict_batch(model, images_BCHW, logit_shift=shift, arithmetic=self.arithmetic)
            for model, shift in self._models
        ]
        return np.mean(each, axis=0)


def predict_folder(run: Run, folder: Path, *, workers: int, reporter: Reporter) -> RunPredictions:
    """Predicts the images of a folder's test.csv straight from their files, a batch in memory at a time.

    Raises:
        UserError: if the run is not finished, test.csv cannot be used, or all of its images are absent.
    """
    exams = read_exams(folder, "test")
    paths = locate_images(exams, folder, "test")
    if paths.isna().all():
        raise UserError(f"{folder}/test_images holds none of the {len(exams)} images that test.csv names")
    ensemble = Ensemble(run)
    present, absent = np.flatnonzero(paths.notna()), np.flatnonzero(paths.isna())
    images = stream_images(list(paths.iloc[present]), ensemble.recipe.prepare, workers=workers)
    found = ((int(present[index]), image) for index, image in images)
    missing = ((int(row), ImageError("missing", "test.csv names it, but it has no file")) for row in absent)
    return _predict(run, ensemble, exams, chain(missing, found), reporter)


def predict_cache(run: Run, cache: Cache, *, reporter: Reporter) -> RunPredictions:
    """Predicts the images of a cache of the test split.

    Raises:
        UserError: if the run is not finished, or the cache is not of the test split and the run's settings.
    """
    ensemble = Ensemble(run)
    needed = CacheSettings(split="test", prepare=ensemble.recipe.prepare)
    changed = differences(cache.settings(), needed)
    if changed:
        raise UserError(
            f"{cache.folder} does not fit {run.folder} ({'; '.join(changed)}): "
            f"make one with `mammo prepare --split test --config {run.settings}`"
        )
    exams = cache.read_exams(prepared_only=False)
    return _predict(run, ensemble, exams, _read_cached(cache, exams), reporter)


def _read_cached(cache: Cache, exams: pd.DataFrame) -> Iterator[Numbered]:
    """Yields each row's image, or why `prepare` could not make it."""
    records = cache.read_records()
    outcomes = [records[image_id] for image_id in exams["image_id"]]
    images = iter(open_images(cache, exams[[not outcome.get("reason") for outcome in outcomes]]))
    for row, outcome in enumerate(outcomes):
        failed = outcome.get("reason")
        yield row, ImageError(failed, outcome["message"]) if failed else next(images)


def _predict(
    run: Run,
    ensemble: Ensemble,
    exams: pd.DataFrame,
    stream: Iterable[Numbered],
    reporter: Reporter,
) -> RunPredictions:
    """Predicts (row of `exams`, image or what is wrong with it), a batch at a time."""
    probabilities = np.full(len(exams), np.nan)
    errors: dict[int, ImageError] = {}
    with reporter.track("predict", len(exams)) as advance:
        for batch in _batches(stream):
            errors |= {row: image for row, image in batch if isinstance(image, ImageError)}
            tensors = {row: to_tensor(image) for row, image in batch if not isinstance(image, ImageError)}
            if tensors:
                probabilities[list(tensors)] = ensemble.predict(torch.stack(list(tensors.values())))
            advance(len(batch))
    failures = exams.loc[sorted(errors), ["patient_id", "image_id"]].assign(
        reason=[errors[row].reason for row in sorted(errors)],
        message=[str(errors[row]) for row in sorted(errors)],
    )
    images = exams[["patient_id", "image_id", "laterality", "prediction_id"]]
    return RunPredictions(images.assign(probability=probabilities), failures, prior=_training_prior(run))


def _batches(stream: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    remaining = iter(stream)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch


def _training_prior(run: Run) -> float:
    tables = [read_oof(run.fold(fold).oof) for fold in run.require_finished()]
    return float(to_breasts(pd.concat(tables))["cancer"].mean())
