"""What lies behind the breast: the level of an empty frame, which may slope and bend over a film.

It knows nothing of breasts but that they are on one side of that level, mostly the bright one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import Display
from data_prep.preprocessing.stray_light import cut_strips

EVEN = 0.03  # the range of values along a row that shows nothing but a frame or a collimator blade
STEP = 0.015  # from one row to the next, by the median: where such a frame or blade ends
RIM = 0.1  # of the longer side: the strip along the edges that tells the background's level
NUM_LEVELS = 128  # bins of the histogram of that strip
NUM_SAMPLES = 800  # pixels that are looked at, about: of that strip, and of the background
SLOPES = np.linspace(-0.15, 0.15, 7)  # of the planes that are tried, from one edge to the opposite one
TILTED = 1.3  # times as many pixels must lie on a sloping plane as on a level one
NEAR, NEARER = 0.03, 0.006  # pixels that close to the plane tell how it bends; closer ones where most are
EXACT = 0.002  # half a grey level: where most of that strip is as even, the background is level
CLEAR = 0.02, 0.06  # the least difference from the background that counts: without noise, with much noise
FAINT = 0.35  # of the least difference that counts: what may be tissue where there is no noise
SKIN = 0.05  # of the breast's typical difference from the background: fat beside the skin has more
FLAT = 0.2  # of the strip: the background covers more, a level amid tissue may cover less
BEYOND = 0.2  # of the pixels on the breast's side of the background: there are fewer on its other side

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """How far each pixel lies on the breast's side of the background.

    Attributes:
        values: [h, w]; the unit is the least difference that counts, so that the breast begins at 1. Frames,
            blades and stray light have 0, and so has all of a picture without a background.
        faint: more than noise may have; at most 1.
        is_inverted: whether the breast's side is the dark one.
    """

    values: Display
    faint: float
    is_inverted: bool


def measure_contrast(small: Display) -> Contrast:
    """Measures how far each pixel of a small picture lies from its background."""
    values = np.zeros_like(small)
    inner = find_inner(small)
    picture = small[inner]
    if min(picture.shape) < 3:
        return Contrast(values, 1.0, is_inverted=False)
    difference = picture - find_background(picture)
    offsets = abs(cut_rim(difference))
    noise = float(np.median(offsets[offsets < 0.1])) if (offsets < 0.1).any() else 0.0
    clear = float(np.clip(3 * noise, *CLEAR))
    num_above, num_below = np.sum(difference > clear), np.sum(difference < -clear)
    is_flat = np.mean(offsets < CLEAR[0]) >= FLAT
    if not is_flat or min(num_above, num_below) >= BEYOND * max(num_above, num_below):
        return Contrast(values, 1.0, is_inverted=False)
    is_inverted = bool(num_below > num_above)
    depth = (-difference if is_inverted else difference).clip(min=0)
    unit = max(clear, SKIN * float(np.median(depth[depth > clear])))
    values[inner] = cut_strips(np.asarray(depth / unit, np.float32))
    return Contrast(values, min(1.0, max(FAINT, 5 * noise / unit)), is_inverted)


def find_inner(small: Display) -> tuple[slice, slice]:
    """Returns the rows and columns inside of what is even along all of an edge: a frame, a blade, padding.

    Twice, as a blade becomes even when the one that crosses it is off.
    """
    y, x = slice(0, small.shape[0]), slice(0, small.shape[1])
    for _ in range(2):
        x = trim(small[y, x].T, x)
        y = trim(small[y, x], y)
    return y, x


def trim(rows: Display, kept: slice) -> slice:
    """Returns what is left of `kept` without even rows, and without one that mixes them and the picture.

    What is even and goes on into the picture without a step is its background, and stays.
    """
    if not rows.size or not (uneven := np.nonzero(np.ptp(rows, axis=1) > EVEN)[0]).size:
        return slice(0, 0)
    if uneven[0] == 0 and uneven[-1] == len(rows) - 1:
        return kept
    steps = np.nonzero(np.median(abs(np.diff(rows, axis=0)), axis=1) > STEP)[0]
    first, last = 0, len(rows) - 1
    above, below = steps[steps <= uneven[0]], steps[steps >= uneven[-1] - 1]
    if uneven[0] > 0 and above.size:
        first = int(above[-1]) + 2
    if uneven[-1] < last and below.size:
        last = int(below[0]) - 1
    return slice(kept.start + first, kept.start + max(first, last + 1))


def find_background(picture: Display) -> Display:
    """Returns the background's level at each pixel: a plane that many pixels along the edges lie on, bent."""
    y, x = np.meshgrid(*(np.linspace(-0.5, 0.5, size) for size in picture.shape), indexing="ij")
    values = cut_rim(picture)
    step = 1 + len(values) // NUM_SAMPLES
    level, across, down = find_plane(*(part[::step] for part in (values, cut_rim(x), cut_rim(y))))
    if across == down == 0 and np.mean(abs(values - level) < EXACT) > 0.5:
        return np.full_like(picture, level)  # as behind digital detectors
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    surface = level + across * x + down * y
    for widest in (NEAR, NEAR / 2):
        offsets = abs(picture - surface).ravel()
        is_exact = np.sum(offsets < NEARER) > np.sum(offsets < widest) / 2  # else faint fat would bend it
        chosen = np.nonzero(offsets < (NEARER if is_exact else widest))[0]
        chosen = chosen[:: 1 + len(chosen) // NUM_SAMPLES]
        if len(chosen) < 10 * len(terms):
            break
        samples = terms.reshape(len(terms), -1)[:, chosen]
        weights = np.linalg.lstsq(samples.T, picture.ravel()[chosen], rcond=None)[0]
        surface = np.tensordot(weights, terms, 1)
    return np.asarray(surface, np.float32)


def find_plane(values: Values, across: Values, down: Values) -> tuple[float, float, float]:
    """Returns level and slopes of the plane that most pixels lie on: background is smooth, tissue spreads.

    It slopes only where clearly more pixels lie on a slope than on a level, which needs no trial where that
    cannot be.
    """
    level, num_near = find_mode(values[None])
    slopes = np.zeros(2)
    if TILTED * num_near[0] < len(values):
        tried = np.array([(x, y) for x in SLOPES for y in SLOPES])
        levels, counts = find_mode(values - tried @ np.stack([across, down]))
        best = int(counts.argmax())
        if counts[best] > TILTED * num_near[0]:
            level, slopes = levels[best : best + 1], tried[best]
    exact = values - slopes @ np.stack([across, down])
    middle = np.median(exact[abs(exact - level) < 2 / NUM_LEVELS])
    return float(middle), float(slopes[0]), float(slopes[1])


def find_mode(values: Values) -> tuple[Values, NDArray[np.intp]]:
    """Returns the most frequent level of each row of [n, m], and how many values are about there."""
    num_bins = round(1.5 * NUM_LEVELS) + 1
    bins = ((values.clip(-0.25, 1.25) + 0.25) * NUM_LEVELS).astype(np.intp)
    bins += num_bins * np.arange(len(values))[:, None]
    counts = np.bincount(bins.ravel(), minlength=num_bins * len(values)).reshape(len(values), num_bins)
    threes = counts[:, :-2] + counts[:, 1:-1] + counts[:, 2:]
    return (threes.argmax(axis=1) + 1.5) / NUM_LEVELS - 0.25, threes.max(axis=1)


def cut_rim(part: Display | Values) -> Values:
    """Returns the values in a strip along the four edges."""
    width = max(1, round(RIM * max(part.shape)))
    sides = part[width:-width]
    strips = part[:width], part[max(width, len(part) - width) :], sides[:, :width], sides[:, -width:]
    return np.concatenate([strip.ravel() for strip in strips])
