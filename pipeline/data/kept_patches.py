"""How many images lose something by `model.kept_patches`, and how many patches are enough."""

import pandas as pd

from data_prep.cache.tables import select_prepared
from data_prep.preprocessing.quality_checks import PATCH_PX
from pipeline.runs.recipe import ModelSettings

TILE = 128  # tokens of a fused attention kernel's tile
MOST_LOSING = 0.001  # of the images, at a number of patches that is enough


def describe_kept_patches(model: ModelSettings, manifest: pd.DataFrame) -> str:
    """Says in one sentence what keeping so many patches means for a cache's images.

    Counted are patches of 16x16 pixels that are not of one value, before any augmentation.
    """
    counts, num_patches = select_prepared(manifest)["patches"], model.grid_size**2
    if model.patch_size != PATCH_PX:
        return f"patches of {model.patch_size} pixels were not counted: the cache knows those of {PATCH_PX}"
    if counts.isna().any() or counts.empty:
        return (
            "patches that show something were not counted when this cache was made: make another one to know"
        )
    kept = model.kept_patches or num_patches
    losing = int((counts > kept).sum())
    enough = suggest_kept_patches(counts, num_patches, num_prefix=model.num_prefix_tokens)
    advice = "all are needed" if enough == num_patches else f"model.kept_patches = {enough} would be enough"
    seen = f"all {num_patches:,} patches"
    if kept < num_patches:
        images = "image shows" if losing == 1 else "images show"
        seen = (
            f"{kept:,} of {num_patches:,} patches; {losing:,} of {len(counts):,} {images} something in more"
        )
    return f"the model sees {seen}; {advice} for {1 - MOST_LOSING:.1%} of the images"


def suggest_kept_patches(counts: "pd.Series[int]", num_patches: int, *, num_prefix: int = 1) -> int:
    """Returns the smallest number that is enough for all but one image in a thousand.

    With the tokens before the patches it is a multiple of `TILE`, so that no tile of a kernel is computed for
    a few tokens.
    """
    most = int(counts.sort_values(ascending=False).iloc[int(MOST_LOSING * len(counts))])
    return min(num_patches, -(-(most + num_prefix) // TILE) * TILE - num_prefix)
