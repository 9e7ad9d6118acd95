"""Compressed frames to stored pixels, at the resolution that is needed, and back. Knows no DICOM but UIDs.

The decoders: OpenJPEG through Pillow for JPEG 2000 (it decodes reduced resolutions), libjpeg-turbo and CharLS
through imagecodecs for the JPEG family and JPEG-LS, imagecodecs' own for RLE.
"""

import io
import struct
from dataclasses import dataclass
from itertools import takewhile

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.errors import ImageError
from data_prep.frame import Pixels

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"

NATIVE = {
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
}
JPEG = {JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1}
JPEG_LS = {JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS}
JPEG_2000_FAMILY = {JPEG_2000_LOSSLESS, JPEG_2000}
SUPPORTED = NATIVE | JPEG | JPEG_LS | JPEG_2000_FAMILY | {RLE_LOSSLESS}

END_OF_IMAGE = b"\xff\xd9"
# Of baseline, extended, progressive and lossless JPEG, and of JPEG-LS.
STARTS_OF_FRAME = {0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7}
FILL_BYTES = 0xFFFF
SOC_AND_SIZ = b"\xff\x4f\xff\x51"
COD = b"\xff\x52"


@dataclass(frozen=True)
class Layout:
    """What a decoder must know of a frame that its bytes do not say.

    Attributes:
        bits_allocated: 8 or 16.
        bits_stored: 1 to bits_allocated; values use that many bits.
        is_signed: whether stored values are two's complement.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool

    def dtype(self, *, big_endian: bool = False) -> np.dtype[np.generic]:
        """The stored values' type."""
        order = ">" if big_endian else "<"
        return np.dtype(f"{order}{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")


@dataclass(frozen=True)
class Codestream:
    """A JPEG 2000 codestream's own account of itself: SIZ and COD, ISO/IEC 15444-1 A.5.1 and A.6.1."""

    rows: int
    columns: int
    precision: int
    is_signed: bool
    num_levels: int


def decode(encoded: bytes, transfer_syntax: str, layout: Layout, level: int = 0) -> Pixels:
    """Returns stored pixels at 1 / 2**level of the full size; only JPEG 2000 has levels above 0.

    Raises:
        ImageError: if the frame is cut short, does not fit the layout, or cannot be decoded.
    """
    if transfer_syntax in NATIVE:
        return _decode_native(encoded, layout, big_endian=transfer_syntax == EXPLICIT_VR_BIG_ENDIAN)
    if transfer_syntax not in SUPPORTED:
        raise ImageError("unsupported", f"transfer syntax {transfer_syntax} has no decoder here")
    try:
        if transfer_syntax in JPEG_2000_FAMILY:
            pixels = _decode_jpeg2000(encoded, layout, level)
        elif transfer_syntax == RLE_LOSSLESS:
            pixels = _decode_rle(encoded, layout)
        else:
            pixels = _decode_jpeg(encoded, transfer_syntax, layout)
    except (OSError, RuntimeError, ValueError, SyntaxError) as error:
        raise ImageError(
            "decode_error", f"the frame cannot be decoded ({transfer_syntax}): {error}"
        ) from error
    expected = (-(-layout.rows >> level), -(-layout.columns >> level))
    if pixels.shape != expected:
        raise ImageError("size_mismatch", f"the frame decodes to {pixels.shape}, the header says {expected}")
    return pixels


def find_max_level(encoded: bytes, transfer_syntax: str) -> int:
    """Returns the lowest resolution up to which `decode` gives all: 0 for everything but JPEG 2000.

    Raises:
        ImageError: if the JPEG 2000 main header cannot be read.
    """
    if transfer_syntax not in JPEG_2000_FAMILY:
        return 0
    stream = read_codestream(encoded)
    sizes = (stream.rows, stream.columns)
    levels = range(1, stream.num_levels + 1)
    can_reduce = takewhile(lambda level: all(_pillow_can_reduce(size, level) for size in sizes), levels)
    return max(can_reduce, default=0)


def _pillow_can_reduce(size: int, level: int) -> bool:
    """Pillow 13 rounds a reduced size half up where OpenJPEG rounds up; it fails where they differ."""
    remainder = size % 2**level
    return remainder == 0 or remainder >= 2 ** (level - 1)


def read_codestream(encoded: bytes) -> Codestream:
    """Reads the main header of a JPEG 2000 codestream, in a JP2 box or bare.

    Raises:
        ImageError: if there is none.
    """
    start = encoded.find(SOC_AND_SIZ)
    cod = encoded.find(COD, start)
    if start < 0 or cod < 0 or len(encoded) < cod + 10:
        raise ImageError("decode_error", "the frame holds no JPEG 2000 codestream")
    columns, rows, left, top = struct.unpack_from(">4I", encoded, start + 8)
    (components,) = struct.unpack_from(">H", encoded, start + 40)
    if components != 1:
        raise ImageError("unsupported", f"the codestream has {components} components; a mammogram has one")
    depth = encoded[start + 42]
    return Codestream(
        rows=rows - top,
        columns=columns - left,
        precision=(depth & 0x7F) + 1,
        is_signed=bool(depth & 0x80),
        num_levels=encoded[cod + 9],
    )


def _decode_native(encoded: bytes, layout: Layout, *, big_endian: bool) -> Pixels:
    dtype = layout.dtype(big_endian=big_endian)
    count = layout.rows * layout.columns
    if len(encoded) < count * dtype.itemsize:
        raise ImageError(
            "truncated", f"{count * dtype.itemsize} bytes of pixels expected, {len(encoded)} found"
        )
    pixels = np.frombuffer(encoded, dtype, count).reshape(layout.rows, layout.columns)
    return pixels.astype(dtype.newbyteorder("="), copy=False)


def _decode_rle(encoded: bytes, layout: Layout) -> Pixels:
    pixels = np.frombuffer(imagecodecs.dicomrle_decode(encoded, layout.dtype()), layout.dtype())
    return pixels.reshape(layout.rows, layout.columns)


def _decode_jpeg(encoded: bytes, transfer_syntax: str, layout: Layout) -> Pixels:
    if END_OF_IMAGE not in encoded[-4:]:  # libjpeg-turbo half-decodes a cut frame without a word
        raise ImageError("truncated", "the JPEG frame has no end marker")
    _require_size(*_read_jpeg_size(encoded), layout)
    read = imagecodecs.jpegls_decode if transfer_syntax in JPEG_LS else imagecodecs.jpeg8_decode
    pixels = np.asarray(read(encoded))
    if not layout.is_signed:
        return pixels
    unused = max(0, pixels.itemsize * 8 - layout.bits_stored)
    return (pixels << unused).view(f"i{pixels.itemsize}") >> unused  # carries the sign into the unused bits


def _read_jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Returns rows and columns of the first start of frame, ITU-T T.81 B.2.2 and T.87 C.2.2."""
    place = 2  # after the start of image
    while place + 9 <= len(encoded):
        marker, length = struct.unpack_from(">2H", encoded, place)
        if marker in STARTS_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", encoded, place + 5)
            return rows, columns
        place += 1 if marker == FILL_BYTES else 2 + length
    raise ImageError("decode_error", "the JPEG frame holds no image")


def _require_size(rows: int, columns: int, layout: Layout) -> None:
    """Refuses before decoding what would decode to another size, which may be far beyond the memory."""
    if (rows, columns) != (layout.rows, layout.columns):
        sizes = f"{rows}x{columns} in the frame, {layout.rows}x{layout.columns} in the header"
        raise ImageError("size_mismatch", f"the image's size is {sizes}")


def _decode_jpeg2000(encoded: bytes, layout: Layout, level: int) -> Pixels:
    stream = read_codestream(encoded)
    _require_size(stream.rows, stream.columns, layout)
    image = _open_jpeg2000(encoded)
    image.reduce = level  # type: ignore[method-assign, assignment]  # Pillow's own way to ask for a level
    image.load()
    pixels = np.asarray(image)
    shift = pixels.itemsize * 8 - stream.precision
    if shift:  # Pillow shifts 9 to 15 bits up to 16
        pixels = pixels >> shift
    if stream.is_signed:  # and moves signed values up to start at zero
        pixels = (pixels.astype(np.int32) - (1 << (stream.precision - 1))).astype(np.int16)
    return pixels


def _open_jpeg2000(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=["JPEG2000"])
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", "the image has more pixels than any mammogram") from error
    except UnidentifiedImageError as error:  # its text holds a memory address, new in every run
        raise ImageError("decode_error", "the frame cannot be read as JPEG 2000") from error


def encode(pixels: Pixels, transfer_syntax: str, *, bits_stored: int, jp2: bool = False) -> bytes:
    """Returns one lossless frame of unsigned pixels [H, W]; `jp2` wraps a JPEG 2000 codestream in a JP2 box.

    Raises:
        ValueError: if it cannot be written here: imagecodecs has no RLE encoder, pydicom has.
    """
    if transfer_syntax == EXPLICIT_VR_LITTLE_ENDIAN:
        return pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if transfer_syntax == JPEG_LOSSLESS_SV1:  # selection value 1 is predictor 1
        return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits_stored))
    if transfer_syntax == JPEG_2000_LOSSLESS:
        container = "jp2" if jp2 else "j2k"
        return bytes(
            imagecodecs.jpeg2k_encode(
                pixels,
                level=0,
                reversible=True,
                codecformat=container,
                bitspersample=bits_stored,
                resolutions=6,
            )
        )
    raise ValueError(f"transfer syntax {transfer_syntax} cannot be written")
