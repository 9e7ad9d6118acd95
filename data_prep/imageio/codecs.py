"""Compressed frames to stored pixels, at the resolution that is needed, and back.

The decoders, all through imagecodecs: OpenJPEG for JPEG 2000 and HTJ2K (in `jpeg2000`), libjpeg-turbo and
CharLS for the JPEG family and JPEG-LS, its own for RLE.
"""

import struct
from dataclasses import dataclass

import imagecodecs
import numpy as np

from data_prep.errors import ImageError
from data_prep.imageio import jpeg2000
from data_prep.imageio.frame import Pixels
from data_prep.imageio.jpeg2000 import read_codestream
from data_prep.storage.byte_source import Span

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
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K_ANY = "1.2.840.10008.1.2.4.203"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"

NATIVE = {
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
}
SAMPLES_AS_THEY_ARE = NATIVE | {RLE_LOSSLESS}
"""Syntaxes whose samples have unused bits too; what the others decode to are values."""
JPEG = {JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1}
JPEG_LS = {JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS}
HTJ2K = {HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K_ANY}
JPEG_2000_FAMILY = {JPEG_2000_LOSSLESS, JPEG_2000} | HTJ2K
SUPPORTED = NATIVE | JPEG | JPEG_LS | JPEG_2000_FAMILY | {RLE_LOSSLESS}

MAX_PIXELS = 2**27  # four times the largest mammography detector

END_OF_IMAGE = b"\xff\xd9"
# Of baseline, extended, progressive and lossless JPEG, and of JPEG-LS.
STARTS_OF_FRAME = {0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3, 0xFFF7}
FILL_BYTES = 0xFFFF
RLE_HEADER = struct.Struct("<16I")  # the number of segments, and where up to 15 begin


@dataclass(frozen=True)
class Layout:
    """What a decoder must know of a frame that its bytes do not say.

    Attributes:
        bits_allocated: 8 or 16.
        bits_stored: 1 to bits_allocated; values use that many bits.
        is_signed: whether stored values are two's complement.
        low_bits: unused bits below the value where samples are stored as they are, uncompressed or RLE:
            HighBit + 1 - BitsStored.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    low_bits: int = 0

    def dtype(self, *, big_endian: bool = False) -> np.dtype[np.generic]:
        """The stored values' type."""
        order = ">" if big_endian else "<"
        return np.dtype(f"{order}{'i' if self.is_signed else 'u'}{self.bits_allocated // 8}")


def decode(encoded: Span, transfer_syntax: str, layout: Layout, level: int = 0) -> Pixels:
    """Returns samples at 1 / 2**level of the full size; only JPEG 2000 has levels above 0.

    They are the stored values, but for the syntaxes in `SAMPLES_AS_THEY_ARE`, which need `cut_to_value`.

    Raises:
        ImageError: if the frame is cut short, does not fit the layout, or cannot be decoded.
    """
    if transfer_syntax not in SUPPORTED:
        raise ImageError("unsupported", f"transfer syntax {transfer_syntax} has no decoder here")
    if layout.rows * layout.columns > MAX_PIXELS:
        raise ImageError(
            "too_large", f"{layout.rows}x{layout.columns} pixels are more than any mammogram has"
        )
    try:
        if transfer_syntax in NATIVE:
            pixels = _decode_native(encoded, layout, big_endian=transfer_syntax == EXPLICIT_VR_BIG_ENDIAN)
        elif transfer_syntax in JPEG_2000_FAMILY:
            pixels = _decode_jpeg2000(encoded, layout, level)
        elif transfer_syntax == RLE_LOSSLESS:
            pixels = _decode_rle(bytes(encoded.all()), layout)
        else:
            pixels = _decode_jpeg(bytes(encoded.all()), transfer_syntax, layout)
    except (OSError, RuntimeError, ValueError, SyntaxError) as error:
        raise ImageError(
            "decode_error", f"the frame cannot be decoded ({transfer_syntax}): {error}"
        ) from error
    expected = (-(-layout.rows >> level), -(-layout.columns >> level))
    if pixels.shape != expected:
        raise ImageError("size_mismatch", f"the frame decodes to {pixels.shape}, the header says {expected}")
    return pixels


def find_max_level(encoded: Span, transfer_syntax: str) -> int:
    """Returns the lowest resolution up to which `decode` gives all: 0 for everything but JPEG 2000.

    Raises:
        ImageError: if the JPEG 2000 main header cannot be read.
    """
    return read_codestream(encoded).max_level if transfer_syntax in JPEG_2000_FAMILY else 0


def _decode_native(encoded: Span, layout: Layout, *, big_endian: bool) -> Pixels:
    dtype = layout.dtype(big_endian=big_endian)
    count = layout.rows * layout.columns
    if encoded.size < count * dtype.itemsize:
        raise ImageError(
            "truncated", f"{count * dtype.itemsize} bytes of pixels expected, {encoded.size} found"
        )
    pixels = np.frombuffer(encoded.all(), dtype, count).reshape(layout.rows, layout.columns)
    return np.asarray(pixels.astype(dtype.newbyteorder("="), copy=False))


def cut_to_value(samples: Pixels, layout: Layout) -> tuple[Pixels, float]:
    """Returns the stored values, and the share of unsigned samples with something in the bits above them.

    PS3.5 8.1.1 gives the unused bits no meaning; old files keep overlays there.
    """
    unused = layout.bits_allocated - layout.bits_stored
    above = unused - layout.low_bits
    maximum = 2 ** (layout.bits_stored + layout.low_bits) - 1
    beyond = 0.0 if layout.is_signed or samples.max() <= maximum else float((samples > maximum).mean())
    if unused == 0 or not (layout.is_signed or layout.low_bits or beyond):
        return samples, beyond
    return (samples << above) >> unused, beyond


def _decode_rle(encoded: bytes, layout: Layout) -> Pixels:
    """Decodes RLE into the size that the layout says, PS3.5 G.

    The header is checked here: imagecodecs 2026.3.6 follows an offset beyond the frame, and the process dies.
    """
    if len(encoded) < RLE_HEADER.size:
        raise ImageError("truncated", "the RLE frame ends in its header")
    count, *offsets = RLE_HEADER.unpack_from(encoded)
    num_segments = layout.bits_allocated // 8
    if count != num_segments:
        raise ImageError("decode_error", f"the RLE frame has {count} segments and should have {num_segments}")
    starts = offsets[:count]
    if starts != sorted(starts) or starts[0] < RLE_HEADER.size:
        raise ImageError("decode_error", "the segments of the RLE frame are out of order")
    if starts[-1] >= len(encoded):
        raise ImageError("truncated", "a segment of the RLE frame begins behind its end")
    num_bytes = layout.rows * layout.columns * count
    decoded = imagecodecs.dicomrle_decode(encoded, layout.dtype(), out=bytearray(num_bytes))
    return np.frombuffer(decoded, layout.dtype()).reshape(layout.rows, layout.columns)


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


def _decode_jpeg2000(encoded: Span, layout: Layout, level: int) -> Pixels:
    stream = read_codestream(encoded)
    _require_size(stream.rows, stream.columns, layout)
    pixels = jpeg2000.decode(encoded, stream, level)
    if stream.is_signed == layout.is_signed:
        return pixels
    unused = pixels.itemsize * 8 - stream.precision  # the same bits, read as the header says
    return (pixels << unused).view(f"{'i' if layout.is_signed else 'u'}{pixels.itemsize}") >> unused


def encode(pixels: Pixels, transfer_syntax: str, *, bits_stored: int, jp2: bool = False) -> bytes:
    """Returns one lossless frame of unsigned pixels [H, W]; `jp2` wraps a JPEG 2000 codestream in a JP2 box.

    Raises:
        ValueError: if it cannot be written here: imagecodecs has no RLE encoder, pydicom has.
    """
    if transfer_syntax == EXPLICIT_VR_LITTLE_ENDIAN:
        return pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if transfer_syntax == JPEG_LOSSLESS_SV1:  # selection value 1 is predictor 1
        return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits_stored))
    if transfer_syntax in HTJ2K:
        return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))
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
