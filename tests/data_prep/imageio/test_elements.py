"""Elements: the same bits are the same number under every VR, and what is none is never taken for one."""

import math
import struct

import pytest

from data_prep.errors import ImageError
from data_prep.imageio.elements import Element, Elements


def make(content: bytes, vr: str = "DS", *, is_big_endian: bool = False) -> Elements:
    return Elements({"Rows": Element("Rows", vr, content, is_big_endian)})


@pytest.mark.parametrize(
    ("vr", "content", "expected"),
    [
        ("DS", b" 2047.5\\100 ", [2047.5, 100]),
        ("DS", b"1e-3\\+.5\\-7.", [0.001, 0.5, -7]),
        ("DS", b"\\204", [None, 204]),
        ("DS", b"4096\0", [4096]),
        ("DS", b"      ", []),
        ("DS", b"", []),
        ("US", b"", []),
        ("US", b"\x01\x00\x02\x00", [1, 2]),
        ("SS", b"\xff\xff", [-1]),
        ("UL", b"\x01\x00\x01\x00", [65537]),
        ("FD", struct.pack("<d", 0.1), [0.1]),
    ],
)
def test_numbers_are_read_as_they_stand(vr: str, content: bytes, expected: list[float | None]) -> None:
    assert make(content, vr).numbers("Rows") == expected


def test_big_endian_numbers_are_the_same() -> None:
    assert make(b"\x01\x02", "US", is_big_endian=True).numbers("Rows") == [258]


@pytest.mark.parametrize("text", ["2047,5", "abc", "nan", "inf", "1_000", "0x10", "--1", "1 2", "٣"])
def test_what_is_no_decimal_number_is_not_a_number(text: str) -> None:
    (value,) = make(text.encode()).numbers("Rows")
    assert value is not None
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("vr", "content", "said"),
    [
        ("IS", b"x", "no number"),
        ("LO", b"Weiherer^Annegret", "no number"),
        ("IS", b"12.5", "12.5"),
        ("IS", b"1e999", "1e999"),
        ("IS", b"9" * 5000, "no number"),
        ("US", b"\x05\x00\x06\x00", r"5\\6"),
        ("US", b"\x05", "nan"),
        ("FD", struct.pack("<d", math.inf), "inf"),
    ],
)
def test_one_whole_number_or_a_sentence(vr: str, content: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=f"^Rows is {said}; one whole number is needed") as error:
        make(content, vr).whole_number("Rows")
    assert error.value.reason == "bad_value"


@pytest.mark.parametrize(("vr", "content"), [("US", b"\x10\xf8"), ("SS", b"\x10\xf8"), ("IS", b"-2032")])
def test_the_same_bits_are_the_same_whatever_the_vr(vr: str, content: bytes) -> None:
    assert make(content, vr).bits("Rows") == 0xF810
    assert make(b"x").bits("Rows") is None


@pytest.mark.parametrize("content", [b"monochrome2 ", b"MONOCHROME2\0", b"MONOCHROME2\\X", b" MONOCHROME2"])
def test_codes_are_read_without_padding_and_in_capitals(content: bytes) -> None:
    assert make(content, "CS").code("Rows") == "MONOCHROME2"
    assert make(content, "CS").code("Columns") == ""
