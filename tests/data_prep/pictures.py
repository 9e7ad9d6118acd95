"""Pictures that use all bits of a layout, for tests that encode and decode."""

import numpy as np

from data_prep.imageio.frame import Pixels


def make_picture(bits: int, *, signed: bool = False, shape: tuple[int, int] = (61, 47)) -> Pixels:
    """Returns a smooth picture with a little noise, from the least value to the largest."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(bits).normal(0, 0.02, shape)
    picture = np.clip(0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 14) + noise, 0, 1)
    values = np.rint(picture * (2**bits - 1)).astype(np.int32) - signed * 2 ** (bits - 1)
    return values.astype(np.dtype(f"<{'i' if signed else 'u'}{1 if bits == 8 else 2}"))
