"""JPEG 2000 codestreams (ISO/IEC 15444-1): decoded at one resolution level from as few bytes as it takes.

Where its structure allows, a codestream is rewritten to the shorter one of a level: the packets of the low
resolutions come first, so that the others need not even be read.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import imagecodecs
import numpy as np
from PIL import Image

from data_prep.errors import ImageError
from data_prep.imageio.frame import Pixels
from data_prep.storage.byte_source import Span

SOC, SOT, SOD, EOC = 0xFF4F, 0xFF90, 0xFF93, 0xFFD9
CAP, SIZ, COD, QCD = 0xFF50, 0xFF51, 0xFF52, 0xFF5C
TLM, PLM, PLT, CRG, COM = 0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64
DROPPED = {TLM, PLM, PLT, CRG, COM}  # lengths that are no longer true, and comments
KEPT = {CAP, SIZ, COD, QCD}
END_OF_CODESTREAM = struct.pack(">H", EOC)
SOC_AND_SIZ = struct.pack(">2H", SOC, SIZ)
JP2_SIGNATURE = b"\0\0\0\x0cjP  "
LRCP, RLCP, RPCL = range(3)  # progression orders; the last two put all of a resolution before the next
DERIVED = 1  # quantization style with one step size for all subbands

HEADER_BYTES = 2**16  # holds the main header of any sensible codestream
MARGIN_BYTES = 2**12
FIRST_SHARES = {1: 0.30, 2: 0.08, 3: 0.025, 4: 0.008, 5: 0.004}
"""The part of a lossless codestream to try first, by level: a little more than real mammograms need."""

Segment = tuple[int, bytes]
"""A marker and the body of its segment, the length left out."""


@dataclass(frozen=True)
class Codestream:
    """A codestream's own account of itself.

    Attributes:
        start: where it begins in its frame, which may be a JP2 file.
        main_header: SIZ, COD and the other segments before the first tile-part.
        data: where the first tile-part's packets begin and end in the frame.
        can_shorten: whether one level's codestream can be made of it.
    """

    rows: int
    columns: int
    precision: int
    is_signed: bool
    num_levels: int
    start: int
    main_header: tuple[Segment, ...]
    data: tuple[int, int]
    can_shorten: bool

    @property
    def max_level(self) -> int:
        """The lowest resolution up to which `decode` gives all."""
        if self.can_shorten:
            return self.num_levels
        levels = range(1, self.num_levels + 1)
        sizes = (self.rows, self.columns)
        can_reduce = takewhile(lambda level: all(_pillow_can_reduce(size, level) for size in sizes), levels)
        return max(can_reduce, default=0)


def _pillow_can_reduce(size: int, level: int) -> bool:
    """Pillow 13 rounds a reduced size half up where OpenJPEG rounds up; it fails where they differ."""
    remainder = size % 2**level
    return remainder == 0 or remainder >= 2 ** (level - 1)


def read_codestream(encoded: Span) -> Codestream:
    """Reads a codestream's headers, in a JP2 file or bare.

    Raises:
        ImageError: if there is none, it is cut short, or it has several components.
    """
    head = encoded.first(HEADER_BYTES)
    start = head.find(SOC_AND_SIZ)
    try:
        if start < 0 or not head.startswith((SOC_AND_SIZ, JP2_SIGNATURE)):
            raise ImageError("decode_error", "the frame holds no JPEG 2000 codestream")
        segments, after = _read_segments(head, start + 2, until=SOT)
        tile_part_segments, data_start = _read_segments(head, after, until=SOD)
        return _describe(encoded, start, tuple(segments), tile_part_segments, after, data_start)
    except (struct.error, IndexError, KeyError) as error:
        raise ImageError("decode_error", "the JPEG 2000 header cannot be read") from error


def _read_segments(head: bytes, place: int, *, until: int) -> tuple[list[Segment], int]:
    """Returns the segments before a marker, and where SOT stands or what follows SOD begins."""
    segments: list[Segment] = []
    while True:
        (marker,) = struct.unpack_from(">H", head, place)
        if marker == until:
            return segments, place + 2 if until == SOD else place
        (length,) = struct.unpack_from(">H", head, place + 2)
        if marker < SOC or length < 2:
            raise ImageError("decode_error", "the JPEG 2000 header cannot be read")
        segments.append((marker, head[place + 4 : place + 2 + length]))
        place += 2 + length


def _describe(
    encoded: Span, start: int, main_header: tuple[Segment, ...], tile_part: list[Segment], sot: int, data: int
) -> Codestream:
    bodies = dict(main_header)
    siz, cod = bodies[SIZ], bodies[COD]
    columns, rows, left, top = struct.unpack_from(">4I", siz, 2)  # A.5.1
    (num_components,) = struct.unpack_from(">H", siz, 34)
    if num_components != 1:
        raise ImageError(
            "unsupported", f"the codestream has {num_components} components; a mammogram has one"
        )
    depth = siz[36]
    first_tile_part = tile_part[0][1]
    (length,) = struct.unpack_from(">I", first_tile_part, 2)  # Psot counts from the SOT marker; 0 is open
    end = sot + length if length else encoded.size
    if end > encoded.size:
        raise ImageError("truncated", f"{end} bytes of JPEG 2000 expected, {encoded.size} found")
    can_shorten = _can_shorten(siz, cod, main_header, tile_part)
    if not can_shorten and END_OF_CODESTREAM not in bytes(encoded.all()[-4:]):
        raise ImageError("truncated", "the JPEG 2000 frame has no end marker")
    return Codestream(
        rows=rows - top,
        columns=columns - left,
        precision=(depth & 0x7F) + 1,
        is_signed=bool(depth & 0x80),
        num_levels=cod[5],
        start=start,
        main_header=main_header,
        data=(data, end),
        can_shorten=can_shorten,
    )


def _can_shorten(siz: bytes, cod: bytes, main_header: tuple[Segment, ...], tile_part: list[Segment]) -> bool:
    """One tile in one tile-part, whose packets come resolution by resolution, with nothing out of the way."""
    width, height, _, _, tile_width, tile_height, left, top = struct.unpack_from(">8I", siz, 2)
    is_one_tile = left + tile_width >= width and top + tile_height >= height
    markers = [marker for marker, _ in main_header]
    is_plain = set(markers) <= KEPT | DROPPED and len(set(markers) & KEPT) == len(set(markers) - DROPPED)
    progression, num_layers = struct.unpack_from(">BH", cod, 1)
    is_by_resolution = progression in {RLCP, RPCL} or (progression == LRCP and num_layers == 1)
    (_, sot), *others = tile_part
    has_length, has_one_part = any(sot[2:6]), sot[7] == 1  # A.4.2, Psot and TNsot
    is_plain = is_plain and {marker for marker, _ in others} <= DROPPED
    return is_one_tile and is_plain and is_by_resolution and has_length and has_one_part


def shorten(encoded: bytes, stream: Codestream, level: int) -> bytes:
    """Returns the codestream of a level, 1 to `num_levels`, from the first bytes of a frame.

    Its image is the one that a decoder gives that leaves out the highest `level` resolutions.
    """
    header = b"".join(
        struct.pack(">2H", marker, len(body) + 2) + body
        for marker, body in _shorten_header(stream.main_header, level)
    )
    packets = encoded[stream.data[0] : stream.data[1]]
    tile_part = struct.pack(">HIBB", 0, 14 + len(packets), 0, 1)  # Isot, Psot, TPsot, TNsot
    return b"".join(
        [
            struct.pack(">H", SOC),
            header,
            struct.pack(">2H", SOT, 10),
            tile_part,
            struct.pack(">H", SOD),
            packets,
            END_OF_CODESTREAM,
        ]
    )


def _shorten_header(segments: tuple[Segment, ...], level: int) -> Iterator[Segment]:
    for marker, body in segments:
        if marker == SIZ:  # sizes and offsets of image and tile
            sizes = (-(-size >> level) for size in struct.unpack_from(">8I", body, 2))
            yield marker, body[:2] + struct.pack(">8I", *sizes) + body[34:]
        elif marker == COD:  # number of levels; precinct sizes, lowest resolution first, where there are any
            precincts = body[10 : len(body) - level] if len(body) > 10 else b""
            yield marker, body[:5] + bytes([body[5] - level]) + body[6:10] + precincts
        elif marker == QCD:  # step sizes of three subbands per level, lowest first
            style = body[0] & 0x1F
            size = 0 if style == DERIVED else 3 * level * (2 if style else 1)
            yield marker, body[: len(body) - size]
        elif marker not in DROPPED:
            yield marker, body


def decode(encoded: Span, stream: Codestream, level: int = 0) -> Pixels:
    """Returns stored pixels at 1 / 2**level of the full size, level at most `stream.max_level`.

    No more than the codestream is decoded: a JP2 file around it may hold another one of another size.

    Raises:
        ImageError: if the frame is of no format that Pillow knows as JPEG 2000.
        RuntimeError, OSError: if it cannot be decoded.
    """
    if level == 0:
        return _decode_all(bytes(encoded.all()[stream.start :]))
    return (
        _decode_shortened(encoded, stream, level) if stream.can_shorten else _reduce(encoded, stream, level)
    )


def _decode_all(codestream: bytes) -> Pixels:
    return np.asarray(imagecodecs.jpeg2k_decode(codestream, numthreads=1))


def _decode_shortened(encoded: Span, stream: Codestream, level: int) -> Pixels:
    """Reads on until there is enough.

    OpenJPEG refuses a codestream that lacks packets, unless it ends right behind one: then it decodes without
    the later ones. Two very different lengths that give the same pixels lack nothing.
    """
    share = FIRST_SHARES.get(level, FIRST_SHARES[max(FIRST_SHARES)])
    num_bytes = max(encoded.num_read, stream.data[0] + MARGIN_BYTES + int(share * encoded.size))
    shorter: Pixels | None = None
    while True:
        is_everything = num_bytes >= encoded.size
        try:
            pixels = _decode_all(shorten(encoded.first(num_bytes), stream, level))
        except imagecodecs.Jpeg2kError:
            if is_everything:
                raise
        else:
            if is_everything or (shorter is not None and np.array_equal(pixels, shorter)):
                return pixels
            shorter = pixels
        num_bytes += num_bytes // 2


def _reduce(encoded: Span, stream: Codestream, level: int) -> Pixels:
    """Returns a level of what cannot be shortened: Pillow leaves packets out, but needs the whole frame."""
    with Image.open(io.BytesIO(encoded.all()[stream.start :]), formats=["JPEG2000"]) as image:
        image.reduce = level  # type: ignore[method-assign, assignment]  # Pillow's way to ask for a level
        image.load()
        pixels = np.asarray(image)
    shift = pixels.itemsize * 8 - stream.precision
    if shift:  # Pillow shifts 9 to 15 bits up to 16
        pixels = pixels >> shift
    if stream.is_signed:  # and moves signed values up to start at zero
        pixels = (pixels.astype(np.int32) - (1 << (stream.precision - 1))).astype(np.int16)
    return pixels
