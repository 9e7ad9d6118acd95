"""Images to logits and probabilities, by one model or by the mean of several."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.loader import Inputs
from pipeline.models.breast_transformer import BreastLogits
from pipeline.runtime.precision import ComputeSettings, autocast

Probabilities = NDArray[np.float64]
Logits = TypeVar("Logits", Tensor, BreastLogits)

BATCH_SIZE = 32
"""Images that are predicted together, and lost together when the process is killed."""


@torch.inference_mode()
def compute_logits(model: Callable[[Any], Logits], inputs: Inputs, compute: ComputeSettings) -> Logits:
    """Returns the model's logits, float64, on its device."""
    with autocast(compute.precision, compute.device):
        logits = model(inputs.to(compute.device, non_blocking=True))
    return logits.double()


@torch.inference_mode()
def predict_batch(
    model: nn.Module, inputs: Inputs, *, logit_shift: float, compute: ComputeSettings
) -> Tensor:
    """Returns probability_B of cancer, on the model's device; `logit_shift` undoes the sampler's prior.

    Of whole breasts it is [2, B]: for each image that of its breast, and its own.
    """
    logits: Tensor | BreastLogits = compute_logits(model, inputs, compute)
    of_cancer = logits.by_image.T if isinstance(logits, BreastLogits) else logits[:, 0]
    return torch.sigmoid(of_cancer + logit_shift)


class Prediction(NamedTuple):
    """What several models say of a batch.

    Attributes:
        mean: of all, [B]; of whole breasts, for each image that of its breast.
        each: of each model, [K, B].
        alone: of whole breasts, the mean that each image has by itself, [B]; else None.
    """

    mean: Probabilities
    each: Probabilities
    alone: Probabilities | None = None


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

    def predict(self, inputs: Inputs) -> Probabilities:
        """Returns one probability per image, the mean of all models."""
        return self.predict_each(inputs).mean

    def predict_each(self, inputs: Inputs) -> Prediction:
        """Returns what the models say together and one by one; of several threads one computes at a time.

        Those of all models are copied from the device together, since every copy waits for it. The mean is
        numpy's: torch adds in another order, and a journal goes on to the last bit.
        """
        with self._lock:
            inputs = inputs.to(self._compute.device)
            seen = [inputs, inputs.flip(-2)] if self._flip else [inputs]
            said = [
                predict_batch(model, view, logit_shift=shift, compute=self._compute)
                for model, shift in self._models
                for view in seen
            ]
            everything = torch.stack(said).cpu().numpy()  # [models x seen, B] or [models x seen, 2, B]
        all_NB, alone_NB = (everything, None) if everything.ndim == 2 else everything.transpose(1, 0, 2)
        each_KB = all_NB.reshape(len(self._models), len(seen), -1).mean(axis=1)
        alone = None if alone_NB is None else np.mean(alone_NB, axis=0)
        return Prediction(np.mean(all_NB, axis=0), each_KB, alone)
