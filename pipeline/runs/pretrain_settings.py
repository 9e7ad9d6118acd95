"""The settings of `[pretrain]`, which `mammo pretrain` looks at beside the others."""

from pydantic import Field

from data_prep.settings import StrictSettings

HEAD_WIDTH = 32
"""Of the decoder's attention heads."""


class PretrainSettings(StrictSettings):
    """`[pretrain]`: the masked autoencoder around the Vision Transformer; no other command looks at it."""

    visible: float = Field(default=0.25, gt=0.0, lt=1.0)
    """Share of an image's patches with content that the encoder sees; the decoder predicts the others."""

    decoder_width: int = Field(default=192, ge=HEAD_WIDTH, le=4096, multiple_of=HEAD_WIDTH)
    """Length of a token's vector in the decoder, a multiple of 32, the width of its heads."""

    decoder_depth: int = Field(default=2, ge=1, le=32)
    """Number of the decoder's layers. It is thrown away in the end."""

    probe_every: int = Field(default=0, ge=0, le=10_000)
    """Epochs between two measurements of how well a linear model tells cancer from what the encoder makes of
    training images. These alone look at labels, and change nothing; 0 never does."""
