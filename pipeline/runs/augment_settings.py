"""`[augment]` of a recipe."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from data_prep.settings import StrictSettings
from pipeline.runs.other_names import AUGMENT


class AugmentSettings(StrictSettings):
    """`[augment]`: random changes of training images; a probability of 0 leaves a change out."""

    other_names: ClassVar[Mapping[str, str]] = AUGMENT
    vertical_flip: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a flip upside down; the chest wall stays at the left."""

    horizontal_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of a flip from left to right; not for mammograms, whose chest wall is at the left."""

    affine: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a shift, a change of scale and a rotation, all together."""

    shift: float = Field(default=0.05, ge=0.0, le=0.5)
    """Largest shift along each axis, as a part of the side."""

    scale: float = Field(default=0.1, ge=0.0, le=0.5)
    """Largest change of scale: 0.1 draws from 0.9 to 1.1."""

    rotate_degrees: float = Field(default=10.0, ge=0.0, le=180.0)
    """Largest rotation, in degrees."""

    tone: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability of a change of brightness, contrast and gamma."""

    coarse_dropout: float = Field(default=0.25, ge=0.0, le=1.0)
    """Probability of up to four black rectangles, their sides about a tenth of the image's. With
    `kept_patches`, patches that lie in one whole have no contrast and are left out like background."""
