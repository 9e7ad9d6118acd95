"""PNG, JPEG and PGM files to frames: images that somebody has already windowed."""

import warnings
from dataclasses import dataclass, field, replace
from io import BytesIO

import numpy as np
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio.codecs import MAX_PIXELS
from data_prep.imageio.downsample import find_max_reduction, reduce_pixels
from data_prep.imageio.frame import Frame, Grid, VoiLutFunction, Window
from data_prep.storage.byte_source import ByteSource
from data_prep.storage.places import ImagePath

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm")
FORMATS = ("PNG", "JPEG", "PPM")


@dataclass(frozen=True)
class RasterFile:
    """A decoded raster image."""

    source: ByteSource = field(repr=False)
    frame: Frame

    @property
    def rows(self) -> int:
        """Rows of the full matrix."""
        return self.frame.rows

    @property
    def columns(self) -> int:
        """Columns of the full matrix."""
        return self.frame.columns

    @property
    def max_level(self) -> int:
        """The lowest resolution that averaging blocks can give."""
        return find_max_reduction(self.rows, self.columns)

    def read_frame(self, level: int = 0) -> Frame:
        """Returns the frame at 1 / 2**level of the full size."""
        return replace(self.frame, pixels=reduce_pixels(self.frame.pixels, level), grid=Grid(level))


def open_raster(path: ImagePath) -> RasterFile:
    """Reads a file of 8 or 16 bits; colours become grey, and the full range becomes the window.

    Raises:
        ImageError: if the file cannot be read as a grey image.
    """
    source_file = ByteSource.open(path, whole=True)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Pillow's, of many pixels
            Image.open(BytesIO(source_file.content), formats=FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("too_large", f"{image.height}x{image.width} pixels are too many")
            pixels = np.asarray(image if image.mode in {"L", "I;16", "I;16B", "I"} else image.convert("L"))
            source = str(image.format)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", "the image has more pixels than any mammogram") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            "not_image", f"the file cannot be read as {', '.join(FORMATS)}: {type(error).__name__}"
        ) from error
    bits = 8 if pixels.dtype == np.uint8 else 16
    maximum = 2**bits - 1
    frame = Frame(
        pixels=pixels.astype(np.uint8 if bits == 8 else np.uint16, copy=False),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        bits_stored=bits,
        window=Window(center=maximum / 2, width=maximum, function=VoiLutFunction.LINEAR_EXACT),
        transfer_syntax=source,
    )
    return RasterFile(source_file, frame)
