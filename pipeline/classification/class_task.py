"""The classes of an image folder as a task for the trainer."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.classification.class_run import prediction_columns, probability_column
from pipeline.classification.image_folder import TEST, TRAIN, ImageFolder
from pipeline.classification.metrics import compute_cross_entropy, number_labels, top_k_accuracy
from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import ImageDataset
from pipeline.data.sampler import Rows, plan_natural
from pipeline.models.weights_file import inherit_seen
from pipeline.runs.ancestry import find_pretraining
from pipeline.runs.recipe import Recipe
from pipeline.training.task import Classifier, Judgement


class ClassTask(Classifier):
    """Learns a folder's classes; `Task` says what each part is for."""

    logit_shift = 0.0

    def __init__(self, recipe: Recipe, folder: ImageFolder, *, name: str) -> None:
        self.settings = recipe.train
        self.name = name
        self.seed = recipe.train.seed
        pretraining = find_pretraining(recipe.train.init)
        self.init = recipe.train.init if pretraining is None else str(pretraining.training_for(None).weights)
        self.about = inherit_seen(Path(self.init))
        self.model = recipe.model
        self.labels = folder.labels
        self.num_probabilities = len(folder.labels)
        self.training, self.test = folder.split(TRAIN), folder.split(TEST)
        shape = {"side": recipe.model.image_size, "channels": recipe.model.in_channels}
        self.held_out = folder.open_images(self.test, **shape)
        self.dataset = ImageDataset(
            folder.open_images(self.training, **shape),
            augmentation=Augmentation(recipe.augment),
            seed=recipe.train.seed,
        )
        classes = number_labels(self.training["label"], self.labels)
        self.targets = torch.from_numpy(classes)
        shares = np.bincount(classes, minlength=len(self.labels)) / len(self.training)
        self.first_logits: NDArray[np.float64] = np.log(shares)  # each class has a training image

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch: every image once, in parts of equal size."""
        entropy = [self.settings.seed, epoch]
        return plan_natural(len(self.training), batch_size=self.settings.batch_size, entropy=entropy)

    def losses(self, logits_BK: Tensor, targets_B: Tensor) -> Tensor:
        """Returns each image's cross-entropy, given the number of its class."""
        return F.cross_entropy(logits_BK, targets_B, reduction="none")

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns paths below the folder."""
        return list(self.training["image"].iloc[rows])

    def to_probabilities(self, logits_BK: Tensor) -> NDArray[np.float64]:
        """Returns the probability of each class, [B, K]."""
        return logits_BK.softmax(dim=1).cpu().numpy()

    def judge(self, probabilities_MN: NDArray[np.float64]) -> Judgement:
        """Returns the table of `predictions.csv`, and loss and accuracy; nothing is chosen by them."""
        predicted = probabilities_MN.argmax(axis=1)
        table = self.test[["image", "label"]].assign(
            predicted=np.array(self.labels, dtype=object)[predicted], probability=probabilities_MN.max(axis=1)
        )
        columns = pd.DataFrame(probabilities_MN, columns=[*map(probability_column, self.labels)])
        classes = number_labels(self.test["label"], self.labels)
        figures = {
            "test_loss": compute_cross_entropy(classes, probabilities_MN),
            "test_accuracy": top_k_accuracy(classes, probabilities_MN, k=1),
        }
        return Judgement(pd.concat([table, columns], axis=1)[prediction_columns(self.labels)], figures)
