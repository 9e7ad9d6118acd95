"""Cached images as batches: right pixels for right rows, clear errors whatever process reads them."""

from multiprocessing import active_children
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cache.images import PackedImages, PngImages, open_images, write_image
from data_prep.cache.pack import write_pack
from data_prep.errors import UserError
from data_prep.preprocessing.settings import PrepareSettings
from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import ImageDataset, in_order, load_batches
from pipeline.models.normalization import to_tensor
from pipeline.runs.recipe import AugmentSettings
from tests.pipeline.tiny import PREPARE, make_exams, noise, write_cache

CHANGED = AugmentSettings(affine=1.0, tone=1.0)
DEEP = PREPARE.model_copy(update={"bit_depth": 16})


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Seven images of noise; row k is `noise(k)`."""
    paths = [tmp_path / f"{row}.png" for row in range(7)]
    for row, path in enumerate(paths):
        write_image(path, noise(row))
    return paths


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_keys(paths: list[Path], workers: int) -> None:
    keys = [[(0, 3), (0, 1)], [(5, 6)], [(0, 0), (0, 2), (9, 4)]]
    batches = list(load_batches(ImageDataset(PngImages(paths)), keys, workers=workers))
    assert [rows_B.tolist() for _, rows_B in batches] == [[3, 1], [6], [0, 2, 4]]
    for images_BCHW, rows_B in batches:
        expected = torch.stack([to_tensor(noise(row)) for row in rows_B.tolist()])
        assert torch.equal(images_BCHW, expected)


class NumThreads:
    """Images whose pixels are the number of threads that OpenCV has where they are read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int, /) -> np.ndarray:
        cv2.warpAffine(np.zeros((512, 512), np.uint8), np.eye(2, 3), (512, 512))
        return np.full((4, 4), cv2.getNumThreads(), np.uint8)


def test_each_worker_has_one_thread_of_opencv_whatever_this_process_has() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        NumThreads()[0]  # starts the threads
        ((images_BCHW, _),) = load_batches(ImageDataset(NumThreads()), [[(0, 0), (0, 1)]], workers=1)
        assert torch.equal(images_BCHW, to_tensor(np.ones((4, 4), np.uint8)).expand(2, 1, 4, 4))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_no_keys_are_no_batches(paths: list[Path]) -> None:
    assert list(load_batches(ImageDataset(PngImages(paths)), [], workers=0)) == []


@given(st.integers(0, 100), st.integers(1, 40))
def test_in_order_goes_once_through_all_rows_in_full_batches(num_images: int, batch_size: int) -> None:
    batches = in_order(range(num_images), batch_size)
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
    before = active_children()
    batches = load_batches(ImageDataset(PngImages(paths)), in_order(range(7), 2), workers=workers)
    next(batches)
    with pytest.raises(UserError, match=sentence) as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert str(paths[2]) in str(caught.value)
    assert set(active_children()) <= set(before), "workers outlive their loader while its error is kept"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prepare", [PREPARE, DEEP], ids=["8 bits", "16 bits"])
def test_a_pack_gives_the_batches_of_the_single_images(
    tmp_path: Path, prepare: PrepareSettings, workers: int
) -> None:
    exams = make_exams(3)
    cache = write_cache(tmp_path / "cache", exams, prepare=prepare, failed={"103"})
    exams = cache.read_exams().iloc[::-1]
    keys = [[(1, 0), (1, 5)], [(0, 7), (2, 0)], [(1, 2), (1, 10)]]

    def batches() -> list[list[torch.Tensor]]:
        images = ImageDataset(open_images(cache, exams), augmentation=Augmentation(CHANGED), seed=3)
        return list(load_batches(images, keys, workers=workers))

    single = batches()
    write_pack(cache, workers=0)
    assert isinstance(open_images(cache, exams), PackedImages)
    for (images_BCHW, rows_B), (packed_BCHW, packed_rows_B) in zip(single, batches(), strict=True):
        assert torch.equal(images_BCHW, packed_BCHW)
        assert torch.equal(rows_B, packed_rows_B)
