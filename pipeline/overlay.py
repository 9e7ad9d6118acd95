"""A map of attention laid over a mammogram: its unit and its colours. Knows no model and no file."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, ListedColormap, Normalize
from numpy.typing import NDArray

from data_prep.geometry import Placement
from pipeline.attention import Array

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
