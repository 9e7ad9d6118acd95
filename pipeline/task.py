"""What the trainer asks of a task: what is learned, from which images, and how it is judged."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.pack import Images
from pipeline.dataset import CachedImages
from pipeline.predict import Arithmetic
from pipeline.sampler import Rows
from pipeline.settings import ModelSettings


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
    def dataset(self) -> CachedImages:
        """The training images."""

    @property
    def model(self) -> ModelSettings:
        """What is trained; outputs beyond those of the recipe's model are dropped at the end."""

    @property
    def first_logits(self) -> NDArray[np.float64]:
        """What the head's biases start at, one per output."""

    @property
    def logit_shift(self) -> float:
        """What is added to the trained model's logits, and kept beside its weights."""

    @property
    def held_out(self) -> Images:
        """The images that `predict` predicts."""

    def plan(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch, the same number of batches in each."""

    def losses(self, logits_BK: Tensor, rows_B: Tensor) -> Tensor:
        """Returns each image's loss, loss_B."""

    def name_rows(self, rows: list[int]) -> list[str]:
        """Returns the names by which a user finds training images."""

    def predict(
        self,
        model: nn.Module,
        arithmetic: Arithmetic,
        rows: Sequence[int],
        on_batch: Callable[[int], None],
    ) -> NDArray[np.float64]:
        """Returns the probabilities [N, K] of these held-out images.

        `on_batch` is called with the number of images after each batch.
        """

    def tabulate(self, probabilities_NK: NDArray[np.float64]) -> pd.DataFrame:
        """Returns the table of predictions, given those of all held-out images."""

    def measure(self, predicted: pd.DataFrame) -> dict[str, float]:
        """Returns the figures of such a table for `history.csv`; NaN is undefined."""
