"""Seeded changes of DICOM files that keep enough of their structure to get past the first check."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.imageio import codecs

ODD_NUMBERS = [
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFE,
    0xFFFF,
    0x7FFFFFFE,
    0x7FFFFFFF,
    0xFFFFFFFF,
]
ELEMENTS = [  # that a reader trusts: samples, frames, rows, columns, bits, sign, padding, window, pixels
    *[(0x0028, element) for element in (2, 8, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x120, 0x1050, 0x1051)],
    *[(0x0028, 0x3010), (0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD), (0x0002, 0x0000)],
]
MARKERS = [0x51, 0x52, 0x5C, 0x50, 0x90, 0x93, 0xC0, 0xC1, 0xC3, 0xC4, 0xDA, 0xDB, 0xF7, 0xF8, 0xD9, 0xD8]
UIDS = sorted(codecs.SUPPORTED)
START = 132  # after the preamble and DICM


@dataclass(frozen=True)
class Mutated:
    """A changed file.

    Attributes:
        is_cut: that nothing was done to it but that its end is gone.
    """

    content: bytes
    is_cut: bool


def mutate(content: bytes, other: bytes, generator: np.random.Generator) -> Mutated:
    """Returns a file that is cut off, or changed in one to four places; `other` lends bytes."""
    if generator.random() < 0.15:
        return Mutated(content[: int(generator.integers(0, len(content)))], is_cut=True)
    for _ in range(int(generator.integers(1, 5))):
        change = CHANGES[int(generator.integers(len(CHANGES)))]
        content = change(content, other, generator) or content
    return Mutated(content, is_cut=False)


def _place(content: bytes, generator: np.random.Generator) -> int:
    """Draws a place, every other time within the first kilobyte."""
    end = min(len(content), 1024) if generator.random() < 0.5 else len(content)
    return int(generator.integers(min(START, end - 1), end))


def flip(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Flips one bit."""
    place = _place(content, generator)
    return content[:place] + bytes([content[place] ^ 1 << int(generator.integers(8))]) + content[place + 1 :]


def drop(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Leaves some bytes out."""
    place = _place(content, generator)
    return content[:place] + content[place + int(generator.integers(1, 200)) :]


def repeat(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Doubles some bytes."""
    place = _place(content, generator)
    return content[:place] + content[place : place + int(generator.integers(1, 200))] + content[place:]


def borrow(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Puts bytes of another file over some, or between them."""
    place, size = _place(content, generator), int(generator.integers(1, 400))
    start = _place(other, generator)
    kept = place + size * int(generator.integers(2))
    return content[:place] + other[start : start + size] + content[kept:]


def number(content: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Puts an odd number anywhere."""
    return _overwrite(content, _place(content, generator), generator)


def element(content: bytes, other: bytes, generator: np.random.Generator) -> bytes | None:
    """Puts an odd number into the VR, the length or the value of an element that a reader trusts."""
    tag = struct.pack("<2H", *ELEMENTS[int(generator.integers(len(ELEMENTS)))])
    place = content.find(tag, START)
    return (
        None
        if place < 0
        else _overwrite(content, place + int(generator.choice([4, 6, 8, 10, 12])), generator)
    )


def marker(content: bytes, other: bytes, generator: np.random.Generator) -> bytes | None:
    """Puts an odd number into the segment of a JPEG or JPEG 2000 marker."""
    place = content.find(bytes([0xFF, MARKERS[int(generator.integers(len(MARKERS)))]]), START)
    return None if place < 0 else _overwrite(content, place + int(generator.integers(2, 48)), generator)


def syntax(content: bytes, other: bytes, generator: np.random.Generator) -> bytes | None:
    """Names another transfer syntax."""
    place = content.find(b"1.2.840.10008.1.2", START)
    if place < 0:
        return None
    end = place + next(
        (n for n in range(64) if content[place + n : place + n + 1] in {b"\0", b"\x02", b""}), 64
    )
    uid = UIDS[int(generator.integers(len(UIDS)))].encode()
    return content[:place] + uid.ljust(end - place, b"\0")[: end - place] + content[end:]


def _overwrite(content: bytes, place: int, generator: np.random.Generator) -> bytes:
    value = ODD_NUMBERS[int(generator.integers(len(ODD_NUMBERS)))]
    form = ["<H", ">H", "<I", ">I"][int(generator.integers(4))]
    size = struct.calcsize(form)
    return content[:place] + struct.pack(form, value % (1 << 8 * size)) + content[place + size :]


Change = Callable[[bytes, bytes, np.random.Generator], bytes | None]
CHANGES: list[Change] = [flip, drop, repeat, borrow, number, element, element, marker, marker, syntax]
