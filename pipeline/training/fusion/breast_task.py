"""One fold of a cross-validation as a task for the trainer in which a row is a breast."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.augmentation import Augmentation
from pipeline.data.breast_dataset import BreastDataset
from pipeline.data.breasts import BreastTable, ViewDraw
from pipeline.data.loader import TrainingImages
from pipeline.models.breast_transformer import BreastLogits, BreastTransformer, average_own
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import Recipe
from pipeline.training.fold_task import FoldImages, FoldTask


class BreastTask(FoldTask):
    """Learns cancer from breasts, each seen by all its images; plans and samplers are those of images."""

    num_probabilities = 2

    def __init__(self, recipe: Recipe, images: FoldImages, *, fold: int) -> None:
        self.table = BreastTable.of(images.training, recipe.model)
        super().__init__(recipe, images, fold=fold)
        draw = ViewDraw(
            table=self.table,
            draws_between=self._count_draws_between(),
            seed=recipe.train.seed,
            drop_view=recipe.train.drop_view,
            one_view=bool(recipe.model.views_per_breast),
        )
        self.dataset = BreastDataset(
            images.training_images,
            self.table,
            choose=draw.choose,
            augmentation=Augmentation(recipe.augment),
            seed=recipe.train.seed,
        )
        held_out = BreastTable.of(images.validation, recipe.model, judges_images=True)
        self._judged = BreastDataset(images.validation_images, held_out)
        drawn = [draw.choose(place, row) for place, row in enumerate(np.concatenate(self.plan(0)).tolist())]
        self.images_per_row = float(np.mean([len(rows.own) + len(rows.other) for rows in drawn]))

    @property
    def judged(self) -> TrainingImages:
        """The held-out images, by breast or exam."""
        return self._judged

    def label_rows(self) -> NDArray[np.integer]:
        """Returns whether each breast has cancer."""
        cancer = self.images.training["cancer"].to_numpy()
        return np.array([cancer[rows.own].max() for rows in self.table.breasts])

    def make_model(self) -> nn.Module:
        """Returns the Vision Transformer with layers over a breast's images, whose head starts as its own."""
        model = BreastTransformer(self.model)
        with torch.no_grad():
            model.fusion.head.bias.fill_(float(self.first_logits[0]))
        return model

    def pick_encoder(self, model: nn.Module) -> VisionTransformer:
        """Returns the Vision Transformer."""
        return self.pick_kept(model).encoder

    def pick_kept(self, model: nn.Module) -> BreastTransformer:
        """Returns the whole of it."""
        assert isinstance(model, BreastTransformer)
        return model

    def losses(self, logits: Any, targets_NT: Tensor) -> Tensor:
        """Returns each breast's loss: the mean of its own and of its images', each judged by itself.

        Auxiliary targets are of images alone.
        """
        assert isinstance(logits, BreastLogits)
        places = logits.places
        labels_B = torch.where(places.is_own, places.gather(targets_NT[:, 0]), 0.0).amax(dim=1)
        of_images_B = average_own(self.cancer_losses(logits.images[:, 0], targets_NT[:, 0]), places)
        losses_B = 0.5 * (self.cancer_losses(logits.breasts, labels_B) + of_images_B)
        if not self.settings.auxiliaries:
            return losses_B
        return losses_B + average_own(self.auxiliary_losses(logits.images, targets_NT), places)

    def to_probabilities(self, logits: Any) -> NDArray[np.float64]:
        """Returns for each image the probability of its breast and its own, [N, 2]."""
        return super().to_probabilities(logits.by_image)

    def _count_draws_between(self) -> NDArray[np.float64]:
        """Returns for each breast how many draws lie between two of it, in the mean of its class."""
        plan = self.plan(0)
        num_draws = len(plan) * self.settings.batch_size  # places in an epoch, some of them empty
        drawn = self.labels[np.concatenate(plan)]
        between = {
            label: num_draws * (self.labels == label).sum() / (drawn == label).sum() for label in (0, 1)
        }
        return np.where(self.labels == 1, between[1], between[0])


def make_task(recipe: Recipe, images: FoldImages, *, fold: int) -> FoldTask:
    """Returns the task of a fold: of single images or of breasts, as the recipe's model judges them."""
    kind = FoldTask if recipe.model.fusion == "none" else BreastTask
    return kind(recipe, images, fold=fold)
