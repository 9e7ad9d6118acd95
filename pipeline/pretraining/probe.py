"""How well a linear model tells cancer from an encoder's features: the one figure here that labels enter.

Nothing is learned from it. It is of training images alone, cross-validated over their patients.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.errors import UserError
from pipeline.data.loader import ImageDataset, in_order, load_batches
from pipeline.inference.ensemble import BATCH_SIZE, compute_logits
from pipeline.pretraining.images import SOURCE, Sources
from pipeline.pretraining.masked_autoencoder import MaskedAutoencoder
from pipeline.runtime.precision import ComputeSettings

MOST_IMAGES = 2000
"""That are looked at: half of them with cancer, where there are so many."""
MOST_FOLDS = 5
REGULARISATION = 0.01
"""The inverse strength, scikit-learn's C: there are hundreds of features and few cancers."""

Features = NDArray[np.float64]


class Probe:
    """A linear probe on some labelled images.

    Raises:
        UserError: if none of the sources' images has a label, or only one patient has cancer or has none.
    """

    def __init__(self, sources: Sources, images: pd.DataFrame, *, seed: int) -> None:
        labelled = choose_images(add_labels(sources, images), seed=seed)
        self._images = ImageDataset(sources.pick(labelled))
        self._labels = labelled["cancer"].to_numpy()
        self._patients = labelled["patient_id"].to_numpy()
        self._seed = seed
        self._num_folds = count_folds(labelled)
        if self._num_folds < 2:
            raise UserError(
                "pretrain.probe_every takes two patients with cancer and two without, in a cache of the "
                "train split: set it to 0"
            )

    def measure(
        self, model: MaskedAutoencoder, compute: ComputeSettings, on_batch: Callable[[int], None]
    ) -> float:
        """Returns the AUC of images whose patients the linear model has not learned from, mean over folds."""
        features = []
        batches = in_order(range(len(self._images)), BATCH_SIZE)
        for images_BCHW, _ in load_batches(self._images, batches, workers=0, device=compute.device):
            features.append(compute_logits(model.describe, images_BCHW, compute).cpu())
            on_batch(0)
        return cross_validate_probe(
            torch.cat(features).numpy(), self._labels, self._patients, self._num_folds, seed=self._seed
        )


def add_labels(sources: Sources, images: pd.DataFrame) -> pd.DataFrame:
    """Returns the images that have a label, with `cancer`; the order stays."""
    found = []
    for row, cache in enumerate(sources.caches):
        if cache.settings().split == "train":
            exams = cache.read_exams()
            found.append(exams[["patient_id", "image_id", "cancer"]].assign(**{SOURCE: row}))
    if not found:
        return images.iloc[:0].assign(cancer=0)
    return images.merge(pd.concat(found), on=["patient_id", "image_id", SOURCE])


def choose_images(labelled: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Returns at most `MOST_IMAGES`: up to half of them with cancer, and others."""
    generator = np.random.default_rng(seed)
    order = labelled.iloc[generator.permutation(len(labelled))]
    with_cancer = order[order["cancer"] == 1].head(MOST_IMAGES // 2)
    without = order[order["cancer"] == 0].head(MOST_IMAGES - len(with_cancer))
    return pd.concat([with_cancer, without]).sort_index().reset_index(drop=True)


def count_folds(labelled: pd.DataFrame) -> int:
    """Returns how many folds there can be with both labels in each."""
    patients = [labelled.loc[labelled["cancer"] == label, "patient_id"].nunique() for label in (0, 1)]
    return min(MOST_FOLDS, *patients)


def cross_validate_probe(
    features_MD: Features,
    labels: NDArray[np.integer],
    patients: NDArray[np.object_],
    num_folds: int,
    *,
    seed: int,
) -> float:
    """Returns the mean over folds, split by patient, of a logistic regression's AUC; NaN if undefined."""
    aucs = []
    splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    for training, validation in splitter.split(features_MD, labels, groups=patients):
        if len(np.unique(labels[training])) < 2 or len(np.unique(labels[validation])) < 2:
            continue
        regression = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=2000)
        probe = make_pipeline(StandardScaler(), regression).fit(features_MD[training], labels[training])
        scores = probe.decision_function(features_MD[validation])
        aucs.append(float(roc_auc_score(labels[validation], scores)))
    return float(np.mean(aucs)) if aucs else math.nan
