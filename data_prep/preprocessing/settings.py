"""The settings of `[prepare]`: from an image file to a square image."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from data_prep.settings import StrictSettings

LARGEST_SIDE = 4096  # pixels, of a prepared image


class CodecSettings(StrictSettings):
    """`[prepare.codecs]`: how much of a file is read and decoded."""

    exact: bool = False
    """Decode the breast in full and not at the resolution that is needed. Slow; for judging the default."""

    oversampling: float = Field(default=1.0, ge=0.5, le=16.0)
    """The breast's longer side is decoded to at least this many times the image's side."""

    read: Literal["whole", "prefix"] = "whole"
    """`prefix` reads only the part of a JPEG 2000 file that is decoded, about an eighth: for slow disks, and
    always for object storage. The images are the same; the manifest's checksum then covers `bytes_read`
    bytes."""


class PrepareSettings(StrictSettings):
    """`[prepare]`: from an image file to a square image. The cache keeps these and refuses others."""

    other_names: ClassVar[Mapping[str, str]] = {"side": "size resolution", "bit_depth": "bits"}
    side: int = Field(default=512, ge=16, le=LARGEST_SIDE)
    """Rows and columns of the image, in pixels. `model.image_size` follows it."""

    fit: Literal["letterbox", "stretch"] = "letterbox"
    """`letterbox` keeps the aspect ratio and pads with black; `stretch` fills the square with the breast's
    box."""

    bit_depth: Literal[8, 16] = 8
    """Bits per pixel of the image: 8 or 16."""

    codecs: CodecSettings = CodecSettings()
