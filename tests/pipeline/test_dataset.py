"""Cached images as batches: right pixels for right rows, clear errors whatever process reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cache import write_image
from data_prep.errors import UserError
from pipeline.dataset import MEAN, STD, CachedImages, in_order, load_batches, to_tensor
from tests.pipeline.tiny import noise


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven images of noise; row k is `noise(k)`."""
    paths = [tmp_path / f"{row}.png" for row in range(7)]
    for row, path in enumerate(paths):
        write_image(path, noise(row))
    return paths


def test_a_tensor_is_the_normalised_image() -> None:
    image = noise(0, 32, 48)
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((1, 32, 48), torch.float32)
    np.testing.assert_allclose(tensor[0].numpy(), (image / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_keys(paths: list[Path], workers: int) -> None:
    keys = [[(0, 3), (0, 1)], [(5, 6)], [(0, 0), (0, 2), (9, 4)]]
    batches = list(load_batches(CachedImages(paths), keys, workers=workers))
    assert [rows_B.tolist() for _, rows_B in batches] == [[3, 1], [6], [0, 2, 4]]
    for images_BCHW, rows_B in batches:
        expected = torch.stack([to_tensor(noise(row)) for row in rows_B.tolist()])
        assert torch.equal(images_BCHW, expected)


def test_no_keys_are_no_batches(paths: list[Path]) -> None:
    assert list(load_batches(CachedImages(paths), [], workers=0)) == []


@given(st.integers(0, 100), st.integers(1, 40))
def test_in_order_goes_once_through_all_rows_in_full_batches(num_images: int, batch_size: int) -> None:
    batches = in_order(num_images, batch_size)
    assert [row for batch in batches for _, row in batch] == list(range(num_images))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("damage", "sentence"), [("remove", "cannot be read"), ("cut", "is damaged")])
def test_a_bad_image_is_one_sentence_from_a_worker_too(
    paths: list[Path], workers: int, damage: str, sentence: str
) -> None:
    if damage == "remove":
        paths[2].unlink()
    else:
        paths[2].write_bytes(b"no image")
    batches = load_batches(CachedImages(paths), in_order(7, 2), workers=workers)
    next(batches)
    with pytest.raises(UserError, match=sentence) as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert str(paths[2]) in str(caught.value)
