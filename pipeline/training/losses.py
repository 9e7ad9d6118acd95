"""What training minimises, per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_prep.errors import UserError
from pipeline.runtime.transfers import send

AGE_MEAN, AGE_STD = 58.0, 10.0  # years, of a screening population; so that ages weigh like the other targets


def binary_loss(
    logits_B: Tensor,
    targets_B: Tensor,
    *,
    positive_label: float = 1.0,
    positive_weight: float = 1.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Returns each image's loss [B], in nats.

    -w y (1 - p)^gamma log p - (1 - y) p^gamma log(1 - p), with p the sigmoid of the logit: binary cross-
    entropy for gamma 0 and w 1, else the focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 4).

    Args:
        logits_B: of cancer.
        targets_B: 0 to 1.
        positive_label: what stands for a target of 1; below 1 asks for less certainty of positives alone.
        positive_weight: w.
        focal_gamma: 0 or more; higher ones let easy images count less.
    """
    y_B = targets_B * positive_label
    log_p_B, log_q_B = F.logsigmoid(logits_B), F.logsigmoid(-logits_B)
    positive_B, negative_B = -positive_weight * y_B * log_p_B, -(1 - y_B) * log_q_B
    if focal_gamma:
        positive_B = positive_B * (focal_gamma * log_q_B).exp()
        negative_B = negative_B * (focal_gamma * log_p_B).exp()
    return positive_B + negative_B


@dataclass(frozen=True)
class Auxiliary:
    """A column of train.csv that a model may learn beside cancer.

    Attributes:
        classes: its values, for cross-entropy; two of them need one logit; none means a number.
    """

    classes: tuple[str, ...]

    @property
    def num_logits(self) -> int:
        """How many outputs predict it."""
        return len(self.classes) if len(self.classes) > 2 else 1


AUXILIARIES = {
    "biopsy": Auxiliary(("0", "1")),
    "invasive": Auxiliary(("0", "1")),
    "difficult_negative_case": Auxiliary(("False", "True")),
    "BIRADS": Auxiliary(("0", "1", "2")),
    "density": Auxiliary(("A", "B", "C", "D")),
    "view": Auxiliary(("CC", "MLO")),
    "age": Auxiliary(()),
}


def count_logits(names: Sequence[str]) -> int:
    """Returns how many outputs these auxiliary targets need."""
    return sum(AUXILIARIES[name].num_logits for name in names)


def encode_auxiliaries(exams: pd.DataFrame, names: Sequence[str]) -> NDArray[np.float32]:
    """Returns the targets [rows, names]: a class's number, or a standardised age; NaN where not recorded.

    Values outside the known classes (a rare view) count as not recorded.

    Raises:
        UserError: if a column is absent, or has no value at all.
    """
    columns = []
    for name in names:
        if name not in exams or exams[name].isna().all():
            raise UserError(f"train.csv records no {name}: leave it out of train.auxiliaries")
        classes = AUXILIARIES[name].classes
        if classes:
            numbers = pd.Index(classes).get_indexer(pd.Index(exams[name].astype("string")))
            columns.append(np.where(numbers < 0, np.nan, numbers))
        else:
            columns.append((exams[name].astype("float64").to_numpy() - AGE_MEAN) / AGE_STD)
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.empty((len(exams), 0), np.float32)


def auxiliary_loss(logits_BK: Tensor, targets_BN: Tensor, names: Sequence[str]) -> Tensor:
    """Returns each image's mean loss over the targets that it has, [B]; 0 where it has none.

    Cross-entropy for classes, half the squared error for numbers.

    Args:
        logits_BK: the outputs of `names`, one after the other.
        targets_BN: of `encode_auxiliaries`.
        names: which targets.
    """
    total_B = torch.zeros_like(logits_BK[:, 0])
    start = 0
    for name, target_B in zip(names, targets_BN.unbind(dim=1), strict=True):
        auxiliary = AUXILIARIES[name]
        output_BK = logits_BK[:, start : start + auxiliary.num_logits]
        start += auxiliary.num_logits
        known_B = target_B.isfinite()
        filled_B = target_B.nan_to_num()
        if auxiliary.num_logits > 1:
            loss_B = F.cross_entropy(output_BK, filled_B.long(), reduction="none")
        elif auxiliary.classes:
            loss_B = F.binary_cross_entropy_with_logits(output_BK[:, 0], filled_B, reduction="none")
        else:
            loss_B = 0.5 * (output_BK[:, 0] - filled_B) ** 2
        total_B = total_B + torch.where(known_B, loss_B, 0.0)
    return total_B / targets_BN.isfinite().sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class Mixup:
    """How the images of a batch are blended with one another (mixup, arXiv:1710.09412).

    Attributes:
        share: [B], of itself that each image keeps, 0.5 to 1; the rest is its partner's.
        partner: [B], which image of the batch that is.
    """

    share: Tensor
    partner: Tensor

    @classmethod
    def draw(
        cls, count: int, *, alpha: float, generator: np.random.Generator, device: str = "cpu"
    ) -> "Mixup":
        """Draws shares from Beta(alpha, alpha) and its mirror image, and partners by a permutation."""
        shares = generator.beta(alpha, alpha, count)
        share_B = torch.as_tensor(np.maximum(shares, 1 - shares), dtype=torch.float32)
        return cls(send(share_B, device), send(torch.as_tensor(generator.permutation(count)), device))

    def blend(self, images_BCHW: Tensor) -> Tensor:
        """Returns each image with its partner's laid over it."""
        share_B111 = self.share[:, None, None, None]
        return share_B111 * images_BCHW + (1 - share_B111) * images_BCHW[self.partner]

    def weigh(self, own_B: Tensor, partner_B: Tensor) -> Tensor:
        """Returns the loss against both targets: each image's own, and its partner's."""
        return self.share * own_B + (1 - self.share) * partner_B
