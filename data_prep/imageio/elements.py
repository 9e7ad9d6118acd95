"""Elements of a DICOM header as they stand in the file, and their numbers and codes. Knows no pydicom.

Numbers are read from the bytes, so that the same bits are the same number whatever a VR calls them, and an
element that is absent or blank is never mistaken for a number.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import ImageError

FORMATS = {
    **dict.fromkeys(("US", "OW"), "H"),
    **dict.fromkeys(("UL", "OL"), "I"),
    **dict.fromkeys(("UV", "OV"), "Q"),
    **dict.fromkeys(("FL", "OF"), "f"),
    **dict.fromkeys(("FD", "OD"), "d"),
    "SS": "h",
    "SL": "i",
    "SV": "q",
}
"""How the VRs of numbers in binary are unpacked, PS3.5 6.2."""

DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # PS3.5 6.2, DS and IS
QUOTABLE = re.compile(r"[0-9.,+\-eE\\ ]{1,40}")  # a damaged header may hold anything in a number's place

Number = float | None
"""A number; None where it is blank, not a number (NaN) where it is something else."""


@dataclass(frozen=True)
class Element:
    """One element.

    Attributes:
        vr: its own, or the dictionary's where the file tells none.
        content: the value's bytes.
    """

    keyword: str
    vr: str
    content: bytes
    is_big_endian: bool = False

    @property
    def text(self) -> str:
        """The value as text without its padding."""
        return self.content.decode("latin-1").strip(" \0")

    def numbers(self) -> list[Number]:
        """Returns the values; none where the element is blank."""
        if self.vr not in FORMATS:
            parts = [part.strip(" \0") for part in self.text.split("\\")]
            return [_parse(part) for part in parts] if self.text else []
        code = FORMATS[self.vr]
        if len(self.content) % struct.calcsize(code):
            return [math.nan]
        order = ">" if self.is_big_endian else "<"
        return [value for (value,) in struct.iter_unpack(order + code, self.content)]

    def words(self) -> NDArray[np.uint16]:
        """Returns the value as words of 16 bits, unsigned whatever the VR; an odd byte at the end is left."""
        order = ">" if self.is_big_endian and self.vr != "OB" else "<"
        words = np.frombuffer(self.content, f"{order}u2", len(self.content) // 2)
        return words.astype(np.uint16, copy=False)

    def quote(self) -> str:
        """Returns the value for a message, unless it might be somebody's name."""
        if self.vr in FORMATS:
            values = "\\".join(f"{value:g}" for value in self.numbers()[:4] if value is not None)
            return values or "blank"
        return self.text if QUOTABLE.fullmatch(self.text) else "no number" if self.text else "blank"


@dataclass(frozen=True)
class Elements:
    """Some elements of a header, or of an item, by their keywords."""

    by_keyword: Mapping[str, Element]

    def numbers(self, keyword: str) -> list[Number]:
        """Returns an element's values; none where it is absent or blank."""
        element = self.by_keyword.get(keyword)
        return element.numbers() if element else []

    def first_number(self, keyword: str) -> Number:
        """Returns the first value; None where the element is absent, or blank."""
        return next(iter(self.numbers(keyword)), None)

    def whole_number(self, keyword: str) -> int | None:
        """Returns an element's one whole number; None where it is absent or blank.

        Raises:
            ImageError: if it holds anything else.
        """
        values = self.numbers(keyword)
        if not values or values == [None]:
            return None
        if len(values) > 1 or values[0] is None or not float(values[0]).is_integer():
            said = self.by_keyword[keyword].quote()
            raise ImageError(
                "bad_value", f"{keyword} is {said}; one whole number is needed: export the file again"
            )
        return int(values[0])

    def bits(self, keyword: str) -> int | None:
        """Returns the first value's lowest 16 bits, unsigned; None where there is no whole number.

        US and SS are told apart by PixelRepresentation, and many writers mix them up.
        """
        value = self.first_number(keyword)
        return int(value) & 0xFFFF if value is not None and float(value).is_integer() else None

    def texts(self, keyword: str) -> list[str] | None:
        """Returns an element's values as text without padding, none of a blank one; None if it is absent."""
        element = self.by_keyword.get(keyword)
        if element is None:
            return None
        return [part.strip(" \0") for part in element.text.split("\\")] if element.text else []

    def code(self, keyword: str) -> str:
        """Returns the first value of a code in capitals, without padding; empty where it is absent."""
        element = self.by_keyword.get(keyword)
        return element.text.split("\\")[0].strip(" \0").upper() if element else ""


def _parse(text: str) -> Number:
    if not text:
        return None
    return float(text) if DECIMAL.fullmatch(text) else math.nan
