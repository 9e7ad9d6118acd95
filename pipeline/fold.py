"""One fold of a cross-validation as a task for the trainer: mammograms, balanced batches, a table per image.

Knows nothing of the other folds and of the run's reports.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.cache import Cache
from data_prep.errors import UserError
from data_prep.pack import Images, open_images
from pipeline.augment import Augmentation
from pipeline.dataset import CachedImages
from pipeline.losses import auxiliary_loss, binary_loss, count_logits, encode_auxiliaries
from pipeline.predict import Arithmetic, predict_cached
from pipeline.run import Run, select_oof
from pipeline.sampler import ALL, Rows, log_odds, plan_balanced, plan_natural, plan_weighted
from pipeline.settings import Recipe
from pipeline.subsets import measure_levels

HISTORY_FIGURES = ["pf1", "auc", "average_precision"]
"""What `history.csv` follows, per breast (`val_`) and per image (`val_image_`)."""


@dataclass(frozen=True)
class FoldImages:
    """The images of one fold's training and validation.

    Attributes:
        training, validation: exam tables.
        training_images, validation_images: each row's image.
    """

    training: pd.DataFrame
    validation: pd.DataFrame
    training_images: Images
    validation_images: Images

    @classmethod
    def split(cls, exams: pd.DataFrame, folds: pd.DataFrame, fold: int, cache: Cache) -> "FoldImages":
        """Takes a fold's patients for validation and all others for training."""
        held_out = set(folds.loc[folds["fold"] == fold, "patient_id"])
        is_held_out = exams["patient_id"].isin(held_out)
        training, validation = (exams[rows].reset_index(drop=True) for rows in (~is_held_out, is_held_out))
        return cls(training, validation, open_images(cache, training), open_images(cache, validation))


class FoldTask:
    """Learns cancer from the other folds' patients; `pipeline.task.Task` says what each part is for."""

    def __init__(self, recipe: Recipe, images: FoldImages, *, fold: int) -> None:
        self.settings = recipe.train
        self.images = images
        self.fold = fold
        self.name = f"fold {fold}"
        self.seed = int(np.random.SeedSequence([recipe.train.seed, fold]).generate_state(1)[0])
        self.held_out = images.validation_images
        self.labels = images.training["cancer"].to_numpy()
        self.init = recipe.train.init.replace("{fold}", str(fold))
        require_unseen(self.init, images.validation, fold=fold)
        self.dataset = CachedImages(
            images.training_images, augmentation=Augmentation(recipe.augment), seed=recipe.train.seed
        )
        share_of_batches = self._find_log_odds_of_batches()
        self.auxiliary_targets = encode_auxiliaries(images.training, recipe.train.auxiliaries)
        num_outputs = 1 + count_logits(recipe.train.auxiliaries)
        self.model = recipe.model.model_copy(update={"num_classes": num_outputs})
        self.first_logits: NDArray[np.float64] = np.zeros(num_outputs)
        self.first_logits[0] = share_of_batches
        self.logit_shift = log_odds(self.labels) - share_of_batches

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch."""
        settings = self.settings
        if settings.sampling == "natural":
            entropy = [settings.seed, self.fold, ALL, epoch]
            return plan_natural(len(self.labels), batch_size=settings.batch_size, entropy=entropy)
        make_plan = plan_balanced if settings.sampling == "balanced" else plan_weighted
        return make_plan(
            self.labels,
            batch_size=settings.batch_size,
            positive_share=settings.positive_share,
            seed=settings.seed,
            fold=self.fold,
            epoch=epoch,
        )

    def _find_log_odds_of_batches(self) -> float:
        """Returns log(positives / negatives) of what the plan gives, the same in every epoch."""
        if self.settings.sampling == "weighted":
            return math.log(self.settings.positive_share / (1 - self.settings.positive_share))
        return log_odds(self.labels[np.concatenate(self.plan(0))])

    def losses(self, logits_BK: Tensor, rows_B: Tensor) -> Tensor:
        """Returns each image's loss: of cancer, the first output, and of the auxiliary targets."""
        rows, settings = rows_B.numpy(), self.settings
        labels_B = torch.as_tensor(self.labels[rows], dtype=torch.float32, device=logits_BK.device)
        losses_B = binary_loss(
            logits_BK[:, 0],
            labels_B,
            positive_label=settings.positive_label,
            positive_weight=settings.positive_weight,
            focal_gamma=settings.focal_gamma,
        )
        if not settings.auxiliaries:
            return losses_B
        targets_BN = torch.as_tensor(self.auxiliary_targets[rows], device=logits_BK.device)
        extra_B = auxiliary_loss(logits_BK[:, 1:], targets_BN, settings.auxiliaries)
        return losses_B + settings.auxiliary_weight * extra_B

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns image ids."""
        return list(self.images.training["image_id"].iloc[rows])

    def predict(
        self,
        model: nn.Module,
        arithmetic: Arithmetic,
        rows: Sequence[int],
        on_batch: Callable[[int], None],
    ) -> NDArray[np.float64]:
        """Returns the probabilities [N, 1] of these held-out images."""
        batches = predict_cached(
            model,
            self.held_out,
            rows,
            logit_shift=self.logit_shift,
            arithmetic=arithmetic,
            workers=self.settings.workers,
        )
        probabilities = [np.empty(0)]
        for probabilities_B in batches:
            probabilities.append(probabilities_B)
            on_batch(len(probabilities_B))
        return np.concatenate(probabilities)[:, None]

    def tabulate(self, probabilities_NK: NDArray[np.float64]) -> pd.DataFrame:
        """Returns an OOF table."""
        table = self.images.validation.assign(fold=self.fold, probability=probabilities_NK[:, 0])
        return select_oof(table)

    def measure(self, predicted: pd.DataFrame) -> dict[str, float]:
        """Returns the loss per image, and figures per breast and per image."""
        cancer = predicted["cancer"].to_numpy()
        probability = predicted["probability"].clip(1e-7, 1 - 1e-7).to_numpy()
        figures = {
            "val_loss": float(-np.log(np.where(cancer == 1, probability, 1 - probability)).mean()),
        }
        for prefix, metrics in zip(("val", "val_image"), measure_levels(predicted), strict=True):
            for name in HISTORY_FIGURES:
                value = metrics.figures[name]
                figures[f"{prefix}_{name}"] = math.nan if value is None else value
        return figures


def require_unseen(init: str, held_out: pd.DataFrame, *, fold: int) -> None:
    """Makes sure that first weights of another run have not learned from patients that this fold holds out.

    A file that has been moved away from its run's folds.csv cannot be judged.

    Raises:
        UserError: if they have.
    """
    folder = Path(init).parent
    number, run = re.fullmatch(r"fold_(\d+)", folder.name), Run(folder.parent)
    if number is None or not run.folds.exists():
        return
    folds = run.read_folds()
    seen = set(held_out["patient_id"]) & set(folds.loc[folds["fold"] != int(number[1]), "patient_id"])
    if seen:
        raise UserError(
            f"train.init {init} was trained on {len(seen)} of the patients that fold {fold} holds out: write "
            "{fold} for the fold's number in its path, and give both runs the same images and train.seed"
        )
