"""What is said of `model.kept_patches` before a training, from the cache's counts."""

import pandas as pd
import pytest

from pipeline.data.kept_patches import describe_kept_patches, suggest_kept_patches
from pipeline.runs.recipe import ModelSettings


def make_manifest(counts: list[int | None]) -> pd.DataFrame:
    """A manifest of prepared images, and one that failed."""
    status = ["prepared"] * len(counts) + ["failed"]
    return pd.DataFrame({"status": status, "patches": pd.array([*counts, None], dtype="Int64")})


@pytest.mark.parametrize(
    ("counts", "num_patches", "enough"),
    [
        ([100, 127], 1024, 127),  # T = 128
        ([128], 1024, 255),
        ([383] * 5000 + [900], 1024, 383),  # one image in a thousand may lose
        ([383] * 500 + [900], 1024, 1023),
        ([1024], 1024, 1024),
        ([900, 1100], 4096, 1151),
    ],
)
def test_enough_are_a_multiple_of_a_tile_with_the_class_token(
    counts: list[int], num_patches: int, enough: int
) -> None:
    found = suggest_kept_patches(pd.Series(counts), num_patches)
    assert found == enough
    assert (found + 1) % 128 == 0 or found == num_patches


def test_registers_count_among_the_tokens_of_a_tile() -> None:
    said = describe_kept_patches(ModelSettings(register_tokens=4), make_manifest([200, 300]))
    assert "model.kept_patches = 379 would be enough" in said


def test_images_that_have_more_are_counted() -> None:
    said = describe_kept_patches(ModelSettings(kept_patches=300), make_manifest([200, 299, 300, 301, 400]))
    assert said.startswith("the model sees 300 of 1,024 patches; 2 of 5 images show something in more")
    assert "kept_patches = 511 would be enough" in said
    said = describe_kept_patches(ModelSettings(), make_manifest([200, 300]))
    assert said.startswith("the model sees all 1,024 patches; ")


@pytest.mark.parametrize(
    ("model", "counts", "reason"),
    [
        (ModelSettings(patch_size=8), [5], "patches of 8 pixels were not counted"),
        (ModelSettings(), [5, None], "were not counted when this cache was made"),
        (ModelSettings(), [], "were not counted when this cache was made"),
    ],
)
def test_what_was_not_counted_is_said(model: ModelSettings, counts: list[int | None], reason: str) -> None:
    assert reason in describe_kept_patches(model, make_manifest(counts))
