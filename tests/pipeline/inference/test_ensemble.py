"""Prediction by models in memory: an ensemble is the mean, and out-of-fold predictions are its parts."""

import numpy as np
import pytest
import torch

from data_prep.cache.folder import Cache
from data_prep.cache.images import open_images
from pipeline.inference.ensemble import compute_all_logits
from pipeline.inference.predict_test_set import load_ensemble
from pipeline.models.normalization import to_tensor
from pipeline.models.weights_file import load_weights
from pipeline.runs.run_folder import Run, read_oof
from pipeline.runtime.precision import ComputeSettings
from tests.pipeline.tiny import MODEL, noise

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
        batches = compute_all_logits(model, images, range(len(images)), CPU, workers=0)
        probabilities = torch.sigmoid(torch.cat(list(batches))[:, 0] + shift)
        np.testing.assert_array_equal(probabilities.numpy(), oof["probability"])
