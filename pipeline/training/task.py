"""What the trainer asks of a task: what is learned, from which images, and how it is judged."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.cache.images import PreparedImages
from pipeline.data.loader import ImageDataset, TrainingImages
from pipeline.data.sampler import Rows
from pipeline.models.breast_transformer import BreastTransformer
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import ModelSettings
from pipeline.runtime.precision import ComputeSettings

KeptModel = VisionTransformer | BreastTransformer
"""What predicts."""


class Judgement(NamedTuple):
    """What became of the held-out images.

    Attributes:
        predictions: a row per image, as the training's table of predictions holds it.
        figures: for `history.csv`; NaN is undefined.
    """

    predictions: pd.DataFrame
    figures: dict[str, float]


class SingleImages:
    """What tasks share in which a row is an image."""

    held_out: PreparedImages
    images_per_row = 1.0
    num_probabilities = 1

    @property
    def judged(self) -> TrainingImages:
        """The held-out images, each by itself."""
        return ImageDataset(self.held_out)


class Classifier(SingleImages):
    """What tasks share that train a Vision Transformer alone."""

    model: ModelSettings
    about: Mapping[str, Any] = MappingProxyType({})

    def make_model(self) -> nn.Module:
        """Returns the Vision Transformer."""
        return VisionTransformer(self.model)

    def pick_encoder(self, model: nn.Module) -> VisionTransformer:
        """Returns the whole of it."""
        assert isinstance(model, VisionTransformer)
        return model

    def pick_kept(self, model: nn.Module) -> KeptModel:
        """Returns the whole of it."""
        return self.pick_encoder(model)

    def measure(
        self, model: nn.Module, epoch: int, compute: ComputeSettings, on_batch: Callable[[int], None]
    ) -> dict[str, float]:
        """Returns nothing: the held-out images tell all."""
        del model, epoch, compute, on_batch
        return {}


class Task(Protocol):
    """What is learned from which images: all that the trainer does not know."""

    @property
    def name(self) -> str:
        """What progress and errors call this training."""

    @property
    def seed(self) -> int:
        """Draws the first weights and all that is random inside the model."""

    @property
    def init(self) -> str:
        """`train.init`, as it is meant for this training."""

    @property
    def dataset(self) -> TrainingImages:
        """The training images, by the rows of a plan."""

    @property
    def images_per_row(self) -> float:
        """How many images go through the model for a row of a plan, in the mean."""

    @property
    def targets(self) -> Tensor:
        """What is to be learned of each training image, one row each, on the CPU."""

    @property
    def judged(self) -> TrainingImages:
        """The held-out images in the units that are judged together."""

    @property
    def model(self) -> ModelSettings:
        """The Vision Transformer; outputs beyond those of the recipe's model are dropped at the end."""

    @property
    def first_logits(self) -> NDArray[np.float64]:
        """What the head's biases start at, one per output."""

    @property
    def logit_shift(self) -> float:
        """What is added to the trained model's logits, and kept beside its weights."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the file of the weights says of them besides."""

    @property
    def held_out(self) -> PreparedImages:
        """The images that the model is judged by."""

    @property
    def num_probabilities(self) -> int:
        """How many numbers `to_probabilities` gives for each of them."""

    def make_model(self) -> nn.Module:
        """Returns what is trained, drawn by torch's global stream; it gives logits for a batch's inputs."""

    def pick_encoder(self, model: nn.Module) -> VisionTransformer:
        """Returns the part that first weights come into."""

    def pick_kept(self, model: nn.Module) -> KeptModel:
        """Returns the part that is kept in the end."""

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch, the same number of batches in each."""

    def losses(self, logits: Any, targets_B: Tensor) -> Tensor:
        """Returns the loss of each row of a plan, given each image's row of `targets`; all on one device."""

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns the names by which a user finds training images."""

    def to_probabilities(self, logits: Any) -> NDArray[np.float64]:
        """Returns what the model says of held-out images, [B, N], given its logits, float64."""

    def judge(self, probabilities_MN: NDArray[np.float64]) -> Judgement:
        """Returns table and figures, given the probabilities of all M held-out images in their order."""

    def measure(
        self, model: nn.Module, epoch: int, compute: ComputeSettings, on_batch: Callable[[int], None]
    ) -> dict[str, float]:
        """Returns more figures for `history.csv`, given the averaged model after epoch `epoch`, from 1.

        `on_batch` is called with 0 now and then, and may end it by an exception.
        """
