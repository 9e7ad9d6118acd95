"""A step keeps the device busy: nothing in it waits for a result, and its figures are read one step late."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data_prep.cache.folder import Cache
from pipeline.runs.recipe import Recipe
from pipeline.runs.run_folder import Run
from pipeline.runtime.distributed import SINGLE_PROCESS
from pipeline.runtime.precision import ComputeSettings
from pipeline.runtime.transfers import Readback, send
from pipeline.training import losses, stepper
from pipeline.training.cross_validate import make_fold_tasks
from pipeline.training.fold_task import FoldTask
from pipeline.training.state import TrainingState, load_state
from pipeline.training.stepper import Stepper
from tests.pipeline.tiny import make_recipe, quiet

ACCELERATOR = "meta"
"""Stands for a GPU: its tensors have no values here, so that whatever would wait for one raises."""


def send_pinned(tensor: Tensor, device: str) -> Tensor:
    """What `send` gives, without its copy."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


class NoReadback:
    """Figures that never arrive."""

    def __init__(self, numbers: Tensor) -> None:
        assert numbers.device.type == ACCELERATOR

    def read(self) -> list[float]:
        return [0.0, 0.0]


class Crossings(TorchDispatchMode):
    """Keeps the names of operations that take a tensor from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and compares the devices of what goes in and comes out."""
        del types
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, Tensor)]
        # A number that arithmetic takes from here, such as a learning rate, is an argument of a kernel.
        is_copy = "copy" in str(func)
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or is_copy}
        if len(devices) > 1:
            self.names.append(str(func))
        return result


def make_stepper(
    recipe: Recipe, cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[FoldTask, TrainingState, Stepper]:
    """A stepper whose device is the accelerator that has no values."""
    task = next(make_fold_tasks(recipe, cache, reporter=quiet()))
    monkeypatch.setattr("pipeline.training.optim.FUSED", set())  # torch has no fused kernels for it
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for module in (stepper, losses):
        monkeypatch.setattr(module, "send", send_pinned)
    monkeypatch.setattr(stepper, "Readback", NoReadback)
    compute = ComputeSettings(ACCELERATOR, "float32")
    state = load_state(
        task, recipe.train, Run(folder).fold(0), compute, reporter=quiet(), group=SINGLE_PROCESS
    )
    return task, state, Stepper(task, recipe.train, state, compute, SINGLE_PROCESS)


def make_parts(task: FoldTask, num_parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of batches as the loader gives them: images there, rows here."""
    side = task.model.image_size
    for _ in range(num_parts):
        yield torch.empty(4, 1, side, side, device=ACCELERATOR), torch.arange(4)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mixup": 0.4, "auxiliaries": ("view",), "accumulation": 2},
        {"focal_gamma": 1.0, "positive_weight": 2.0, "layer_decay": 0.8},
        {"optimizer": "sgd"},
        {"optimizer": "lion"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kept_patches", [0, 3])
def test_no_step_waits_for_the_device_or_copies_to_it_but_by_pinned_memory(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], kept_patches: int
) -> None:
    recipe = make_recipe(**change)
    model = recipe.model.model_copy(update={"kept_patches": kept_patches, "dropout": 0.1, "drop_path": 0.1})
    recipe = recipe.model_copy(update={"model": model})
    task, state, steps = make_stepper(recipe, cache, tmp_path, monkeypatch)
    parts = make_parts(task, 3 * recipe.train.accumulation)
    with Crossings() as crossings:
        for step in range(3):
            steps.take(parts, 4 * recipe.train.accumulation, step=step, learning_rate=1e-3)
    assert crossings.names == []
    assert state.average.module.head.weight.device.type == ACCELERATOR


@pytest.mark.parametrize("name", ["item", "mask", "copy", "number"])
def test_whatever_waits_is_found(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The test above can fail: by a number that is read, a mask that is counted, a plain copy."""
    task, _, steps = make_stepper(make_recipe(), cache, tmp_path, monkeypatch)
    plain = FoldTask.losses

    def wait(task: FoldTask, logits_BK: Tensor, targets_BN: Tensor) -> Tensor:
        if name == "item":
            float(logits_BK.sum())
        elif name == "mask":
            logits_BK[logits_BK > 0].sum()
        elif name == "copy":
            logits_BK = logits_BK + torch.zeros(4, 1).to(logits_BK.device)
        else:
            logits_BK = logits_BK + torch.tensor(1.0).to(logits_BK.device)
        return plain(task, logits_BK, targets_BN)

    monkeypatch.setattr(FoldTask, "losses", wait)
    with Crossings() as crossings:
        try:
            steps.take(make_parts(task, 1), 4, step=0, learning_rate=1e-3)
        except (RuntimeError, NotImplementedError) as error:
            assert "meta" in str(error)  # noqa: PT017
            return
    assert crossings.names == ["aten._to_copy.default"]


def test_figures_are_read_while_the_next_step_is_under_way(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = next(make_fold_tasks(make_recipe(), cache, reporter=quiet()))
    events: list[str] = []

    class HeardReadback(Readback):
        def __init__(self, numbers: Tensor) -> None:
            super().__init__(numbers)
            events.append("sent")

        def read(self) -> list[float]:
            events.append("read")
            return super().read()

    monkeypatch.setattr(stepper, "Readback", HeardReadback)
    compute = ComputeSettings("cpu", "float32")
    settings = make_recipe().train
    state = load_state(task, settings, Run(tmp_path).fold(0), compute, reporter=quiet(), group=SINGLE_PROCESS)
    state.model.register_forward_hook(lambda *_: events.append("forward"))
    steps = Stepper(task, settings, state, compute, SINGLE_PROCESS)
    side = task.model.image_size
    parts = iter([(torch.randn(4, 1, side, side), torch.arange(4))] * 3)
    for step in range(3):
        steps.take(parts, 4, step=step, learning_rate=1e-3)
    assert steps.num_unread == 1
    steps.settle()
    assert steps.num_unread == 0
    assert events == ["forward", "sent", "forward", "read", "sent", "forward", "read", "sent", "read"]
    assert state.loss_sum > 0


def test_what_is_sent_and_read_back_is_the_same_on_a_cpu() -> None:
    numbers = torch.tensor([1.5, -2.0])
    assert send(numbers, "cpu") is numbers
    assert Readback(numbers).read() == [1.5, -2.0]
