"""Tensors on their way to the device and back, without a wait for what the device has still to do."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: str) -> Tensor:
    """Returns the tensor on the device; to a GPU from pinned memory, so that the copy waits for nothing."""
    if device == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Readback:
    """Numbers that come back from the device while it works on; only `read` waits, and for them alone."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrival is not None:
            self._arrival.record()

    def read(self) -> list[float]:
        """Returns the numbers, as soon as they are there."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._numbers.tolist()
