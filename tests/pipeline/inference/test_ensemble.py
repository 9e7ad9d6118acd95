"""Prediction by models in memory: an ensemble is the mean, and out-of-fold predictions are its parts."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from data_prep.cache.folder import Cache
from data_prep.cache.images import open_images
from pipeline.data.loader import ImageDataset, in_order, load_batches
from pipeline.inference import ensemble as ensemble_module
from pipeline.inference.ensemble import BATCH_SIZE, Ensemble, compute_logits
from pipeline.inference.image_sources import FolderSource
from pipeline.inference.predict_test_set import load_ensemble
from pipeline.models.normalization import to_tensor
from pipeline.models.vit import VisionTransformer
from pipeline.models.weights_file import load_weights
from pipeline.runs.run_folder import Run, read_oof
from pipeline.runtime.precision import ComputeSettings
from tests.pipeline.tiny import MODEL, PREPARE, make_exams, noise, write_test_data

CPU = ComputeSettings("cpu", "float32")


@torch.inference_mode()
@pytest.mark.parametrize("flip", [False, True])
def test_the_ensemble_is_the_mean_of_the_folds_probabilities(unbroken: Run, flip: bool) -> None:
    """And of those of the images upside down, whose left stays left, where that is asked for."""
    images = [noise(seed) for seed in range(5)]
    each = []
    for fold in (0, 1):
        model, shift = load_weights(unbroken.fold(fold), MODEL)
        for seen in [images, [image[::-1].copy() for image in images]][: 1 + flip]:
            logits_B = model(torch.stack([to_tensor(image) for image in seen])).double().numpy()[:, 0]
            each.append(1 / (1 + np.exp(-(logits_B + shift))))
    assert len({tuple(values) for values in each}) == 2 * (1 + flip)
    images_BCHW = torch.stack([to_tensor(image) for image in images])
    predicted = load_ensemble(unbroken, flip=flip).predict(images_BCHW)
    np.testing.assert_allclose(predicted, np.mean(each, axis=0), rtol=1e-6)


def test_out_of_fold_predictions_are_those_of_the_folds_weights(cache: Cache, unbroken: Run) -> None:
    for fold in (0, 1):
        oof = read_oof(unbroken.fold(fold).oof)
        model, shift = load_weights(unbroken.fold(fold), MODEL)
        images = open_images(cache, oof)
        batches = load_batches(ImageDataset(images), in_order(range(len(images)), BATCH_SIZE), workers=0)
        logits_BK = torch.cat([compute_logits(model, images_BCHW, CPU) for images_BCHW, _ in batches])
        probabilities = torch.sigmoid(logits_BK[:, 0] + shift)
        np.testing.assert_array_equal(probabilities.numpy(), oof["probability"])


class Copies(TorchDispatchMode):
    """Notes what leaves its device: type, number of values, the device, and whether it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in args[:1]:  # of whatever operation; a copy has more than one name
            if isinstance(result, Tensor) and isinstance(tensor, Tensor) and tensor.device != result.device:
                is_awaited = True not in [*args[1:], kwargs.get("non_blocking")]
                self.seen.append((tensor.dtype, tensor.numel(), tensor.device.type, is_awaited))
        return result


@pytest.mark.parametrize("num_models", [1, 3])
def test_integers_go_to_the_device_and_one_copy_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_models: int
) -> None:
    """On a device whose tensors have no values, so that asking for one on the way fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: np.zeros(tensor.shape))
    folder = write_test_data(tmp_path / "data", make_exams(2, split="test"))
    source = FolderSource(folder, PREPARE, workers=0)
    models = [(VisionTransformer(MODEL).eval(), 0.0) for _ in range(num_models)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        ensemble = Ensemble(models, ComputeSettings("meta", "float32"), flip=True)
        with Copies() as copies:
            (batch,) = source.load([range(8)], device=ensemble.device)
            assert ensemble.predict(batch.images_BCHW).shape == (8,)
    assert copies.seen == [
        (torch.uint8, 8 * MODEL.image_size**2, "cpu", False),
        (torch.float64, 2 * num_models * 8, "meta", True),
    ]


def test_the_mean_is_numpys_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal goes on with the floats that it has; torch's mean of five differs often."""
    each = np.random.default_rng(0).random((5, 7))
    answers = iter(torch.from_numpy(each))
    monkeypatch.setattr(ensemble_module, "predict_batch", lambda *_, **__: next(answers))
    ensemble = Ensemble([(torch.nn.Identity(), 0.0)] * 5, CPU)
    np.testing.assert_array_equal(ensemble.predict(torch.zeros(7)), np.mean(list(each), axis=0))
