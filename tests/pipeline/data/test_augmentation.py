"""Random changes of images: drawn from (seed, draw) alone, gentle on the black around the breast."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cache.images import PngImages, write_image
from pipeline.data.augmentation import Augmentation
from pipeline.data.loader import ImageDataset, load_batches
from pipeline.runs.recipe import AugmentSettings
from tests.pipeline.tiny import noise

ALWAYS = AugmentSettings(vertical_flip=0.5, affine=1.0, tone=1.0, coarse_dropout=0.0)
NEVER = AugmentSettings(vertical_flip=0.0, affine=0.0, tone=0.0, coarse_dropout=0.0)


def only(**probabilities: float) -> Augmentation:
    """Everything off but what is named."""
    return Augmentation(NEVER.model_copy(update=probabilities))


def phantom(side=64) -> np.ndarray:
    """A bright disc at the chest wall, black around it."""
    rows, columns = np.mgrid[:side, :side]
    return np.where(np.hypot(rows - side / 2, columns) < side / 3, 150, 0).astype(np.uint8)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=12, unique=True))
def test_the_order_of_the_calls_changes_nothing(draws: list[int]) -> None:
    image, augment = noise(0), Augmentation(ALWAYS)
    forwards = {draw: augment(image, seed=1, draw=draw) for draw in draws}
    fresh = Augmentation(ALWAYS)
    for draw in reversed(draws):
        assert np.array_equal(fresh(image, seed=1, draw=draw), forwards[draw])


def test_global_random_states_neither_matter_nor_move() -> None:
    image, augment = noise(0), Augmentation(ALWAYS)
    results = []
    for state in (0, 1):
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        results.append(augment(image, seed=1, draw=0))
        after = (np.random.random(), torch.rand(1).item())  # noqa: NPY002
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        assert after == (np.random.random(), torch.rand(1).item())  # noqa: NPY002
    assert np.array_equal(*results)


def test_every_draw_and_seed_has_a_change_of_its_own() -> None:
    image, augment = noise(0), Augmentation(ALWAYS)
    keys = [(seed, draw) for seed in range(3) for draw in range(80)]
    changed = {augment(image, seed=seed, draw=draw).tobytes() for seed, draw in keys}
    assert len(changed) == len(keys)


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(8)]
    for row, path in enumerate(paths):
        write_image(path, noise(row))
    images = ImageDataset(PngImages(paths), augmentation=Augmentation(ALWAYS), seed=3)
    keys = [[(1, 0), (1, 5)], [(0, 7), (2, 0)], [(1, 2), (1, 3)], [(1, 1), (1, 6)], [(4, 4), (4, 5)]]
    each = [torch.cat([batch for batch, _ in load_batches(images, keys, workers=n)]) for n in (0, 1, 2)]
    assert each[0].shape == (10, 1, 32, 32)
    assert torch.equal(each[0], each[1])
    assert torch.equal(each[0], each[2])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (32, 32, 3)], ids=str)
def test_shape_and_type_stay_and_the_input_is_left_alone(shape: tuple[int, ...], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    before = image.copy()
    changed = Augmentation(ALWAYS)(image, seed=0, draw=0)
    assert (changed.shape, changed.dtype) == (shape, dtype)
    assert np.array_equal(image, before)
    assert not np.array_equal(changed, before)


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_without_any_probability_nothing_changes(bit_depth: int) -> None:
    augment = Augmentation(NEVER)
    for row in range(20):
        image = noise(row, bit_depth=bit_depth)
        assert np.array_equal(augment(image, seed=0, draw=row), image)


def test_images_of_8_and_16_bits_get_the_same_changes() -> None:
    """But for rounding, after the affine change and after the tone curve."""
    image, augment = phantom(), Augmentation(ALWAYS)
    for row in range(50):
        shallow = augment(image, seed=0, draw=row).astype(float)
        deep = augment(image * np.uint16(257), seed=0, draw=row) / 257
        np.testing.assert_allclose(deep, shallow, atol=3)


def test_a_flip_turns_upside_down_and_keeps_the_chest_wall_at_the_left() -> None:
    assert np.array_equal(only(vertical_flip=1.0)(noise(0), seed=0, draw=0), noise(0)[::-1])


def test_left_and_right_change_alone_and_move_no_other_draw() -> None:
    """The same images as without it, mirrored; in colours the same for all three channels."""
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    straight, mirrored = (
        Augmentation(ALWAYS.model_copy(update={"horizontal_flip": share})) for share in (0.0, 1.0)
    )
    for row in range(20):
        expected = straight(image, seed=0, draw=row)[:, ::-1]
        assert np.array_equal(mirrored(image, seed=0, draw=row), expected)


def test_each_probability_is_the_share_of_images_that_it_changes() -> None:
    image = phantom()
    for name in ("vertical_flip", "horizontal_flip", "affine", "coarse_dropout"):
        augment = only(**{name: 0.3})
        marked = image if name == "affine" else noise(0)
        same = [np.array_equal(augment(marked, seed=0, draw=row), marked) for row in range(400)]
        assert 0.22 < 1 - np.mean(same) < 0.38, name


def test_one_change_tells_nothing_of_another() -> None:
    """Two changes come together as often as the product of their probabilities says."""
    image, settings = phantom(), NEVER.model_copy(update={"vertical_flip": 0.5, "tone": 0.5})
    image[:8, :8] = 255  # tells up from down; white stays white, or nearly so
    changed = [Augmentation(settings)(image, seed=0, draw=row) for row in range(400)]
    is_flipped = np.array([each[:8, :8].mean() < each[-8:, :8].mean() for each in changed])
    is_toned = np.array(
        [
            not np.array_equal(each[::-1] if flip else each, image)
            for each, flip in zip(changed, is_flipped, strict=True)
        ]
    )
    assert 0.4 < is_flipped.mean() < 0.6
    assert 0.4 < is_toned.mean() < 0.6
    assert abs((is_flipped & is_toned).mean() - 0.25) < 0.08


def test_a_tone_curve_is_one_curve_for_all_pixels_and_never_turns_back() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for row in range(50):
        changed = only(tone=1.0)(image, seed=0, draw=row).ravel().astype(int)
        assert (np.diff(changed) >= 0).all()
        assert 0 < np.abs(changed - np.arange(256)).max() < 64


def test_coarse_dropout_blackens_few_rectangles_and_leaves_every_other_pixel_as_it_was() -> None:
    image = np.full((256, 256), 200, np.uint8)
    covered = []
    for row in range(200):
        changed = only(coarse_dropout=1.0)(image, seed=0, draw=row)
        assert set(np.unique(changed)) == {0, 200}
        covered.append((changed == 0).mean())
    assert max(covered) < 4 * 0.125**2
    assert 0.01 < np.mean(covered) < 0.03


def test_coarse_dropout_moves_no_other_draw() -> None:
    image = noise(0)
    holes = Augmentation(ALWAYS.model_copy(update={"coarse_dropout": 1.0}))
    for row in range(20):
        whole, with_holes = (augment(image, seed=0, draw=row) for augment in (Augmentation(ALWAYS), holes))
        assert np.array_equal(with_holes[with_holes > 0], whole[with_holes > 0])


def test_a_shift_stays_within_its_limit() -> None:
    augment = only(affine=1.0, scale=0.0, rotate_degrees=0.0, shift=0.125)
    image = np.zeros((64, 64), np.uint8)
    image[32, 32] = 255
    places = []
    for row in range(200):
        changed = augment(image, seed=0, draw=row).astype(float)
        assert changed.sum() > 0
        places.append([np.average(axis, weights=changed) for axis in np.mgrid[:64, :64]])
    offsets = np.abs(np.array(places) - 32)
    assert offsets.max() <= 8.5
    assert offsets.max(axis=0).min() > 6


def test_padding_stays_dark() -> None:
    """Far from the breast, whatever is drawn: no frame, no grey background."""
    image, augment = phantom(), Augmentation(ALWAYS)
    for row in range(200):
        changed = augment(image, seed=0, draw=row)
        assert changed[:, 48:].max() <= 16, row
        assert changed.max() >= 90, row


def test_black_stays_black_under_affine_changes() -> None:
    augment = only(affine=1.0)
    assert all(augment(phantom(), seed=0, draw=row)[:, 48:].max() == 0 for row in range(50))
