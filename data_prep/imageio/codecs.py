"""Compressed frames to stored pixels, at the resolution that is needed, and back.

The decoders, all through imagecodecs: OpenJPEG for JPEG 2000 and HTJ2K (in `jpeg2000`), libjpeg-turbo and
CharLS for the JPEG family and JPEG-LS, its own for RLE.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from data_prep.errors import ImageError
from data_prep.imageio import jpeg, jpeg2000
from data_prep.imageio.codestream_headers import JP2_SIGNATURE, SOC_AND_SIZ, is_whole
from data_prep.imageio.frame import Pixels
from data_prep.imageio.jpeg2000 import Codestream, read_codestream
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

RLE_HEADER = struct.Struct("<16I")  # the number of segments, and where up to 15 begin
RLE_RUN_BYTES = 128  # at most
PADDING = b"\x00\xff"


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
        elif transfer_syntax == RLE_LOSSLESS:
            pixels = _decode_rle(bytes(encoded.all()), layout)
        elif is_jpeg2000(encoded, transfer_syntax):
            return _decode_jpeg2000(encoded, layout, level)
        else:
            pixels = _decode_jpeg(bytes(encoded.all()), layout)
    except (OSError, RuntimeError, ValueError, SyntaxError) as error:
        raise ImageError(
            "decode_error", f"the frame cannot be decoded ({transfer_syntax}): {error}"
        ) from error
    return _require_shape(pixels, (layout.rows, layout.columns))


def find_max_level(encoded: Span, transfer_syntax: str, layout: Layout) -> int:
    """Returns the lowest resolution up to which `decode` gives all: 0 for everything but JPEG 2000.

    And for JPEG 2000 whose values may have to be read anew, see `_may_wrap`.

    Raises:
        ImageError: if the JPEG 2000 main header cannot be read.
    """
    if not is_jpeg2000(encoded, transfer_syntax):
        return 0
    stream = read_codestream(encoded)
    return 0 if _may_wrap(stream, layout) else stream.max_level


def is_jpeg2000(encoded: Span, transfer_syntax: str) -> bool:
    """Whether a frame is JPEG 2000, by its first bytes; exporters name one JPEG for another."""
    if transfer_syntax in SAMPLES_AS_THEY_ARE:
        return False
    head = encoded.first(len(JP2_SIGNATURE))
    if head.startswith((SOC_AND_SIZ, JP2_SIGNATURE)):
        return True
    return transfer_syntax in JPEG_2000_FAMILY and not head.startswith(jpeg.START_OF_IMAGE)


def is_frame_whole(fragment: Span, transfer_syntax: str) -> bool:
    """Whether a fragment's first bytes say that the frame ends in it; False where they do not tell."""
    return is_jpeg2000(fragment, transfer_syntax) and is_whole(fragment)


def _require_shape(pixels: Pixels, expected: tuple[int, int]) -> Pixels:
    if pixels.shape != expected:
        raise ImageError("size_mismatch", f"the frame decodes to {pixels.shape}, the header says {expected}")
    return pixels


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
    """Decodes RLE into the size that the layout says, PS3.5 G."""
    if len(encoded) < RLE_HEADER.size:
        raise ImageError("truncated", f"the RLE header has {RLE_HEADER.size} bytes, the frame {len(encoded)}")
    count, *offsets = RLE_HEADER.unpack_from(encoded)
    num_segments = layout.bits_allocated // 8
    if count != num_segments:
        raise ImageError("decode_error", f"the RLE frame has {count} segments and should have {num_segments}")
    starts = offsets[:count]
    if starts != sorted(starts) or starts[0] < RLE_HEADER.size:
        raise ImageError(
            "decode_error", f"the segments of the RLE frame are out of order: they begin at {starts}"
        )
    if starts[-1] >= len(encoded):
        raise ImageError(
            "truncated", f"an RLE segment begins at byte {starts[-1]} of a frame of {len(encoded)} bytes"
        )
    size = layout.rows * layout.columns
    with suppress(RuntimeError, ValueError):
        samples = np.frombuffer(
            imagecodecs.dicomrle_decode(encoded, layout.dtype(), out=bytearray(size * count)), layout.dtype()
        )
        if len(samples) == size:  # as nearly always; what is odd is looked at segment by segment
            return samples.reshape(layout.rows, layout.columns)
    planes = np.empty((size, count), np.uint8)  # the first segment holds the most significant bytes, G.2
    for k, (start, end) in enumerate(zip(starts, [*starts[1:], len(encoded)], strict=True)):
        plane = _decode_rle_segment(encoded[start:end], size)
        if len(plane) < size:
            reason = "truncated" if k == count - 1 else "decode_error"
            raise ImageError(reason, f"segment {k + 1} of the RLE frame holds fewer than {size} bytes")
        planes[:, k] = plane
    samples = planes.view(layout.dtype(big_endian=True)).astype(layout.dtype())
    return samples.reshape(layout.rows, layout.columns)


def _decode_rle_segment(segment: bytes, size: int) -> NDArray[np.uint8]:
    """Returns the first `size` bytes of a segment, or fewer where it ends too soon, PS3.5 G.3.

    Raises:
        ImageError: if it holds more; but what 00 and FF at its end add is padding.
    """
    room = bytearray(size + len(segment) - len(segment.rstrip(PADDING)))
    candidates = [segment, segment[:-1]] if segment.endswith(b"\xff") else [segment]  # FF announces a byte
    for candidate in candidates:
        with suppress(imagecodecs.PackbitsError):
            return np.frombuffer(imagecodecs.packbits_decode(candidate, out=room), np.uint8)[:size]
    with suppress(imagecodecs.PackbitsError):  # the last run is cut: with something behind, it can be decoded
        imagecodecs.packbits_decode(segment + bytes(RLE_RUN_BYTES), out=bytearray(size + RLE_RUN_BYTES))
        return np.zeros(0, np.uint8)
    raise ImageError("decode_error", f"a segment of the RLE frame holds more than {size} bytes")


def _decode_jpeg(encoded: bytes, layout: Layout) -> Pixels:
    if not encoded.startswith(jpeg.START_OF_IMAGE):
        head = encoded[:4].hex().upper()
        raise ImageError("decode_error", f"the frame is neither JPEG nor JPEG 2000: it begins with {head!r}")
    stream = jpeg.read_stream(encoded)
    _require_size(stream.rows, stream.columns, layout)
    if stream.num_components != 1:
        raise ImageError(
            "unsupported", f"the JPEG frame has {stream.num_components} components; a mammogram has one"
        )
    pixels = jpeg.decode(encoded, stream)
    return _reinterpret(pixels, layout.bits_stored, is_signed=True) if layout.is_signed else pixels


def _require_size(rows: int, columns: int, layout: Layout) -> None:
    """Refuses before decoding what would decode to another size, which may be far beyond the memory."""
    if (rows, columns) != (layout.rows, layout.columns):
        sizes = f"{rows}x{columns} in the frame, {layout.rows}x{layout.columns} in the header"
        raise ImageError("size_mismatch", f"the image's size is {sizes}")


def _decode_jpeg2000(encoded: Span, layout: Layout, level: int) -> Pixels:
    stream = read_codestream(encoded)
    _require_size(stream.rows, stream.columns, layout)
    pixels = _require_shape(jpeg2000.decode(encoded, stream, level), stream.shape(level))
    if not _may_wrap(stream, layout):
        return pixels
    bits, bits_stored = stream.precision, layout.bits_stored
    if pixels.max() < 1 << bits_stored and pixels.min() >= -(1 << (bits_stored - 1)):
        bits = min(bits, bits_stored)
    return _reinterpret(pixels, bits, is_signed=layout.is_signed)


def _may_wrap(stream: Codestream, layout: Layout) -> bool:
    """Whether the header reads the stream's values otherwise than the stream does, which then jump.

    Their mean, and so each lower resolution, is of no use: they are the same bits with another sign, or
    two's complement of fewer bits.
    """
    if stream.is_signed != layout.is_signed:
        return True
    return layout.is_signed and stream.precision > layout.bits_stored


def _reinterpret(pixels: Pixels, bits: int, *, is_signed: bool) -> Pixels:
    """Returns the lowest `bits` of integers, read as two's complement or as unsigned."""
    unused = max(0, pixels.itemsize * 8 - bits)
    return (pixels << unused).view(f"{'i' if is_signed else 'u'}{pixels.itemsize}") >> unused


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
