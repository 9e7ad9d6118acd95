"""One fold of a cross-validation as a task for the trainer: mammograms in balanced batches."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss
from torch import Tensor

from data_prep.cache.folder import Cache
from data_prep.cache.images import PreparedImages, open_images
from data_prep.errors import UserError, count
from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import ImageDataset, TrainingImages
from pipeline.data.sampler import ALL, Rows, log_odds, plan_balanced, plan_natural, plan_weighted
from pipeline.evaluation.estimates import measure_levels
from pipeline.evaluation.external.seen import tabulate_pictures
from pipeline.evaluation.formulas import clip_probabilities
from pipeline.models.weights_file import has_head, inherit_seen, read_seen
from pipeline.runs.ancestry import find_earlier_run, find_pretraining
from pipeline.runs.pretrain_run import hash_ids, hash_pictures
from pipeline.runs.recipe import Recipe, TrainSettings
from pipeline.runs.records import HISTORY_FIGURES
from pipeline.runs.run_folder import IMAGE_PROBABILITY, Run, select_oof
from pipeline.training.losses import auxiliary_loss, binary_loss, count_logits, encode_auxiliaries
from pipeline.training.task import Classifier, Judgement

SAID = ["probability", IMAGE_PROBABILITY]
"""Columns of the predictions: what each image's probability is, and where that is its breast's, its own."""


@dataclass(frozen=True)
class FoldImages:
    """The images of one fold's training and validation.

    Attributes:
        training, validation: exam tables.
        training_images, validation_images: each row's image.
        held_out_pictures: hashes of the latter.
    """

    training: pd.DataFrame
    validation: pd.DataFrame
    training_images: PreparedImages
    validation_images: PreparedImages
    held_out_pictures: frozenset[str] = frozenset()

    @classmethod
    def split(cls, exams: pd.DataFrame, folds: pd.DataFrame, fold: int, cache: Cache) -> "FoldImages":
        """Takes a fold's patients for validation and all others for training."""
        held_out = set(folds.loc[folds["fold"] == fold, "patient_id"])
        is_held_out = exams["patient_id"].isin(held_out)
        training, validation = (exams[rows].reset_index(drop=True) for rows in (~is_held_out, is_held_out))
        images = (open_images(cache, training), open_images(cache, validation))
        pictures = tabulate_pictures(cache.read_manifest())
        held_out_pictures = hash_pictures(pictures[pictures["patient_id"].isin(held_out)])
        return cls(training, validation, *images, frozenset(held_out_pictures))


class FoldTask(Classifier):
    """Learns cancer from the other folds' patients; `Task` says what each part is for."""

    def __init__(self, recipe: Recipe, images: FoldImages, *, fold: int) -> None:
        self.settings = recipe.train
        self.images = images
        self.fold = fold
        self.name = f"fold {fold}"
        self.seed = int(np.random.SeedSequence([recipe.train.seed, fold]).generate_state(1)[0])
        self.held_out = images.validation_images
        self.labels = self.label_rows()
        self.init = check_init(recipe.train, images, fold=fold)
        self.about = inherit_seen(Path(self.init))
        self.dataset: TrainingImages = ImageDataset(
            images.training_images, augmentation=Augmentation(recipe.augment), seed=recipe.train.seed
        )
        auxiliaries = encode_auxiliaries(images.training, recipe.train.auxiliaries)
        self.targets = torch.from_numpy(
            np.column_stack([images.training["cancer"].to_numpy(np.float32), auxiliaries])
        )  # cancer, and what is learned beside it
        num_outputs = 1 + count_logits(recipe.train.auxiliaries)
        self.model = recipe.model.model_copy(update={"num_classes": num_outputs})
        self.first_logits: NDArray[np.float64] = np.zeros(num_outputs)
        self.first_logits[0] = constant = self._find_best_constant()
        self.logit_shift = log_odds(self.labels) - constant

    def label_rows(self) -> NDArray[np.integer]:
        """Returns whether the rows of plans have cancer."""
        return self.images.training["cancer"].to_numpy()

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

    def _find_best_constant(self) -> float:
        """Returns the logit that cross-entropy asks for where nothing tells the classes apart.

        That is log(w positives / negatives) of what the plan gives, the same in every epoch: positives of
        weight w are as good as w times as many. The focal loss, soft labels and mixup are left out.
        """
        weight = math.log(self.settings.positive_weight)
        if self.settings.sampling == "weighted":
            return math.log(self.settings.positive_share / (1 - self.settings.positive_share)) + weight
        return log_odds(self.labels[np.concatenate(self.plan(0))]) + weight

    def losses(self, logits_BK: Tensor, targets_BN: Tensor) -> Tensor:
        """Returns each image's loss: of cancer, the first output, and of the auxiliary targets."""
        losses_B = self.cancer_losses(logits_BK[:, 0], targets_BN[:, 0])
        if not self.settings.auxiliaries:
            return losses_B
        return losses_B + self.auxiliary_losses(logits_BK, targets_BN)

    def auxiliary_losses(self, logits_BK: Tensor, targets_BN: Tensor) -> Tensor:
        """Returns what the auxiliary targets add to each image's loss."""
        extra_B = auxiliary_loss(logits_BK[:, 1:], targets_BN[:, 1:], self.settings.auxiliaries)
        return self.settings.auxiliary_weight * extra_B

    def cancer_losses(self, logits_B: Tensor, labels_B: Tensor) -> Tensor:
        """Returns the loss of each logit of cancer."""
        return binary_loss(
            logits_B,
            labels_B,
            positive_label=self.settings.positive_label,
            positive_weight=self.settings.positive_weight,
            focal_gamma=self.settings.focal_gamma,
        )

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns image ids."""
        return list(self.images.training["image_id"].iloc[rows])

    def to_probabilities(self, logits_BK: Tensor) -> NDArray[np.float64]:
        """Returns the probability of cancer, [B, 1]; auxiliary outputs predict nothing."""
        return torch.sigmoid(logits_BK[:, : self.num_probabilities] + self.logit_shift).cpu().numpy()

    def judge(self, probabilities_MN: NDArray[np.float64]) -> Judgement:
        """Returns an OOF table, the loss per image, and figures per breast and per image."""
        said = dict(zip(SAID, probabilities_MN.T, strict=False))
        oof = select_oof(self.images.validation.assign(fold=self.fold, **said))
        clipped = clip_probabilities(oof["probability"].to_numpy())
        figures = {"val_loss": float(log_loss(oof["cancer"], clipped, labels=[0, 1]))}
        for prefix, metrics in zip(("val", "val_image"), measure_levels(oof), strict=True):
            for name in HISTORY_FIGURES:
                value = metrics.figures[name]
                figures[f"{prefix}_{name}"] = math.nan if value is None else value
        return Judgement(oof, figures)


def check_init(settings: TrainSettings, images: FoldImages, *, fold: int) -> str:
    """Returns a fold's first weights, once it is known that they may be its.

    Raises:
        UserError: if they have learned from patients that the fold holds out, or seen them without leave, or
            lack the head that is to be kept.
    """
    init = locate_init(settings.init, fold)
    require_unseen(init, images.validation, fold=fold)
    if settings.keep_head and not has_head(Path(init)):
        raise UserError(
            f"train.init {init} was pretrained without labels, so its head predicts nothing: leave "
            "train.keep_head out"
        )
    if not settings.transductive:
        require_unseen_without_labels(read_seen(Path(init)), images, init=init, fold=fold)
    return init


def locate_init(init: str, fold: int) -> str:
    """Returns what `train.init` means for a fold: of an earlier run or pretraining, the fold's own."""
    pretraining, run = find_pretraining(init), find_earlier_run(init)
    if pretraining is not None:
        return str(pretraining.training_for(fold).weights)
    return init.replace("{fold}", str(fold)) if run is None else str(run.fold(fold).weights)


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


def require_unseen_without_labels(
    seen: Mapping[str, list[str]], images: FoldImages, *, init: str, fold: int
) -> None:
    """Makes sure that first weights were pretrained on nobody whom a fold holds out.

    Args:
        seen: hashes of `patients` and `pictures`, as the file of the weights has them.
        images: of the fold.
        init: where the weights are.
        fold: for the error.

    Raises:
        UserError: if they have seen a patient or a picture of the fold's.
    """
    patients = hash_ids(images.validation["patient_id"].unique()) & set(seen.get("patients", []))
    pictures = images.held_out_pictures & set(seen.get("pictures", []))
    if patients or pictures:
        what = count(len(patients), "patient") if patients else count(len(pictures), "picture")
        raise UserError(
            f"train.init {init} was pretrained on {what} that fold {fold} holds out: pretrain an encoder for "
            "each fold with `mammo pretrain --for`, or set train.transductive to true, and the report says so"
        )
