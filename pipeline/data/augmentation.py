"""Random changes of training images; the only module that knows albumentations."""

import os
import random
from typing import Any

import cv2
import numpy as np

from data_prep.imageio.frame import Image
from pipeline.runs.augment_settings import AugmentSettings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version

import albumentations as A  # after the line above
from albucore import sz_lut

# Few holes, far larger than a calcification, together 2 % of the image: they hide a place now and then,
# where blur or a fine grid would take the finest detail from all of it.
MOST_HOLES = 4
HOLE_SIDES = (0.05, 0.125)  # of the image's side

CONTRASTS = (0.9, 1.1)
BRIGHTNESSES = (-0.1, 0.1)  # of the image's mean: black stays near black
GAMMAS = (0.8, 1.25)


class ToneCurve(A.ImageOnlyTransform):  # type: ignore[misc]
    """Changes contrast, brightness and gamma in one look-up, rounded once, of 8 or 16 bits."""

    def get_params(self) -> dict[str, float]:
        """Draws a curve."""
        return {
            "contrast": self.py_random.uniform(*CONTRASTS),
            "brightness": self.py_random.uniform(*BRIGHTNESSES),
            "gamma": self.py_random.uniform(*GAMMAS),
        }

    def apply(self, img: Image, contrast: float, brightness: float, gamma: float, **_: Any) -> Image:
        """Returns the image seen through the curve."""
        brightest = np.iinfo(img.dtype).max
        mean = np.mean(cv2.mean(img)[: img.shape[2] if img.ndim == 3 else 1]) / brightest
        grey = np.linspace(0, 1, brightest + 1, dtype=np.float32)
        curve = np.clip(contrast * grey + brightness * mean, 0, 1) ** gamma
        table = np.rint(curve * brightest)
        if img.dtype == np.uint8:
            return np.asarray(sz_lut(img, table.astype(np.uint8), inplace=False), np.uint8)
        return table.astype(np.uint16)[img]


class Augmentation:
    """Changes an image by a draw that depends on (seed, draw) alone, not on workers or their order."""

    def __init__(self, settings: AugmentSettings) -> None:
        scales = (1 - settings.scale, 1 + settings.scale)
        shifts = (-settings.shift, settings.shift)
        self._transform = A.Compose(
            [
                A.VerticalFlip(p=settings.vertical_flip),
                A.Affine(
                    scale=scales,
                    translate_percent=shifts,
                    rotate=(-settings.rotate_degrees, settings.rotate_degrees),
                    keep_ratio=True,
                    p=settings.affine,
                ),
                ToneCurve(p=settings.tone),
                # Last: a 0 here moves no other draw.
                A.HorizontalFlip(p=settings.horizontal_flip),
                A.CoarseDropout(
                    num_holes_range=(1, MOST_HOLES),
                    hole_height_range=HOLE_SIDES,
                    hole_width_range=HOLE_SIDES,
                    fill=0,
                    p=settings.coarse_dropout,
                ),
            ]
        )

    def __call__(self, image: Image, *, seed: int, draw: int) -> Image:
        """Returns a changed copy of [H, W] or [H, W, C], 0..255 or 0..65535, of the same shape and type."""
        generator = np.random.default_rng([seed, draw])
        # Not set_random_seed: every change would get the same stream, and an image all changes or none.
        self._transform.set_random_state(generator, random.Random(generator.bytes(8)))  # noqa: S311  no secret
        changed: Image = self._transform(image=image)["image"]
        return changed
