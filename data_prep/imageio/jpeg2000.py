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
from data_prep.imageio.codestream_headers import (
    END_OF_CODESTREAM,
    SIZ,
    SOC,
    SOD,
    SOT,
    Headers,
    Segment,
    count_tiles,
    find_box_end,
    find_end,
    find_lone_end,
    read_headers,
)
from data_prep.imageio.frame import Pixels
from data_prep.storage.byte_source import Span

CAP, COD, QCD = 0xFF50, 0xFF52, 0xFF5C
TLM, PLM, PLT, CRG, COM = 0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64
DROPPED = {TLM, PLM, PLT, CRG, COM}  # lengths that are no longer true, and comments
KEPT = {CAP, SIZ, COD, QCD}
LRCP, RLCP, RPCL = range(3)  # progression orders; the last two put all of a resolution before the next
DERIVED = 1  # quantization style with one step size for all subbands

MAX_PRECISION = 16
MARGIN_BYTES = 2**12
FIRST_SHARES = {1: 0.30, 2: 0.08, 3: 0.025, 4: 0.008, 5: 0.004}
"""The part of a lossless codestream to try first, by level: a little more than real mammograms need."""


@dataclass(frozen=True)
class Codestream:
    """A codestream's own account of itself.

    Attributes:
        rows, columns: size of the image, which begins at `top` and `left` of the reference grid.
        start: where it begins in its frame, which may be a JP2 file.
        main_header: SIZ, COD and the other segments before the first tile-part.
        first_sot: where the first tile-part begins in the frame.
        data: where the first tile-part's packets begin in the frame, and where the last one's end.
        tile_sizes: rows and columns of several tiles; empty for one.
        missing: which tiles or tile-parts are not there, in words; empty if all are.
        can_shorten: whether one level's codestream can be made of it.
    """

    rows: int
    columns: int
    top: int
    left: int
    precision: int
    is_signed: bool
    num_levels: int
    start: int
    main_header: tuple[Segment, ...]
    first_sot: int
    data: tuple[int, int]
    tile_sizes: tuple[int, ...]
    missing: str
    can_shorten: bool

    @property
    def max_level(self) -> int:
        """The lowest resolution up to which `decode` gives all, sample k on pixel k * 2**level."""
        levels = range(1, self.num_levels + 1)
        return max(takewhile(self._can_reduce, levels), default=0)

    def _can_reduce(self, level: int) -> bool:
        """The samples of a level lie on multiples of 2**level of the reference grid, B.5."""
        if self.can_shorten:
            return (self.top | self.left) % 2**level == 0
        if self.top or self.left or any(size % 2**level for size in self.tile_sizes):
            return False  # Pillow fails
        return all(_pillow_can_reduce(size, level) for size in (self.rows, self.columns))

    def shape(self, level: int) -> tuple[int, int]:
        """Returns rows and columns at 1 / 2**level of the full size, B.5."""
        sizes = [-(-(at + size) >> level) + (-at >> level) for at, size in self._extents]
        return sizes[0], sizes[1]

    @property
    def _extents(self) -> tuple[tuple[int, int], ...]:
        return (self.top, self.rows), (self.left, self.columns)


def _pillow_can_reduce(size: int, level: int) -> bool:
    """Pillow 13 rounds a reduced size half up where OpenJPEG rounds up; it fails where they differ."""
    remainder = size % 2**level
    return remainder == 0 or remainder >= 2 ** (level - 1)


def read_codestream(encoded: Span) -> Codestream:
    """Reads a codestream's headers, in a JP2 file or bare.

    Raises:
        ImageError: if there is none, it is cut short, or it has several components.
    """
    headers = read_headers(encoded)
    try:
        return _describe(encoded, headers)
    except (struct.error, IndexError, KeyError) as error:
        raise ImageError("decode_error", "the JPEG 2000 header cannot be read") from error


def _describe(encoded: Span, headers: Headers) -> Codestream:
    bodies = dict(headers.main)
    siz, cod = bodies[SIZ], bodies[COD]
    columns, rows, left, top = struct.unpack_from(">4I", siz, 2)  # A.5.1
    (num_components,) = struct.unpack_from(">H", siz, 34)
    if num_components != 1:
        raise ImageError(
            "unsupported", f"the codestream has {num_components} components; a mammogram has one"
        )
    precision = (siz[36] & 0x7F) + 1
    if precision > MAX_PRECISION:
        raise ImageError("unsupported", f"the codestream has {precision} bits a sample; 1 to 16 are taken")
    can_shorten = _can_shorten(siz, cod, headers)
    missing = ""
    end = find_lone_end(encoded, headers) if can_shorten else None
    if end is None:
        limit = find_box_end(encoded.first(headers.start), headers.start)
        end, missing = find_end(bytes(encoded.all()[:limit]), headers.first_sot, count_tiles(siz))
    return Codestream(
        rows=rows - top,
        columns=columns - left,
        top=top,
        left=left,
        precision=precision,
        is_signed=bool(siz[36] & 0x80),
        num_levels=cod[5],
        start=headers.start,
        main_header=headers.main,
        first_sot=headers.first_sot,
        data=(headers.data, end),
        tile_sizes=struct.unpack_from(">2I", siz, 18) if count_tiles(siz) > 1 else (),
        missing=missing,
        can_shorten=can_shorten,
    )


def _can_shorten(siz: bytes, cod: bytes, headers: Headers) -> bool:
    """One tile in one tile-part, whose packets come resolution by resolution, with nothing out of the way."""
    markers = [marker for marker, _ in headers.main]
    is_plain = set(markers) <= KEPT | DROPPED and len(set(markers) & KEPT) == len(set(markers) - DROPPED)
    progression, num_layers = struct.unpack_from(">BH", cod, 1)
    is_by_resolution = progression in {RLCP, RPCL} or (progression == LRCP and num_layers == 1)
    (_, sot), *others = headers.tile_part
    has_one_part = sot[7] == 1  # A.4.2, TNsot
    is_plain = is_plain and {marker for marker, _ in others} <= DROPPED
    return count_tiles(siz) == 1 and is_plain and is_by_resolution and has_one_part


def shorten(encoded: bytes | memoryview, stream: Codestream, level: int) -> bytes:
    """Returns the codestream of a level, 1 to `num_levels`, from the first bytes of a frame.

    Its image is the one that a decoder gives that leaves out the highest `level` resolutions.
    """
    header = b"".join(
        struct.pack(">2H", marker, len(body) + 2) + body
        for marker, body in _shorten_header(stream.main_header, level)
    )
    packets = memoryview(encoded)[stream.data[0] : stream.data[1]]
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
        ImageError: if tiles are missing, or the frame is of no format that Pillow knows as JPEG 2000.
        RuntimeError, OSError: if it cannot be decoded.
    """
    if stream.missing:
        raise ImageError("decode_error", stream.missing)
    if level == 0:
        return _decode_all(_cut_out(encoded, stream))
    return (
        _decode_shortened(encoded, stream, level) if stream.can_shorten else _reduce(encoded, stream, level)
    )


def _cut_out(encoded: Span, stream: Codestream) -> bytes:
    """Returns the codestream without what is around it, its lengths and its end marker filled in."""
    end, sot = stream.data[1], stream.first_sot
    frame = encoded.first(end)
    psot = frame[sot + 6 : sot + 10]
    if not any(psot):
        psot = struct.pack(">I", end - sot)
    return b"".join([frame[stream.start : sot + 6], psot, frame[sot + 10 :], END_OF_CODESTREAM])


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
        content = encoded.all() if is_everything else encoded.first(num_bytes)  # all of it is not copied
        try:
            pixels = _decode_all(shorten(content, stream, level))
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
    with Image.open(io.BytesIO(_cut_out(encoded, stream)), formats=["JPEG2000"]) as image:
        image.reduce = level  # type: ignore[method-assign, assignment]  # Pillow's way to ask for a level
        image.load()
        pixels = np.asarray(image)
    shift = pixels.itemsize * 8 - stream.precision
    if shift:  # Pillow shifts 9 to 15 bits up to 16
        pixels = pixels >> shift
    if stream.is_signed:  # and moves signed values up to start at zero
        pixels = (pixels.astype(np.int32) - (1 << (stream.precision - 1))).astype(np.int16)
    return pixels
