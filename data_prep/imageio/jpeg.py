"""JPEG (ITU-T T.81) and JPEG-LS (T.87) frames: what they are, where they end, and whether all of it is there.

libjpeg-turbo decodes a damaged or cut frame without a word, and fills in what is missing. So the bits that
the pixels take are counted where that is cheap (lossless), and else the end of the data is changed to see
whether the pixels depend on it. CharLS tells by itself.
"""

import re
import struct
from contextlib import suppress
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from data_prep.errors import ImageError
from data_prep.imageio.frame import Pixels
from data_prep.imageio.huffman_bits import count_bits, read_code_lengths

FILL_BYTES = re.compile(rb"\xff+(?=\xff)")  # that may stand before any marker, T.81 B.1.1.2
START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
STARTS_OF_FRAME = {BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, LS}
DHT, EOI, SOS, DRI = 0xC4, 0xD9, 0xDA, 0xDD
BETWEEN_SCANS = {DHT, SOS, 0xDB, 0xDC, DRI, 0xFE, *range(0xE0, 0xF0)}  # tables, DNL, comments
RESTARTS = range(0xD0, 0xD8)
MAX_SEGMENTS = 2**12  # before the first scan
CHUNK_BYTES = 2**17
BLOCK = 8  # samples a side of a DCT block
PADDING = b"\x00\xff"
PAD_BYTES = 2  # that encoders leave before an end marker
PROBED_BYTES = 6  # more than the padding, so that the last of a sound scan change the pixels
LS_FILLERS = (b"\x80", b"\x40", b"\x20")  # bits that nothing has room for behind all the data
FILLER = b"\xfe" * 8  # other bits than the zeros that libjpeg-turbo goes on with

Segment = tuple[int, bytes]
"""A marker's second byte and the body of its segment, the length left out."""


@dataclass(frozen=True)
class Stream:
    """A frame's own account of itself.

    Attributes:
        kind: second byte of its start of frame.
        tables: the segments before the first scan.
        scan: where the entropy-coded data begin and end.
        num_stuffed: bytes 00 behind FF in it, and fill bytes before its markers.
        restarts: second bytes of the restart markers in it.
        restart_interval: samples or blocks between two of them; 0 without any, T.81 B.2.4.4.
        end: where the end marker is, or where the frame ends without one.
    """

    kind: int
    precision: int
    rows: int
    columns: int
    num_components: int
    tables: tuple[Segment, ...]
    scan: tuple[int, int]
    num_stuffed: int
    restarts: NDArray[np.uint8]
    restart_interval: int
    has_end: bool
    end: int


def read_stream(encoded: bytes) -> Stream:
    """Reads the segments before the first scan, and finds where that ends.

    Raises:
        ImageError: if there is no frame, or a marker where none can be.
    """
    try:
        tables, start = _read_segments(encoded)
        frames = [(marker, body) for marker, body in tables if marker in STARTS_OF_FRAME]
        if len(frames) != 1:
            raise ImageError("decode_error", f"the JPEG frame has {len(frames)} starts of frame; it has one")
        kind, body = frames[0]
        precision, rows, columns, num_components = struct.unpack_from(">B2HB", body)
        intervals = [struct.unpack_from(">H", body)[0] for marker, body in tables if marker == DRI]
    except struct.error as error:
        raise ImageError("decode_error", "the JPEG frame ends in its header") from error
    scan_end, num_stuffed, restarts = _find_scan_end(encoded, start, is_ls=kind == LS)
    marker = encoded[scan_end + 1] if scan_end + 1 < len(encoded) else None
    if marker in BETWEEN_SCANS:
        end = encoded.rfind(END_OF_IMAGE, scan_end)
        has_end = end >= 0
    elif marker in {None, EOI}:
        end, has_end = scan_end, marker == EOI
    else:
        raise ImageError(
            "decode_error", f"marker FF{marker:02X} stands in the JPEG data, at byte {scan_end} of the frame"
        )
    return Stream(
        kind=kind,
        precision=precision,
        rows=rows,
        columns=columns,
        num_components=num_components,
        tables=tuple(tables),
        scan=(start, scan_end),
        num_stuffed=num_stuffed,
        restarts=restarts,
        restart_interval=intervals[-1] if intervals else 0,
        has_end=has_end,
        end=end if has_end else len(encoded),
    )


def _read_segments(encoded: bytes) -> tuple[list[Segment], int]:
    """Returns the segments up to the first start of scan, and where what follows it begins, T.81 B.1.1."""
    segments: list[Segment] = []
    place = len(START_OF_IMAGE)
    while True:
        prefix, marker = struct.unpack_from(">2B", encoded, place)
        if (prefix, marker) == (0xFF, 0xFF) and (fill := FILL_BYTES.match(encoded, place)):
            place = fill.end()
            continue
        if prefix != 0xFF or marker == EOI or len(segments) == MAX_SEGMENTS:
            raise ImageError("decode_error", "the JPEG frame holds no image")
        (length,) = struct.unpack_from(">H", encoded, place + 2)
        segments.append((marker, encoded[place + 4 : place + 2 + length]))
        place += 2 + length
        if marker == SOS:
            return segments, place


def _find_scan_end(encoded: bytes, start: int, *, is_ls: bool) -> tuple[int, int, NDArray[np.uint8]]:
    """Returns where a scan ends: at a marker or the frame's end; its stuffed and fill bytes; its restarts.

    In the data, FF is followed by 00 in JPEG, T.81 F.1.2.3, and by a byte below 80 in JPEG-LS, T.87 C.2.1.
    """
    num_stuffed, restarts = 0, [np.zeros(0, np.uint8)]
    for at in range(start, len(encoded), CHUNK_BYTES):
        count = min(CHUNK_BYTES + 1, len(encoded) - at)  # and the next one's first byte
        data = np.frombuffer(encoded, np.uint8, count, at)
        places = np.flatnonzero(data[:-1] == 0xFF)
        followers = data[places + 1]
        is_marker = (followers >= 0x80 if is_ls else followers != 0) & (followers != 0xFF)
        is_restart = is_marker & (followers >= RESTARTS.start) & (followers < RESTARTS.stop)
        others = np.flatnonzero(is_marker & ~is_restart)
        before = slice(int(others[0]) if len(others) else None)
        num_stuffed += int(np.count_nonzero((followers[before] == 0) | (followers[before] == 0xFF)))
        restarts.append(followers[before][is_restart[before]])
        if len(others):
            return at + int(places[others[0]]), num_stuffed, np.concatenate(restarts)
    return len(encoded), num_stuffed, np.concatenate(restarts)


def decode(encoded: bytes, stream: Stream) -> Pixels:
    """Returns the samples, of a frame whose size is the right one.

    Raises:
        ImageError: `truncated` if data are missing, `decode_error` if they do not add up to the picture.
        RuntimeError: if it cannot be decoded.
    """
    if stream.kind == LS:
        return _decode_jpeg_ls(encoded[: stream.end], stream)
    _check_restarts(stream)
    pixels = _decode_with_libjpeg(encoded, stream.end)
    is_grey = pixels[-1, -1] == 1 << (stream.precision - 1)  # which is what no data decode to
    if not stream.has_end or (is_grey and stream.kind not in {LOSSLESS, PROGRESSIVE}):
        _check_all_is_there(encoded[: stream.end], stream, pixels)
    if stream.kind == LOSSLESS:
        _check_bits(encoded, stream, pixels)
    elif stream.has_end:
        _check_all_is_used(encoded, stream, pixels)
    return pixels


def _decode_jpeg_ls(encoded: bytes, stream: Stream) -> Pixels:
    """CharLS refuses data that are too short or too long; but not if the missing bits could be zeros."""
    try:
        pixels = np.asarray(imagecodecs.jpegls_decode(encoded + END_OF_IMAGE))
    except imagecodecs.JpeglsError as error:
        if stream.has_end:
            raise
        raise ImageError(
            "truncated", f"the JPEG-LS frame has no end marker, and its data: {error}"
        ) from error
    for filler in () if stream.has_end else LS_FILLERS:
        with suppress(imagecodecs.JpeglsError):
            imagecodecs.jpegls_decode(encoded + filler + END_OF_IMAGE)
            raise ImageError("truncated", "the JPEG-LS data end before the picture, without an end marker")
    return pixels


def _decode_with_libjpeg(encoded: bytes, end: int) -> Pixels:
    """Decodes up to the end, with an end marker there."""
    if encoded[end:] != END_OF_IMAGE:
        encoded = encoded[:end] + END_OF_IMAGE
    return np.asarray(imagecodecs.jpeg8_decode(encoded))


def _check_restarts(stream: Stream) -> None:
    """Compares number and order of the restart markers, T.81 E.1.4."""
    if stream.kind == PROGRESSIVE:  # several scans
        return
    block = 1 if stream.kind == LOSSLESS else BLOCK
    num_units = -(-stream.rows // block) * -(-stream.columns // block)
    interval = stream.restart_interval
    expected = (num_units - 1) // interval if interval else 0
    if len(stream.restarts) < expected and not stream.has_end:
        raise ImageError("truncated", "the JPEG frame has no end marker, and restart markers are missing")
    is_in_order = np.array_equal(stream.restarts, RESTARTS.start + np.arange(len(stream.restarts)) % 8)
    if len(stream.restarts) != expected or not is_in_order:
        found = f"{len(stream.restarts)} restart markers{'' if is_in_order else ' out of order'}"
        raise ImageError("decode_error", f"the JPEG data have {found}; {expected} in order are right")


def _check_bits(encoded: bytes, stream: Stream, pixels: Pixels) -> None:
    """Compares the bits that the pixels take with those that are there."""
    scan = next(body for marker, body in stream.tables if marker == SOS)
    tables = read_code_lengths([body for marker, body in stream.tables if marker == DHT])
    lengths = tables.get(scan[2] >> 4)
    interval = stream.restart_interval
    if lengths is None or not 1 <= scan[3] <= 7 or interval % stream.columns:
        raise ImageError("decode_error", "the scan of the JPEG frame names no table, predictor or rows")
    used = count_bits(
        pixels,
        lengths,
        predictor=scan[3],
        precision=stream.precision,
        point_transform=scan[5] & 0x0F,
        rows_per_restart=interval // stream.columns,
    )
    start, end = stream.scan
    there = 8 * (end - start - stream.num_stuffed - 2 * len(stream.restarts))
    if used > there:
        reason = "decode_error" if stream.has_end else "truncated"
        raise ImageError(reason, f"the pixels take {used} bits of JPEG data, {there} are there")
    padding = max(PAD_BYTES, end - start - len(encoded[start:end].rstrip(PADDING)))
    if used < there - 8 * padding - 7 * (len(stream.restarts) + 1):  # whole bytes per interval, F.1.2.3
        raise ImageError("decode_error", f"the pixels take {used} bits of JPEG data, {there} are there")


def _check_all_is_there(encoded: bytes, stream: Stream, pixels: Pixels) -> None:
    """Compares the pixels with those of the data and others behind them, which they must not depend on."""
    is_one_scan = stream.kind != PROGRESSIVE  # nothing says how many scans should follow
    if is_one_scan and _decodes_to(pixels, encoded.rstrip(b"\xff") + FILLER):
        return
    reason, cause = ("decode_error", "") if stream.has_end else ("truncated", ", and there is no end marker")
    raise ImageError(reason, f"the JPEG data end before the picture does{cause}")


def _check_all_is_used(encoded: bytes, stream: Stream, pixels: Pixels) -> None:
    """Compares the pixels with those of data that end in other bytes, which they must depend on."""
    start, end = stream.scan
    end = start + len(encoded[start:end].rstrip(PADDING))
    tail = end - PROBED_BYTES
    if (
        stream.kind == PROGRESSIVE or tail < start or pixels.min() == pixels.max()
    ):  # flat: a table of one code
        return
    for pattern in (0x55, 0xAA):
        changed = bytes(min(byte ^ pattern, 0xFE) for byte in encoded[tail:end])
        if not _decodes_to(pixels, encoded[:tail].rstrip(b"\xff") + changed):
            return
    raise ImageError("decode_error", "the picture ends before the JPEG data do")


def _decodes_to(pixels: Pixels, encoded: bytes) -> bool:
    try:
        return np.array_equal(_decode_with_libjpeg(encoded, len(encoded)), pixels)
    except imagecodecs.Jpeg8Error:
        return False
