"""Where the encoded frame lies in a DICOM file (PS3.5 A.4 and A.5), without reading more than it takes."""

import struct
import zlib

import numpy as np

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.codestream_headers import JP2_SIGNATURE, SOC_AND_SIZ
from data_prep.imageio.jpeg import START_OF_IMAGE
from data_prep.storage.byte_source import ByteSource, Span

MAX_INFLATED_BYTES = 2**27  # twice the largest detector's pixels
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VRS = {b"OB", b"OW", b"UN", b"OF", b"OD", b"OL", b"OV"}
ITEM, SEQUENCE_DELIMITER = 0xFFFEE000, 0xFFFEE0DD
ITEM_HEADER_BYTES = 8
TRAILER_BYTES = 2**10  # what may follow the last fragment: the delimiter, padding, junk

GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
META_START = 132  # after the preamble and DICM


def inflate(source: ByteSource) -> ByteSource | None:
    """Returns a deflated file as an uncompressed one; None where it is not deflated.

    Not left to pydicom, which inflates a bomb of 1 MB to its last gigabyte.

    Raises:
        ImageError: if the file is cut short, damaged, or inflates to more than any mammogram.
    """
    head = source.content[:1024]
    syntax = codecs.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.encode()
    if syntax not in head:
        return None
    if head[META_START : META_START + 8] != GROUP_LENGTH:
        raise ImageError("parse_error", "the file meta information of a deflated file has no length")
    (length,) = struct.unpack_from("<I", head, META_START + 8)
    start = META_START + 12 + length
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    source.read_to(source.size)
    inflated = inflater.decompress(source.content[start:], MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise ImageError("too_large", f"the file inflates to more than {MAX_INFLATED_BYTES >> 20} MB")
    if not inflater.eof:
        raise ImageError("truncated", "the deflated file ends too soon")
    plain = codecs.EXPLICIT_VR_LITTLE_ENDIAN.encode().ljust(len(syntax), b"\0")
    return ByteSource.of(head[:start].replace(syntax, plain) + inflated)


def find_frame(stream: ByteSource, syntax: str, bits_allocated: int = 16) -> Span:
    """Returns where the frame's bytes are; `stream` stands at PixelData, or at the end where there is none.

    Samples of 8 bits that a big-endian file packs in words (OW) come back in their order, PS3.5 D.

    Raises:
        ImageError: if there are no pixels, or the file is cut short.
    """
    start = stream.tell()
    order = ">" if syntax == codecs.EXPLICIT_VR_BIG_ENDIAN else "<"
    head = stream.read(12)
    if len(head) < 12 or struct.unpack_from(f"{order}2H", head) != (0x7FE0, 0x0010):
        raise ImageError("no_pixels", "the file has no PixelData")
    is_explicit = head[4:6] in LONG_VRS
    (length,) = struct.unpack_from(f"{order}I", head, 8 if is_explicit else 4)
    start += 12 if is_explicit else 8
    if length == 0:
        raise ImageError("no_pixels", "PixelData is empty")
    if syntax not in codecs.NATIVE:
        if length != UNDEFINED_LENGTH and _is_bare(stream, start, length):
            return Span(stream, start, length)
        return _find_fragments(stream, start, syntax)
    if length == UNDEFINED_LENGTH:
        raise ImageError(
            "bad_value", "PixelData is in fragments, which an uncompressed transfer syntax has not"
        )
    if length > stream.size - start:
        raise ImageError("truncated", f"PixelData says {length} bytes, the file has {stream.size - start}")
    frame = Span(stream, start, length)
    is_swapped = syntax == codecs.EXPLICIT_VR_BIG_ENDIAN and head[4:6] == b"OW" and bits_allocated == 8
    return (
        Span.of(np.frombuffer(frame.all(), ">u2", length // 2).astype("<u2").tobytes())
        if is_swapped
        else frame
    )


def _is_bare(stream: ByteSource, start: int, length: int) -> bool:
    """Whether PixelData is a JPEG or JPEG 2000 frame itself, without the items of PS3.5 A.4."""
    stream.seek(start)
    head = stream.read(len(JP2_SIGNATURE))
    is_image = head.startswith((SOC_AND_SIZ, JP2_SIGNATURE, START_OF_IMAGE))
    return is_image and length <= stream.size - start


def _find_fragments(stream: ByteSource, start: int, syntax: str) -> Span:
    """Returns the only fragment, or all of them joined; the items of PS3.5 A.4 begin at `start`."""
    tag, length = _read_item(stream, start)
    if tag != ITEM:
        raise ImageError(
            "bad_value", f"PixelData is not in fragments, as transfer syntax {syntax} has it (PS3.5 A.4)"
        )
    fragments: list[Span] = []
    place = start + ITEM_HEADER_BYTES + length  # after the offset table
    while place + ITEM_HEADER_BYTES <= stream.size and not _is_all(fragments, stream.size - place, syntax):
        tag, length = _read_item(stream, place)
        is_junk = (
            tag != ITEM and bool(fragments) and (stream.size - place <= TRAILER_BYTES or tag == length == 0)
        )
        if tag == SEQUENCE_DELIMITER or is_junk:
            break
        if tag != ITEM or length > stream.size - place - ITEM_HEADER_BYTES:
            raise ImageError("truncated", f"a fragment of {length} bytes goes beyond the end of the file")
        if length:
            fragments.append(Span(stream, place + ITEM_HEADER_BYTES, length))
        place += ITEM_HEADER_BYTES + length
    if not fragments:
        raise ImageError("no_pixels", "PixelData holds no frame")
    if len(fragments) == 1:
        return fragments[0]
    return Span.of(b"".join(fragment.all() for fragment in fragments))


def _is_all(fragments: list[Span], num_left: int, syntax: str) -> bool:
    """Whether no more fragments come, as far as can be told without reading what is left of the file."""
    if not fragments or num_left > TRAILER_BYTES:
        return False
    if num_left <= ITEM_HEADER_BYTES:  # the delimiter
        return True
    return len(fragments) == 1 and codecs.is_frame_whole(fragments[0], syntax)


def _read_item(stream: ByteSource, place: int) -> tuple[int, int]:
    """Returns an item's tag and length."""
    stream.seek(place)
    head = stream.read(ITEM_HEADER_BYTES)
    if len(head) < ITEM_HEADER_BYTES:
        raise ImageError("truncated", "the file ends in PixelData")
    group, element, length = struct.unpack("<2HI", head)
    return group << 16 | element, length
