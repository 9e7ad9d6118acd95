"""PNG, JPEG and PGM files to frames: images that somebody has already windowed. Knows no DICOM."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.errors import ImageError
from data_prep.frame import Frame, VoiLutFunction, Window

SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm")
FORMATS = ("PNG", "JPEG", "PPM")


@dataclass(frozen=True)
class RasterFile:
    """A decoded raster image; there are no lower resolutions to be had."""

    frame: Frame
    max_level: int = 0

    @property
    def rows(self) -> int:
        """Rows of the full matrix."""
        return self.frame.rows

    @property
    def columns(self) -> int:
        """Columns of the full matrix."""
        return self.frame.columns

    def read_frame(self, level: int = 0) -> Frame:
        """Returns the decoded frame; `level` must be 0."""
        assert level == 0, "raster files have one resolution"
        return self.frame


def open_raster(path: Path) -> RasterFile:
    """Reads a file of 8 or 16 bits; colours become grey, and the full range becomes the window.

    Raises:
        ImageError: if the file cannot be read as a grey image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError("io_error", f"the file cannot be read: {error.strerror}") from error
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
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
    return RasterFile(frame)
