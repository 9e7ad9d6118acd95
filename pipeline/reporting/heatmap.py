"""A map of attention laid over a mammogram: its unit and its colours."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, ListedColormap, Normalize
from numpy.typing import NDArray

from data_prep.preprocessing.placement import Placement
from pipeline.models.attention import Array

SMALLEST_TOP = 2.0  # of a scale: attention that is nearly even shall not look as if it were not
STRONGEST_COLOUR = 0.6  # opacity: the tissue must stay visible


def relative_to_box(square_gg: Array, placement: Placement, side: int) -> Array:
    """Returns a map in units of its mean over the part of the image that shows the box."""
    patch_size = side // len(square_gg)
    pixels = square_gg.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    mean = pixels[placement.top : placement.top + placement.height, : placement.width].mean()
    return square_gg / mean if mean else square_gg  # a gradient can be 0 everywhere


def find_top(values: Array) -> float:
    """Returns where the scale of a map ends; it begins at 1, the mean of the box."""
    return max(SMALLEST_TOP, float(np.nanmax(values)))


def make_overlay_colours() -> Colormap:
    """Returns colours that get lighter in even steps, and out of nothing."""
    colours = mpl.colormaps["plasma"](np.linspace(0.1, 1.0, 256))
    colours[:, 3] = np.linspace(0.0, STRONGEST_COLOUR, 256)
    return ListedColormap(colours).with_extremes(bad="#00000000", under="#00000000")


def colour(values: Array) -> NDArray[np.uint8]:
    """Returns a map as red, green, blue and opacity, 0..255."""
    return np.asarray(make_overlay_colours()(Normalize(1.0, find_top(values))(values), bytes=True), np.uint8)


def to_full_matrix(
    square_nn: Array,
    placement: Placement,
    *,
    side: int,
    rows: int,
    columns: int,
    shape: tuple[int, int] | None = None,
) -> Array:
    """Returns a map of the square image as a map of the frame that it was made of.

    Args:
        square_nn: a map of the whole image, of any size: a value per patch or per pixel.
        placement: how the frame was fitted to the image.
        side: of the image, in pixels.
        rows: of the full matrix.
        columns: of the full matrix.
        shape: rows and columns of the result, where that is the frame at another resolution.

    Returns:
        [rows, columns] or `shape`; NaN beyond the box, which the model has not seen.
    """
    height, width = shape or (rows, columns)
    x = (np.arange(width) + 0.5) * columns / width
    y = (np.arange(height) + 0.5) * rows / height
    per_cell = side / len(square_nn)
    across, down = placement.to_image(x[None, :], y[:, None])  # one of them for each row, one for each column
    cells_x = (across / per_cell).astype(int).clip(0, len(square_nn) - 1)
    cells_y = (down / per_cell).astype(int).clip(0, len(square_nn) - 1)
    box = placement.box
    is_inside = np.outer((y >= box.top) & (y < box.bottom), (x >= box.left) & (x < box.right))
    return np.where(is_inside, square_nn[cells_y, cells_x], np.nan)
