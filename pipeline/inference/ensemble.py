"""Images to logits and probabilities, by one model or by the mean of several."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.runtime.precision import ComputeSettings, autocast

Probabilities = NDArray[np.float64]

BATCH_SIZE = 32
"""Images that are predicted together, and lost together when the process is killed."""


@torch.inference_mode()
def compute_logits(
    model: Callable[[Tensor], Tensor], images_BCHW: Tensor, compute: ComputeSettings
) -> Tensor:
    """Returns logits_BK, float64, on the model's device."""
    with autocast(compute.precision, compute.device):
        logits_BK = model(images_BCHW.to(compute.device, non_blocking=True))
    return logits_BK.double()


@torch.inference_mode()
def predict_batch(
    model: nn.Module, images_BCHW: Tensor, *, logit_shift: float, compute: ComputeSettings
) -> Tensor:
    """Returns probability_B of cancer, on the model's device; `logit_shift` undoes the sampler's prior."""
    logits_B = compute_logits(model, images_BCHW, compute)[:, 0]
    return torch.sigmoid(logits_B + logit_shift)


class Prediction(NamedTuple):
    """What several models say of a batch.

    Attributes:
        mean: of all, [B].
        each: of each model, [K, B].
    """

    mean: Probabilities
    each: Probabilities


class Ensemble:
    """The mean of the probabilities of several models, each with its logit shift.

    With `flip`, each model also sees the images upside down, so that the chest wall stays at the left.
    """

    def __init__(
        self, models: Sequence[tuple[nn.Module, float]], compute: ComputeSettings, *, flip: bool = False
    ) -> None:
        self._models = [(model.to(compute.device), shift) for model, shift in models]
        self._compute = compute
        self._flip = flip
        self._lock = Lock()

    @property
    def device(self) -> str:
        """Where the models are."""
        return self._compute.device

    def predict(self, images_BCHW: Tensor) -> Probabilities:
        """Returns one probability per image, the mean of all models."""
        return self.predict_each(images_BCHW).mean

    def predict_each(self, images_BCHW: Tensor) -> Prediction:
        """Returns what the models say together and one by one; of several threads one computes at a time.

        Those of all models are copied from the device together, since every copy waits for it. The mean is
        numpy's: torch adds in another order, and a journal goes on to the last bit.
        """
        with self._lock:
            images_BCHW = images_BCHW.to(self._compute.device)
            seen = [images_BCHW, images_BCHW.flip(-2)] if self._flip else [images_BCHW]
            said = [
                predict_batch(model, view_BCHW, logit_shift=shift, compute=self._compute)
                for model, shift in self._models
                for view_BCHW in seen
            ]
            all_NB = torch.stack(said).cpu().numpy()
        each_KB = all_NB.reshape(len(self._models), len(seen), -1).mean(axis=1)
        return Prediction(np.mean(all_NB, axis=0), each_KB)
