"""Images to probabilities, by one model or by the mean of several. Knows no files, metrics or training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.pack import Images
from pipeline.dataset import CachedImages, in_order, load_batches
from pipeline.optim import autocast, choose_device, choose_precision
from pipeline.settings import Precision

Probabilities = NDArray[np.float64]

BATCH_SIZE = 32


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


class Ensemble:
    """The mean of the probabilities of several models, each with its logit shift.

    With `flip`, each model also sees the images upside down, so that the chest wall stays at the left.
    """

    def __init__(
        self, models: Sequence[tuple[nn.Module, float]], arithmetic: Arithmetic, *, flip: bool = False
    ) -> None:
        self._models = [(model.to(arithmetic.device), shift) for model, shift in models]
        self._arithmetic = arithmetic
        self._flip = flip

    @property
    def device(self) -> str:
        """Where the models are."""
        return self._arithmetic.device

    def predict(self, images_BCHW: Tensor) -> Probabilities:
        """Returns one probability per image."""
        images_BCHW = images_BCHW.to(self._arithmetic.device)
        seen = [images_BCHW, images_BCHW.flip(-2)] if self._flip else [images_BCHW]
        each = [
            predict_batch(model, view_BCHW, logit_shift=shift, arithmetic=self._arithmetic)
            for model, shift in self._models
            for view_BCHW in seen
        ]
        return np.mean(each, axis=0)
