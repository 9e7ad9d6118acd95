"""PNG, JPEG and PGM files to frames, windowed by somebody before; and a prepared image to its PNG."""

import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio.codecs import MAX_PIXELS
from data_prep.imageio.downsample import find_max_reduction, reduce_pixels
from data_prep.imageio.file_format import name_kind
from data_prep.imageio.frame import Frame, Grid, Pixels, VoiLutFunction, Window
from data_prep.imageio.pose import EXIF_POSES, UPRIGHT
from data_prep.storage.byte_source import ByteSource
from data_prep.storage.places import ImagePath

ORIENTATION = 0x0112  # EXIF's tag
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm")
FORMATS = ("PNG", "JPEG", "PPM")
PNG_BIT_DEPTH = 24  # where a PNG tells the bits of a sample, PNG 11.2.1
PGM_HEADER = re.compile(rb"P[25](?:(?:\s|#[^\n]*\n)+([0-9]+)){3}")  # whose last number is the largest value
DEPTHS = (8, 10, 12, 14, 16)  # bits, of detectors; a picture of 16 may well be dim enough for 15


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
    def pixel_aspect(self) -> float:
        """Pixels of raster files are square."""
        return self.frame.pixel_aspect

    @property
    def header(self) -> Frame:
        """The frame."""
        return self.frame

    @property
    def num_levels(self) -> int:
        """None of the formats brings lower resolutions."""
        return 0

    @property
    def max_level(self) -> int:
        """The lowest resolution that averaging blocks can give."""
        return find_max_reduction(self.rows, self.columns)

    def read_frame(self, level: int = 0) -> Frame:
        """Returns the frame at 1 / 2**level of the full size."""
        return replace(self.frame, pixels=reduce_pixels(self.frame.pixels, level), grid=Grid(level))


def open_raster(path: ImagePath) -> RasterFile:
    """Reads a file of 8 or 16 bits; colours become grey, transparency black, the full range the window.

    Values of 8 to 14 bits in a file of 16 get the range of a detector's depth, and a warning.

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
            pixels = _read_grey(image, source_file.content)
            source = str(image.format)
            orientation = _read_orientation(image)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", "the image has more pixels than any mammogram") from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise ImageError("not_image", _say_what_is_wrong(source_file)) from error
    bits = _find_bits(pixels, source_file.content)
    found = {
        "orientation_unknown": orientation not in EXIF_POSES,
        "low_range": bits < pixels.itemsize * 8
        or (source == "PNG" and bits == 16 and 0 < pixels.max() < 2**15),
    }
    maximum = 2**bits - 1
    frame = Frame(
        pixels=pixels,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        bits_stored=pixels.itemsize * 8,
        window=Window(center=maximum / 2, width=maximum, function=VoiLutFunction.LINEAR_EXACT),
        pose=EXIF_POSES.get(orientation, UPRIGHT),
        transfer_syntax=source,
        warnings=tuple(code for code, applies in found.items() if applies),
    )
    return RasterFile(source_file, frame)


def _say_what_is_wrong(source: ByteSource) -> str:
    kind = name_kind(source.content)
    if kind is None or kind.suffix is None:
        known = kind.name if kind else "of no kind that is known here"
        return f"the file is {known}; PNG, JPEG and PGM are read: save it as one of them"
    if kind.suffix not in RASTER_SUFFIXES:
        return f"the file is {kind.name}, so its name should end with {kind.suffix}"
    return f"the file is {kind.name} that is damaged or cut short: export or copy it again"


def _read_grey(image: Image.Image, content: bytes) -> Pixels:
    """Decodes to grey of 8 or 16 bits; what is transparent shows the black behind it."""
    transparent = image.info.get("transparency")
    if image.mode in {"I;16", "I;16B", "I"}:
        pixels = np.array(image).astype(np.uint16)
        if isinstance(transparent, int):
            pixels[pixels == transparent] = 0
        return pixels
    if content.startswith(PNG_SIGNATURE) and content[PNG_BIT_DEPTH] == 16:
        image.load()  # tells damage better than the decoder that keeps all 16 bits
        return _mix(np.asarray(imagecodecs.png_decode(content)))
    if transparent is None and image.mode not in {"LA", "La", "PA", "RGBA", "RGBa"}:
        return np.asarray(image if image.mode == "L" else image.convert("L"))
    return _mix(np.asarray(image.convert("RGBA")))


def _mix(channels: Pixels) -> Pixels:
    """Mixes grey, or red, green and blue as Pillow does (ITU-R 601-2), over black where there is alpha."""
    count, maximum = channels.shape[2], np.iinfo(channels.dtype).max
    grey = channels[..., :3] @ np.array([0.299, 0.587, 0.114]) if count > 2 else channels[..., 0] * 1.0
    alpha = channels[..., -1] / maximum if count in {2, 4} else 1.0
    return np.asarray(np.rint(grey * alpha).clip(0, maximum).astype(channels.dtype))


def _find_bits(pixels: Pixels, content: bytes) -> int:
    """Returns how many bits the values take: of 16 maybe fewer, as a file's sBIT or their largest tells.

    Files of 12 bits that were saved as they are look black otherwise. A darker picture of the same series
    should not end with fewer bits, so only detectors' depths are taken.
    """
    largest = int(pixels.max())
    header = PGM_HEADER.match(content)
    is_scaled = header is not None and int(header[1]) != 2**16 - 1  # by Pillow, to all of 16 bits
    if pixels.itemsize == 1 or largest == 0 or is_scaled:
        return pixels.itemsize * 8
    stated = _read_significant_bits(content) if content.startswith(PNG_SIGNATURE) else 16
    depths = (stated, *DEPTHS) if stated < DEPTHS[-1] else DEPTHS
    return next(bits for bits in depths if largest < 2**bits)


def _read_significant_bits(content: bytes) -> int:
    """Returns the largest number of a PNG's sBIT chunk (PNG 11.3.2.7), or 16 where there is none."""
    found = (body for name, body in _read_chunks(content) if name == b"sBIT" and body)
    return min(16, max(next(found, b"\x10")))


def _read_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and body of each chunk before a PNG's pixels."""
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(content) and content[place + 4 : place + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += 12 + length


def _read_orientation(image: Image.Image) -> int:
    """Returns EXIF's Orientation of a decoded picture: 1 where there is none, 0 where it is no number."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types on damaged EXIF, which is no part of the picture
        return 0
    return value if isinstance(value, int) else 0


def encode_png(pixels: Pixels) -> bytes:
    """Returns the content of the PNG file of a prepared image, the same for the same pixels."""
    encoded, payload = cv2.imencode(".png", pixels)
    assert encoded, "OpenCV encodes every image of 8 or 16 bits"
    return payload.tobytes()
