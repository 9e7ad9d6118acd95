"""Where a codestream ends: by the lengths of its tile-parts, by its end marker, by its box."""

import struct
from typing import Any

import pytest

from data_prep.errors import ImageError
from data_prep.imageio.codestream_headers import (
    END_OF_CODESTREAM,
    count_tiles,
    find_box_end,
    find_end,
    is_whole,
    read_headers,
)
from data_prep.storage.byte_source import Span
from tests.data_prep.imageio.test_jpeg2000 import encode, make_picture


@pytest.mark.parametrize("options", [{}, {"no_jp2": False}, {"progression": "PCRL"}])
def test_a_lone_tile_part_says_where_it_ends(options: dict[str, Any]) -> None:
    encoded = encode(make_picture(64, 48), **options)
    assert is_whole(Span.of(encoded))
    assert is_whole(Span.of(encoded[:-2]))
    assert not is_whole(Span.of(encoded[:-3]))
    assert not is_whole(Span.of(encoded[:100]))


def test_tiles_and_open_lengths_do_not_tell() -> None:
    picture = make_picture(64, 48)
    assert not is_whole(Span.of(encode(picture, tile_size=(32, 32))))
    encoded = encode(picture)
    psot = read_headers(Span.of(encoded)).first_sot + 6
    assert not is_whole(Span.of(encoded[:psot] + struct.pack(">I", 0) + encoded[psot + 4 :]))
    assert not is_whole(Span.of(b"\xff\xd8\xff\xc3"))


def make_part(
    tile: int = 0, *, part: int = 0, num_parts: int = 1, size: int = 20, psot: int | None = None
) -> bytes:
    length = size if psot is None else psot
    return (
        struct.pack(">HHHIBB", 0xFF90, 10, tile, length, part, num_parts)
        + b"\xff\x93"
        + b"\x42" * (size - 14)
    )


def complaint(codestream: bytes, num_tiles: int = 1) -> str:
    with pytest.raises(ImageError) as error:
        find_end(codestream, 0, num_tiles)
    return f"{error.value.reason}: {error.value}"


@pytest.mark.parametrize("after", [b"", END_OF_CODESTREAM, END_OF_CODESTREAM + bytes(99), b"\0", b"\xff" * 9])
def test_tile_parts_that_say_that_they_are_all_there_need_no_end_marker(after: bytes) -> None:
    parts = make_part(0, num_parts=2) + make_part(1) + make_part(0, part=1, num_parts=2, size=30)
    assert find_end(parts + after, 0, 2) == (len(parts), "")


@pytest.mark.parametrize("num_parts", [[0, 0], [0, 2], [2, 2]])
def test_a_number_of_parts_may_stand_in_any_of_them(num_parts: list[int]) -> None:
    parts = b"".join(make_part(0, part=k, num_parts=number) for k, number in enumerate(num_parts))
    assert find_end(parts + END_OF_CODESTREAM, 0, 1) == (len(parts), "")
    if any(num_parts):
        assert find_end(parts, 0, 1) == (len(parts), "")
    else:
        assert complaint(parts).startswith("truncated: ")


@pytest.mark.parametrize("after", [b"", b"\0", bytes(99), b"\xff\xff\0"])
def test_an_open_tile_part_ends_at_the_end_marker(after: bytes) -> None:
    parts = make_part(0) + make_part(1, psot=0)
    assert find_end(parts + END_OF_CODESTREAM + after, 0, 2) == (len(parts), "")
    assert complaint(parts + after, 2).startswith("truncated: ")


def test_what_is_missing_is_named() -> None:
    parts = make_part(0) + make_part(3, num_parts=2)
    assert find_end(parts + END_OF_CODESTREAM, 0, 4)[1] == "2 of 4 JPEG 2000 tiles are there"
    assert find_end(parts + END_OF_CODESTREAM, 0, 2)[1] == "1 of 2 parts of JPEG 2000 tile 3 are there"
    assert complaint(parts, 4).startswith("truncated: ")


def test_a_cut_tile_part_is_truncated_and_an_impossible_length_an_error() -> None:
    assert complaint(make_part(size=40)[:-1]) == "truncated: 40 bytes of JPEG 2000 expected, 39 found"
    assert complaint(make_part(psot=13)).startswith("decode_error: a JPEG 2000 tile-part says Psot 13")


def test_a_length_that_is_a_little_off_leaves_it_to_the_end_marker() -> None:
    off = make_part(psot=19) + END_OF_CODESTREAM
    assert find_end(off + b"\0", 0, 2)[0] == 20
    assert complaint(make_part(psot=19) + b"\x42" * 9, 2).startswith("truncated: ")


@pytest.mark.parametrize(
    ("box", "end"),
    [
        (struct.pack(">I4s", 100, b"jp2c"), 100),
        (struct.pack(">I4sQ", 1, b"jp2c", 200), 200),
        (struct.pack(">I4s", 0, b"jp2c"), None),
        (b"", None),
        (b"12345678", None),
    ],
)
def test_a_box_says_where_it_ends(box: bytes, end: int | None) -> None:
    before = b"0123" * 3
    found = find_box_end(before + box, len(before + box))
    assert found > 2**40 if end is None else found == len(before) + end


@pytest.mark.parametrize(
    ("sizes", "number"),
    [
        ((100, 80, 0, 0, 100, 80, 0, 0), 1),
        ((100, 80, 5, 7, 64, 64, 0, 0), 4),
        ((100, 80, 40, 0, 64, 80, 36, 0), 1),
        ((101, 80, 0, 0, 100, 80, 0, 0), 2),
    ],
)
def test_tiles_are_counted_from_the_offset_of_their_grid(sizes: tuple[int, ...], number: int) -> None:
    assert count_tiles(b"\0\0" + struct.pack(">8I", *sizes)) == number


def test_tiles_of_no_size_are_an_error() -> None:
    with pytest.raises(ImageError, match="tiles of no size"):
        count_tiles(b"\0\0" + struct.pack(">8I", 100, 80, 0, 0, 0, 80, 0, 0))
