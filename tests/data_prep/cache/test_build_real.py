"""Real mammograms, prepared: what the squares show, and what the quick decode costs."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.preprocessing.settings import CodecSettings, PrepareSettings
from data_prep.preprocessing.windowing import to_display
from tests.data_prep.reading import prepare_image, read_frame


def peak_signal_to_noise(image: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    error = np.mean((image.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.fixture(scope="module")
def real_images(real_data: Path) -> dict[str, np.ndarray[Any, Any]]:
    paths = sorted((real_data / "rsna_dicom/train_images").rglob("*.dcm"))
    return {path.stem: prepare_image(path, PrepareSettings())[0] for path in paths}


def test_real_mammograms_are_bright_on_black_with_the_chest_wall_at_the_left(
    real_images: dict[str, np.ndarray[Any, Any]],
) -> None:
    assert len(real_images) == 6
    for name, image in real_images.items():
        assert image.shape == (512, 512), name
        assert np.percentile(image, 50) < 5, f"{name}: the background is dark"
        assert np.percentile(image, 99) > 90, f"{name}: tissue is bright"
        sums = image.sum(axis=0, dtype=float)
        assert sums[:128].sum() > 10 * sums[-128:].sum(), f"{name}: chest wall at the left"
        assert sums.argmax() < 128, f"{name}: the breast is widest at the left"


def test_nothing_of_a_real_breast_is_cut_off(real_data: Path) -> None:
    """Beside the box there is no more than background, burned-in text and the edge of a collimator."""
    for path in sorted((real_data / "rsna_dicom/train_images").rglob("*.dcm")):
        _, record = prepare_image(path, PrepareSettings(side=64))
        display = to_display(read_frame(path, level=2))
        left, top, right, bottom = (record[f"box_{edge}"] // 4 for edge in ("left", "top", "right", "bottom"))
        display[top : bottom + 1, left : right + 1] = 0
        assert (display > 0.05).mean() < 0.02, path.stem


def test_the_default_is_close_to_the_full_decode(
    real_data: Path, real_images: dict[str, np.ndarray[Any, Any]]
) -> None:
    """45 dB or more inside the crop, the padding not counted."""
    exact_settings = PrepareSettings(codecs=CodecSettings(exact=True))
    for path in sorted((real_data / "rsna_dicom/train_images").rglob("*.dcm")):
        exact, record = prepare_image(path, exact_settings)
        width = round((record["box_right"] - record["box_left"]) * record["scale_x"])
        height = round((record["box_bottom"] - record["box_top"]) * record["scale_y"])
        crop = np.s_[record["top"] : record["top"] + height, :width]
        assert peak_signal_to_noise(real_images[path.stem][crop], exact[crop]) >= 45, path.stem


def test_a_mirrored_real_mammogram_gives_nearly_the_same_image(real_data: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(real_data / "mini_mias/mdb003.pgm"), cv2.IMREAD_GRAYSCALE)
    images = []
    for name, pixels in (("plain", image), ("mirrored", image[:, ::-1])):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        images.append(prepare_image(path, PrepareSettings(side=128))[0].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1
