"""Maps of attention lie where they belong in the mammogram."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cache.build import build_cache
from data_prep.cache.folder import Cache, CacheSettings
from data_prep.imageio.frame import Box
from data_prep.phantom.dataset import make_train_images, write_phantoms
from data_prep.preprocessing.placement import Placement, fit_box
from data_prep.preprocessing.settings import PrepareSettings
from data_prep.rsna.exam_table import read_exams, require_images
from pipeline.demo import make_recipe
from pipeline.reporting.heatmap import to_full_matrix
from pipeline.runs.run_folder import Run
from pipeline.training.cross_validate import cross_validate
from tests.benchmarks.bench_attention import measure_run, select_cancers
from tests.data_prep.dicom_files import make_breast, write_dicom
from tests.data_prep.reading import prepare_image
from tests.pipeline.tiny import quiet


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_every_pixel_of_the_frame_gets_the_value_of_the_patch_that_shows_it(
    is_flipped: bool, fit: Any, turned: int
) -> None:
    """And each patch has its own, so that none is mistaken for another; beyond the box there is nothing."""
    placement = fit_box(Box(30, 20, 130, 220), is_flipped=is_flipped, side=64, fit=fit, turned=turned)
    numbers = np.arange(64.0).reshape(8, 8)
    frame = to_full_matrix(numbers, placement, side=64, rows=240, columns=160)
    assert frame.shape == (240, 160)
    assert np.isnan(frame).sum() == 240 * 160 - 100 * 200
    for row, column in ((20, 30), (219, 129), (100, 60), (57, 111)):
        x, y = placement.to_image(column + 0.5, row + 0.5)
        assert frame[row, column] == numbers[int(y // 8), int(x // 8)]
    outside = np.isnan(frame)
    assert outside[:20].all()
    assert outside[220:].all()
    assert outside[:, :30].all()
    assert outside[:, 130:].all()


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_bright_spot_of_a_file_is_found_again_through_its_image(
    tmp_path: Path, is_flipped: bool, fit: Any, bits: Any
) -> None:
    """The image itself, averaged over its patches, is the map: its peak must lie on the lesion."""
    row, column, size = 520, 200, 60
    pixels = make_breast(1000, 700) // 4
    pixels[row - size // 2 : row + size // 2, column - size // 2 : column + size // 2] = 4095
    if is_flipped:
        pixels, column = np.ascontiguousarray(pixels[:, ::-1]), 699 - column
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter=2048, WindowWidth=4096, BitsStored=12)
    image, record = prepare_image(path, PrepareSettings(side=128, fit=fit, bit_depth=bits))
    assert record["level"] > 0
    assert record["flipped"] is is_flipped
    patches = image.astype(float).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    placement = Placement.from_record(
        {name: str(value) for name, value in record.items()} | {"flipped": is_flipped}
    )
    size_of_frame = {"side": 128, "rows": record["rows"], "columns": record["columns"]}
    frame = to_full_matrix(patches, placement, **size_of_frame)
    assert frame.shape == pixels.shape
    brightest_rows, brightest_columns = np.nonzero(frame == np.nanmax(frame))
    assert abs(brightest_rows.mean() - row) < size / 2
    assert abs(brightest_columns.mean() - column) < size / 2
    inside = frame[row - 10 : row + 10, column - 10 : column + 10]
    assert inside.min() > 2 * np.nanmedian(frame)
    half = to_full_matrix(patches, placement, shape=(500, 350), **size_of_frame)
    agree = np.isclose(half, frame[1::2, 1::2], equal_nan=True)
    assert agree.mean() > 0.95  # all but the pixels on the edge of a patch


def test_the_truth_of_phantoms_belongs_to_their_files(tmp_path: Path) -> None:
    """Drawn once more, each image is the one in the file, and has lesions where the label says cancer."""
    write_phantoms(tmp_path, num_patients=3, seed=5, rows=128, columns=96)
    table = read_exams(tmp_path, "train").set_index("image_id")
    images = list(make_train_images(num_patients=3, seed=5, rows=128, columns=96))
    assert {image.row["image_id"] for image in images} == set(table.index)
    for image in images:
        assert image.phantom.lesions.any() == table.loc[image.row["image_id"], "cancer"]
        assert image.phantom.benign.any()
        path = tmp_path / f"train_images/{image.row['patient_id']}/{image.row['image_id']}.dcm"
        square, record = prepare_image(path, PrepareSettings(side=96))
        shown = to_full_matrix(
            square.astype(float), Placement.from_record(record), side=96, rows=128, columns=96
        )
        seen = np.isfinite(shown)
        assert np.corrcoef(shown[seen], image.phantom.image[seen])[0, 1] > 0.9


@pytest.mark.slow
def test_a_trained_model_attends_to_the_lesion_and_an_untrained_one_does_not(tmp_path: Path) -> None:
    """The demo's recipe at half the resolution, one fold: the rollout on held-out breasts with cancer."""
    recipe = make_recipe(seed=0)
    recipe = recipe.model_copy(
        update={
            "prepare": PrepareSettings(side=256),
            "model": recipe.model.model_copy(update={"image_size": 256, "kept_patches": 127}),
            "train": recipe.train.model_copy(update={"epochs": 4}),
        }
    )
    size = {"num_patients": 60, "rows": 320, "columns": 256}
    write_phantoms(tmp_path / "data", **size)
    located = require_images(read_exams(tmp_path / "data", "train"), tmp_path / "data", "train")
    cache = Cache(tmp_path / "cache")
    settings = CacheSettings(split="train", prepare=recipe.prepare)
    build_cache(located.exams, located.paths, cache, settings, workers=0)
    run = Run(tmp_path / "run")
    cross_validate(recipe, cache, run, reporter=quiet(), folds=[0])
    ratios = measure_run(run, cache, select_cancers(make_train_images(**size)), folds=[0])
    rollout = ratios[ratios["map"] == "rollout"].set_index(["model", "region"])["ratio"]
    trained = rollout["trained", "lesion"]
    assert len(trained) >= 30
    assert trained.median() > 1.5  # 1.9 to 2.9 over five seeds
    assert (trained > 1.0).mean() > 0.85
    assert rollout["trained", "benign"].median() < 1.5
    assert rollout["untrained", "lesion"].between(0.9, 1.1).all()
