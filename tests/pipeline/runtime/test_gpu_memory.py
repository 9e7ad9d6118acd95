"""A GPU whose memory is full ends a training with a sentence, and what the sentence advises lets it go on."""

from itertools import count
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from data_prep.cache.folder import Cache
from data_prep.errors import UserError
from pipeline.classification.class_run import ClassRun
from pipeline.classification.train_classes import train_classes
from pipeline.models.vit import VisionTransformer
from pipeline.runs.recipe import Recipe, load_recipe
from pipeline.runs.run_folder import Run, TrainingFolder
from pipeline.runtime.gpu_memory import (
    GpuMemoryFull,
    advise_training,
    describe_memory,
    explain_out_of_memory,
)
from pipeline.training.cross_validate import cross_validate
from pipeline.training.dry_run import make_dry_run
from tests.pipeline.tiny import MODEL, heard, make_class_recipe, make_recipe, quiet, write_class_folder

ADVICE = (
    "is kept, run the same command with --set train.accumulation=2, which takes the same batches in smaller "
    "parts, or another --run with a smaller train.batch_size"
)


def fill_memory(patch: pytest.MonkeyPatch, *, after: int) -> None:
    """Lets the models that learn have so many batches, and then no memory."""
    forward, batches = VisionTransformer.forward, count(1)

    def run_out(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
        if model.training and next(batches) > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(model, images_BCHW)

    patch.setattr(VisionTransformer, "forward", run_out)


def with_parts(recipe: Recipe, accumulation: int, *, gradient_checkpointing: bool = False) -> Recipe:
    """The recipe with batches in other parts, and layers that are computed again."""
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"accumulation": accumulation}),
            "model": recipe.model.model_copy(update={"gradient_checkpointing": gradient_checkpointing}),
        }
    )


def read_weights(folder: TrainingFolder) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder.weights)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_fold_ends_with_a_sentence_and_goes_on_as_it_says(
    cache: Cache,
    unbroken: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    gradient_checkpointing: bool,
) -> None:
    """In the second epoch, so that there is a checkpoint; the weights are those of a run without a break."""
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        fill_memory(patch, after=5)
        with pytest.raises(GpuMemoryFull) as full:
            cross_validate(make_recipe(), cache, run, reporter=quiet(), folds=[0])
    assert full.value.exit_code == 3
    assert str(full.value) == (
        "fold 0 with train.batch_size 8 and train.accumulation 1: the memory of the GPU is full: "
        f"what was saved {ADVICE}"
    )
    assert run.fold(0).last.exists()
    recipe, reporter = with_parts(make_recipe(), 2, gradient_checkpointing=gradient_checkpointing), quiet()
    cross_validate(recipe, cache, run, reporter=reporter, folds=[0])
    assert "goes on after epoch 1, batch 0" in heard(reporter)
    assert "run was begun with train.accumulation 1 and goes on with 2: its weights will" in heard(reporter)
    weights, expected = read_weights(run.fold(0)), read_weights(unbroken.fold(0))
    torch.testing.assert_close(weights, expected, atol=1e-4, rtol=0)
    assert load_recipe(run.settings) == make_recipe(), "the run keeps what it was begun with"


def test_before_the_first_step_a_smaller_batch_is_a_way_out_too(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        fill_memory(patch, after=0)
        with pytest.raises(GpuMemoryFull):
            cross_validate(make_recipe(epochs=1), cache, run, reporter=quiet(), folds=[0])
    cross_validate(make_recipe(epochs=1, batch_size=6), cache, run, reporter=quiet(), folds=[0])
    assert run.fold(0).is_finished


def test_a_dry_run_says_what_takes_less_and_speaks_of_nothing_saved(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_memory(monkeypatch, after=1)
    with pytest.raises(GpuMemoryFull, match=r"is full: run the same command with --set train\.accumulation"):
        make_dry_run(make_recipe(), cache, reporter=quiet())


def test_classes_end_with_the_same_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_memory(monkeypatch, after=2)
    folder, run = write_class_folder(tmp_path / "colours"), ClassRun(tmp_path / "run")
    with pytest.raises(GpuMemoryFull, match=f"^run with train.batch_size 8 and .*: what was saved {ADVICE}$"):
        train_classes(make_class_recipe(), folder, run, reporter=quiet())


@pytest.mark.parametrize(
    ("accumulation", "world_size", "checkpointing", "advice"),
    [
        (1, 1, False, "--set train.accumulation=2,"),
        (1, 2, False, "--set train.accumulation=2,"),
        (2, 1, True, "--set train.accumulation=4,"),
        (2, 2, False, "--set model.gradient_checkpointing=true,"),
        (4, 1, False, "--set model.gradient_checkpointing=true,"),
        (8, 1, True, "take a GPU with more memory"),
    ],
)
def test_the_advice_is_never_a_setting_that_the_trainer_refuses(
    accumulation: int, world_size: int, checkpointing: bool, advice: str
) -> None:
    """A batch of 8 has at most 8 parts over all processes, and some batches may be smaller."""
    recipe = with_parts(make_recipe(), accumulation, gradient_checkpointing=checkpointing)
    assert advice in advise_training(recipe, world_size=world_size)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_full_memory_is_known_whoever_says_it(error: RuntimeError) -> None:
    with pytest.raises(UserError) as full, explain_out_of_memory("work", "do less"):
        raise error
    assert str(full.value) == "work: the memory of the GPU is full: do less"
    assert full.value.__cause__ is error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), explain_out_of_memory("work", "do less"):
        raise RuntimeError("shapes do not fit")


def test_memory_that_other_programs_hold_is_said() -> None:
    alone = describe_memory("NVIDIA L4", total=24_000_000_000, free=1_000_000_000, own=22_500_000_000)
    assert alone == "NVIDIA L4 (24 GB)"
    shared = describe_memory("NVIDIA L4", total=24_000_000_000, free=1_000_000_000, own=3_000_000_000)
    assert shared == "NVIDIA L4 (24 GB, 20 GB of them held by other programs)"


def test_layers_that_are_computed_again_have_the_same_gradients() -> None:
    """What a run may change on its way must not change what it learns."""
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = VisionTransformer(MODEL.model_copy(update={"gradient_checkpointing": again, "dropout": 0.2}))
        model(torch.linspace(-1, 1, 2 * 32 * 32).view(2, 1, 32, 32)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
