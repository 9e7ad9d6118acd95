"""Pictures of a model's weights and of how far it looks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.reporting.plots.svg import FOLD_COLOURS, GUIDE_LINE, new_axes, to_svg

Tiles = NDArray[np.floating[Any]]

FILTERS_PER_ROW, MOST_TILES = 7, 8  # as in figure 7 of the ViT paper; tiles along each side


def draw_attention_distance(distances: Mapping[str, pd.DataFrame], even_distance_px: float) -> str:
    """Draws how far each head of each layer looks, a dot per head (ViT figure 7, right).

    Args:
        distances: by name of a training, one row per head: layer, head, distance_px.
        even_distance_px: of a head that attends to all patches evenly.
    """
    with new_axes("layer", "mean attention distance (px)") as axes:
        axes.axhline(even_distance_px, **GUIDE_LINE)
        for number, (name, table) in enumerate(distances.items()):
            shift = 0.3 * ((number + 0.5) / len(distances) - 0.5)  # side by side, not over one another
            dots = {"color": FOLD_COLOURS[number % len(FOLD_COLOURS)], "markersize": 4.0, "alpha": 0.8}
            axes.plot(table["layer"] + shift, table["distance_px"], "o", **dots, label=name)
        farthest = max(table["distance_px"].max() for table in distances.values())
        axes.set_ylim(0, 1.08 * max(even_distance_px, farthest))
        axes.xaxis.get_major_locator().set_params(integer=True)
        description = "Mean attention distance of each head, over the layers"
        return to_svg(axes.figure, "distance", description)


def draw_patch_filters(filters_NCpp: Tiles) -> str:
    """Draws filters as small pictures in reading order: grey, or coloured where there are three channels.

    Each filter has a scale of its own, with 0 in the middle.
    """
    num_filters, num_channels, size, _ = filters_NCpp.shape
    peaks = np.abs(filters_NCpp).max(axis=(1, 2, 3), keepdims=True)
    tiles_NppC = np.moveaxis(0.5 + 0.5 * filters_NCpp / np.where(peaks, peaks, 1.0), 1, -1)
    colours_Npp4 = np.ones((num_filters, size, size, 4))
    colours_Npp4[..., :3] = tiles_NppC if num_channels == 3 else tiles_NppC[..., :1]
    num_columns = min(FILTERS_PER_ROW, num_filters)
    num_rows = -(-num_filters // num_columns)
    sheet = np.zeros((num_rows * num_columns, size, size, 4))  # transparent where there is no filter
    sheet[:num_filters] = colours_Npp4
    with new_axes("", "", height=0.4 + 4.2 * num_rows / num_columns) as axes:
        axes.imshow(_join_tiles(sheet.reshape(num_rows, num_columns, size, size, 4)), interpolation="none")
        axes.set_axis_off()
        description = f"The first {num_filters} principal components of the patch embedding's filters"
        return to_svg(axes.figure, "filters", description)


def draw_position_similarity(similarity_gggg: Tiles) -> str:
    """Draws the cosine of position embeddings: a tile per position, with a pixel for each position.

    Of many positions, every second, third, ... has a tile.
    """
    grid_size = len(similarity_gggg)
    step = -(-grid_size // MOST_TILES)
    shown = np.arange(grid_size)[(step - 1) // 2 :: step]
    tiles_rcgg1 = similarity_gggg[np.ix_(shown, shown)][..., None]
    with new_axes("column of the patch", "row of the patch") as axes:
        sheet = _join_tiles(tiles_rcgg1)[..., 0]
        picture = axes.imshow(sheet, vmin=-1.0, vmax=1.0, cmap="viridis", interpolation="none")
        middles = np.arange(len(shown)) * (grid_size + _gap(grid_size)) + (grid_size - 1) / 2
        axes.set_xticks(middles, shown + 1)
        axes.set_yticks(middles, shown + 1)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        scale = axes.figure.colorbar(picture, shrink=0.8, label="cosine similarity")
        scale.outline.set_visible(False)
        return to_svg(
            axes.figure, "positions", "Cosine similarity of each position's embedding to all others"
        )


def _gap(size: int) -> int:
    """Returns how many pixels lie between two tiles."""
    return max(1, size // 16)


def _join_tiles(tiles_rchwC: Tiles) -> Tiles:
    """Returns tiles as one picture [H, W, C], with transparent gaps between them."""
    channels = tiles_rchwC.shape[-1]
    gap = _gap(tiles_rchwC.shape[3])
    empty = 0.0 if channels == 4 else np.nan  # what matplotlib leaves transparent
    padded = np.pad(tiles_rchwC, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=empty)
    rows, columns = padded.shape[0] * padded.shape[2], padded.shape[1] * padded.shape[3]
    return padded.swapaxes(1, 2).reshape(rows, columns, channels)[:-gap, :-gap]
