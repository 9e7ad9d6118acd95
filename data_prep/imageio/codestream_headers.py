"""How a JPEG 2000 codestream is built (ISO/IEC 15444-1 A): its headers as segments, and its tile-parts.

Nobody has looked into the segments yet. Of the tile-parts it says where they end and whether all are there.
"""

import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.errors import ImageError
from data_prep.storage.byte_source import Span

SOC, SOD, SIZ = 0xFF4F, 0xFF93, 0xFF51
SOT, EOC = 0xFF90, 0xFFD9
END_OF_CODESTREAM = struct.pack(">H", EOC)
SMALLEST_TILE_PART = 14  # SOT and SOD
CODESTREAM_BOX = b"jp2c"
PADDING = b"\x00\xff"
SOC_AND_SIZ = struct.pack(">2H", SOC, SIZ)
JP2_SIGNATURE = b"\0\0\0\x0cjP  "
HEADER_BYTES = 2**16  # holds the main header of any sensible codestream

Segment = tuple[int, bytes]
"""A marker and the body of its segment, the length left out."""


@dataclass(frozen=True)
class Headers:
    """The segments before the packets, and where in the frame codestream, tile-part and packets begin."""

    start: int
    main: tuple[Segment, ...]
    tile_part: tuple[Segment, ...]
    first_sot: int
    data: int


def read_headers(encoded: Span) -> Headers:
    """Reads the headers up to the first packets, in a JP2 file or bare.

    Raises:
        ImageError: if there are none, or they are cut short.
    """
    head = encoded.first(HEADER_BYTES)
    start = head.find(SOC_AND_SIZ)
    if start < 0 or not head.startswith((SOC_AND_SIZ, JP2_SIGNATURE)):
        raise ImageError(
            "decode_error",
            f"the frame holds no JPEG 2000 codestream: it begins with {head[:4].hex().upper()!r}",
        )
    try:
        main, first_sot = _read_segments(head, start + 2, until=SOT)
        tile_part, data = _read_segments(head, first_sot, until=SOD)
    except struct.error as error:
        raise ImageError("decode_error", "the JPEG 2000 header cannot be read") from error
    return Headers(start, tuple(main), tuple(tile_part), first_sot, data)


def find_lone_end(encoded: Span, headers: Headers) -> int | None:
    """Returns where the only tile-part of the only tile says that it ends; None where it does not, A.4.2."""
    _, length, _, num_parts = struct.unpack_from(">HIBB", headers.tile_part[0][1])
    end = headers.first_sot + length
    is_lone = num_parts == 1 and count_tiles(dict(headers.main)[SIZ]) == 1
    return end if is_lone and length >= SMALLEST_TILE_PART and end <= encoded.size else None


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


def is_whole(fragment: Span) -> bool:
    """Whether the first bytes of a frame say that its only tile-part ends in this fragment."""
    try:
        return find_lone_end(fragment, read_headers(fragment)) is not None
    except (ImageError, struct.error, IndexError, KeyError):
        return False


def find_end(codestream: bytes, first_sot: int, num_tiles: int) -> tuple[int, str]:
    """Returns where the last tile-part ends, and what is missing before an end marker, in words.

    The end marker may be absent where the tile-parts say themselves that they are all there: each gives its
    length (Psot), and each tile has as many as it says (TNsot). Bytes after the marker are padding.

    Raises:
        ImageError: `truncated` if a tile-part is cut, or nothing says that they are all there.
    """
    place = first_sot
    num_parts: Counter[int] = Counter()
    expected: dict[int, int] = {}
    while codestream[place : place + 2] == struct.pack(">H", SOT) and place + 12 <= len(codestream):
        tile, length, _, num_expected = struct.unpack_from(">HIBB", codestream, place + 4)
        num_parts[tile] += 1
        expected[tile] = num_expected or expected.get(tile, 0)
        if length == 0:  # up to the end marker, A.4.2
            place = _find_end_marker(codestream, place)
            break
        if length < SMALLEST_TILE_PART:
            raise ImageError(
                "decode_error", f"a JPEG 2000 tile-part says Psot {length}; it is 0, or 14 or more"
            )
        if place + length > len(codestream):
            raise ImageError(
                "truncated", f"{place + length} bytes of JPEG 2000 expected, {len(codestream)} found"
            )
        place += length
    is_complete = len(num_parts) == num_tiles and expected == dict(num_parts)
    if not is_complete and codestream[place : place + 2] != END_OF_CODESTREAM:
        place = _find_end_marker(codestream, place, nothing_behind=True)
    return place, _describe_missing(num_parts, expected, num_tiles)


def _describe_missing(num_parts: Mapping[int, int], expected: Mapping[int, int], num_tiles: int) -> str:
    if len(num_parts) < num_tiles:
        return f"{len(num_parts)} of {num_tiles} JPEG 2000 tiles are there"
    for tile, number in expected.items():
        if number > num_parts[tile]:
            return f"{num_parts[tile]} of {number} parts of JPEG 2000 tile {tile} are there"
    return ""


def _find_end_marker(codestream: bytes, place: int, *, nothing_behind: bool = False) -> int:
    """Returns where the end marker is, `nothing_behind` it but padding; no packet contains its bytes."""
    end = codestream.rfind(END_OF_CODESTREAM, place)
    if end < 0 or (nothing_behind and codestream[end + 2 :].strip(PADDING)):
        raise ImageError("truncated", "the JPEG 2000 frame has no end marker, and not all its lengths say so")
    return end


def find_box_end(before: bytes, start: int) -> int:
    """Returns where the box around the codestream ends, I.4; far away where there is none or it is open."""
    for place in (start - 8, start - 16):
        if place >= 0 and before[place + 4 : place + 8] == CODESTREAM_BOX:
            (length,) = struct.unpack_from(">I", before, place)
            if length == 1 and place == start - 16:  # in the eight bytes that follow
                (length,) = struct.unpack_from(">Q", before, place + 8)
            return place + length if length > start - place else sys.maxsize
    return sys.maxsize


def count_tiles(siz: bytes) -> int:
    """Returns the number of tiles, B.3."""
    width, height, _, _, tile_width, tile_height, left, top = struct.unpack_from(">8I", siz, 2)
    if not tile_width or not tile_height:
        raise ImageError("decode_error", "the JPEG 2000 header says tiles of no size")
    return max(1, -(-(width - left) // tile_width)) * max(1, -(-(height - top) // tile_height))
