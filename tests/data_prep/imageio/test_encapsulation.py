"""Frames in fragments: joined, whatever the last one's size, and without reading more than it takes."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import generate_fragments

from data_prep.errors import ImageError
from data_prep.imageio import codecs
from data_prep.imageio.encapsulation import find_frame
from data_prep.storage.byte_source import ByteSource
from tests.data_prep.imageio.test_jpeg2000 import encode, make_picture

DELIMITER = struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
TRAILING_PADDING = struct.pack("<2H2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 200) + bytes(200)
FRAME = bytes(np.random.default_rng(0).integers(0, 255, 3000, np.uint8))


def make_item(content: bytes) -> bytes:
    return struct.pack("<2HI", 0xFFFE, 0xE000, len(content)) + content


def make_element(fragments: Sequence[bytes], after: bytes = DELIMITER, offsets: bytes = b"") -> bytes:
    head = struct.pack("<2H2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return head + b"".join(make_item(content) for content in (offsets, *fragments)) + after


def find(element: bytes, syntax: str = codecs.JPEG_LS_LOSSLESS) -> bytes:
    return bytes(find_frame(ByteSource.of(element), syntax).all())


def refusal(element: bytes) -> str:
    with pytest.raises(ImageError) as error:
        find(element)
    return error.value.reason


@pytest.mark.parametrize("last", [2, 10, 900, 1016, 1017, 1024, 2000])
@pytest.mark.parametrize("after", [DELIMITER, b"", DELIMITER + TRAILING_PADDING, DELIMITER + bytes(7)])
def test_the_last_fragment_may_be_short(last: int, after: bytes) -> None:
    element = make_element([FRAME[:-last], FRAME[-last:]], after)
    assert find(element) == FRAME
    if after.startswith(DELIMITER):
        assert b"".join(generate_fragments(element[20:])) == FRAME  # after the offset table


@pytest.mark.parametrize("sizes", [[3000], [0, 3000], [1500, 0, 1500, 0], [2] * 1500, [2000, 500, 250, 250]])
def test_fragments_may_be_empty_and_many(sizes: list[int]) -> None:
    stream = io.BytesIO(FRAME)
    fragments = [stream.read(size) for size in sizes]
    assert find(make_element(fragments)) == FRAME
    assert find(make_element(fragments, offsets=struct.pack("<I", 0))) == FRAME


def test_junk_behind_the_last_fragment_is_not_read_as_one() -> None:
    assert find(make_element([FRAME], b"junk" * 20)) == FRAME
    assert find(make_element([FRAME], bytes(5000))) == FRAME


def test_what_is_no_frame_is_refused() -> None:
    assert refusal(make_element([])) == "no_pixels"
    assert refusal(make_element([b"", b""])) == "no_pixels"
    assert refusal(make_element([FRAME])[:2000]) == "truncated"
    assert refusal(make_element([FRAME[:2000], FRAME[2000:]])[:2800]) == "truncated"
    native = struct.pack("<2H2sHI", 0x7FE0, 0x0010, b"OW", 0, 3000) + FRAME
    with pytest.raises(
        ImageError, match=r"not in fragments, as transfer syntax 1\.2\.840\.10008\.1\.2\.4\.80"
    ):
        find(native)


@pytest.mark.parametrize("after", [DELIMITER, DELIMITER + TRAILING_PADDING])
def test_of_a_frame_that_says_where_it_ends_only_the_beginning_is_read(tmp_path: Path, after: bytes) -> None:
    encoded = encode(make_picture(1024, 768))
    path = tmp_path / "element"
    path.write_bytes(make_element([encoded + bytes(len(encoded) % 2)], after))
    source = ByteSource.open(path, whole=False)
    find_frame(source, codecs.JPEG_2000_LOSSLESS)
    assert len(source.content) < 2**17 < source.size


@pytest.mark.parametrize("vr", [b"OB", b"OW"])
def test_bytes_in_big_endian_words_come_back_in_their_order(vr: bytes) -> None:
    stored = FRAME if vr == b"OB" else np.frombuffer(FRAME, "<u2").astype(">u2").tobytes()
    element = struct.pack(">2H2sHI", 0x7FE0, 0x0010, vr, 0, len(FRAME)) + stored
    found = find_frame(ByteSource.of(element), codecs.EXPLICIT_VR_BIG_ENDIAN, 8)
    assert bytes(found.all()) == FRAME


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xf7", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "])
@pytest.mark.parametrize("after", [b"", bytes(40)])
def test_a_frame_without_items_is_taken_as_it_is(start: bytes, after: bytes) -> None:
    frame = start + FRAME
    head = struct.pack("<2H2sHI", 0x7FE0, 0x0010, b"OB", 0, len(frame))
    assert find(head + frame + after) == frame
    assert refusal(head + FRAME) == "bad_value"
    assert refusal(head + frame[:-2]) == "bad_value"
