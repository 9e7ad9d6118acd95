"""Prediction by models in memory: an ensemble is the mean, and out-of-fold predictions are its parts."""

import numpy as np
import pytest
import torch

from data_prep.cache import Cache
from data_prep.pack import open_images
from pipeline.checkpoint import load_weights
from pipeline.dataset import to_tensor
from pipeline.inference import load_ensemble
from pipeline.predict import Arithmetic, predict_cached
from pipeline.run import Run, read_oof
from tests.pipeline.tiny import MODEL, noise

CPU = Arithmetic("cpu", "float32")


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
        batches = predict_cached(
            model, images, range(len(images)), logit_shift=shift, arithmetic=CPU, workers=0
        )
        np.testing.assert_array_equal(np.concatenate(list(batches)), oof["probability"])
