"""Random changes of training images; the only module that knows albumentations."""

import os

import numpy as np

from data_prep.frame import Image
from pipeline.settings import AugmentSettings

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version

import albumentations as A  # after the line above

# Few holes, far larger than a calcification, together 2 % of the image: they hide a place now and then,
# where blur or a fine grid would take the finest detail from all of it.
MOST_HOLES = 4
HOLE_SIDES = (0.05, 0.125)  # of the image's side


class Augmentation:
    """Changes an image by a draw that depends on (seed, epoch, row) alone, not on workers or their order."""

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
                A.RandomBrightnessContrast(
                    brightness_limit=(-0.1, 0.1),
                    contrast_limit=(-0.1, 0.1),
                    brightness_by_max=False,  # relative to the image's mean: black stays near black
                    p=settings.tone,
                ),
                A.RandomGamma(gamma_limit=(80, 125), p=settings.tone),
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

    def __call__(self, image: Image, *, seed: int, epoch: int, row: int) -> Image:
        """Returns a changed copy of [H, W] or [H, W, C], 0..255 or 0..65535, of the same shape and type."""
        entropy = np.random.SeedSequence([seed, epoch, row]).generate_state(1)[0]
        self._transform.set_random_seed(int(entropy) >> 1)
        if image.dtype == np.uint8:
            return np.asarray(self._transform(image=image)["image"], np.uint8)
        changed = self._transform(image=image / np.float32(65535))["image"]  # it knows no integers of 16 bits
        return np.rint(changed * np.float32(65535)).astype(np.uint16)
