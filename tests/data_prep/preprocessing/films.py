"""Digitised films drawn from chance: a breast whose place is known, and all that scanners leave around it."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.frame import Display

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]
SKIN_LEVEL = 0.035  # above the background: what the eye still tells from it


@dataclass(frozen=True)
class Film:
    """A picture, values 0..1, and its breast with the nipple, both [H, W]."""

    display: Display
    tissue: Mask
    chest_wall_on_right: bool


def make_film(seed: int, *, height: int = 320) -> Film:
    """Returns a film with the chest wall at either side."""
    rng = np.random.default_rng(seed)
    width = round(height * rng.uniform(0.55, 0.8))
    tissue, breast = draw_breast(rng, height, width)
    background = draw_background(rng, height, width)
    strips, is_covered = draw_strips(rng, height, width)
    tissue &= ~is_covered
    picture = np.maximum(background + breast * (1 - background), strips)
    picture = draw_labels(rng, picture, tissue)
    picture += rng.normal(scale=rng.choice([0.001, 0.004, 0.01]), size=picture.shape)
    film = Film(picture.clip(0, 1).astype(np.float32), tissue, chest_wall_on_right=False)
    film = add_border(rng, film)
    return mirror(film) if rng.random() < 0.5 else film


def mirror(film: Film) -> Film:
    """Returns the film seen from behind."""
    flipped = replace(film, display=film.display[:, ::-1], tissue=film.tissue[:, ::-1])
    return replace(flipped, chest_wall_on_right=not film.chest_wall_on_right)


def draw_breast(rng: np.random.Generator, height: int, width: int) -> tuple[Mask, Values]:
    """Returns where the breast is, its chest wall at the left edge, and how bright it is there."""
    is_oblique = rng.random() < 0.5
    depth = width * rng.uniform(0.35, 0.75)
    top = -0.35 * height if is_oblique else height * rng.uniform(0.05, 0.2)
    bottom = height * rng.uniform(0.75, 0.95)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    share = (y - top) / (bottom - top)
    outline = depth * (4 * share * (1 - share)).clip(min=0) ** rng.uniform(0.5, 1.1)
    shape = (x < outline).astype(np.uint8)
    nipple_y = round((top + bottom) / 2 + height * rng.uniform(0, 0.1))
    reach = int(shape[nipple_y].sum())
    nipple = np.zeros_like(shape)
    size = height * rng.uniform(0.012, 0.025)
    axes = (round(size * rng.uniform(1, 1.6)), round(size))
    cv2.ellipse(nipple, (reach, nipple_y), axes, 0, 0, 360, (1,), -1)
    distance = cv2.distanceTransform(np.pad(shape, ((1, 1), (height, 1)), mode="edge"), cv2.DIST_L2, 5)
    rise = (distance[1:-1, height:-1] / (depth * rng.uniform(0.2, 0.45))).clip(0, 1)
    dense = cv2.GaussianBlur(rng.normal(size=shape.shape), (0, 0), height / 30)
    dense = 0.5 + 0.5 * (dense / abs(dense).max())
    skin = rng.uniform(SKIN_LEVEL, 0.15)
    brightness = shape * (skin + rise * (rng.uniform(0.2, 0.4) + rng.uniform(0.1, 0.4) * dense))
    if is_oblique:
        muscle = cv2.GaussianBlur(((x / (0.8 * depth) + y / (0.6 * height)) < 1).astype(float), (0, 0), 3)
        brightness = np.maximum(brightness, 0.8 * muscle * shape)
    brightness = np.maximum(brightness, nipple * rng.uniform(SKIN_LEVEL + 0.015, 0.3))
    return (shape | nipple) > 0, cv2.GaussianBlur(brightness, (0, 0), height / 400)


def draw_background(rng: np.random.Generator, height: int, width: int) -> Values:
    """Returns a level that drifts over the film."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slopes = rng.uniform(-0.02, 0.02, 3)
    drift = slopes[0] * x + slopes[1] * y + slopes[2] * x * y
    return np.asarray(drift - drift.min() + rng.choice([0, 0.03, 0.15]) * rng.random(), np.float64)


def draw_strips(rng: np.random.Generator, height: int, width: int) -> tuple[Values, Mask]:
    """Returns light along some edges, sharp or fading into the film, and where it hides what is there."""
    strips = np.zeros((height, width))
    is_covered = strips > 0
    y, x = np.mgrid[0:height, 0:width]
    for distance in (x, width - 1 - x, y, height - 1 - y):
        size, light = height * rng.uniform(0.003, 0.02), rng.uniform(0.05, 1)
        kind = rng.choice(["none", "sharp", "fading"])
        if kind == "sharp":
            strips = np.maximum(strips, light * (distance < 1.5 * size))
            is_covered |= distance < 1.5 * size
        if kind == "fading":
            strips = np.maximum(strips, light * np.exp(-distance / size))
    return strips, is_covered


def draw_labels(rng: np.random.Generator, picture: Values, tissue: Mask) -> Values:
    """Returns the picture with letters, a plate or a tape where the film is empty."""
    height, width = picture.shape
    labelled = picture.copy()
    for _ in range(rng.integers(0, 4)):
        sign = np.zeros((height, width), np.uint8)
        x, y = width * rng.uniform(0.55, 0.95), height * rng.uniform(0.02, 0.98)
        if rng.random() < 0.6:
            text = str(rng.choice(["LCC", "RMLO", "3", "15", "L"]))
            cv2.putText(sign, text, (int(x), int(y)), cv2.FONT_HERSHEY_DUPLEX, height / 400, (1,), 2)
        else:
            half = height * rng.uniform(0.02, 0.06), height * rng.uniform(0.02, 0.06)
            turn = float(rng.uniform(-30, 30))
            corners = cv2.boxPoints(((x, y), half, turn))
            cv2.fillPoly(sign, [corners.astype(np.int32)], (1,))
        if not (cv2.dilate(sign, np.ones((height // 16, height // 16))) > 0)[tissue].any():
            labelled[sign > 0] = rng.choice([0, 0.3, 0.6, 0.95])
    return labelled


def add_border(rng: np.random.Generator, film: Film) -> Film:
    """Returns the film with what lies beyond it, even, at some edges."""
    if rng.random() < 0.6:
        return film
    edges = [(int(rng.integers(0, 10)), int(rng.integers(0, 10))), (0, int(rng.integers(0, 40)))]
    value = float(rng.choice([0.0, 1.0]))
    display = np.pad(film.display, edges, constant_values=value)
    return replace(film, display=display, tissue=np.pad(film.tissue, edges))
