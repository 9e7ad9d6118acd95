"""Modality and VOI lookup tables as files hold them (PS3.3 C.11.1.1 and C.11.2.1.1), the odd ones too."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_prep.imageio.elements import Element, Elements
from data_prep.imageio.frame import LookupTable

LARGEST_COUNT = 2**16  # which the descriptor writes as 0
WORDS = {"US", "SS", "OW", "OB", "UN"}  # the VRs of entries that are read as words


def find_table(items: Iterable[Elements], inputs: tuple[float, float]) -> LookupTable | None:
    """Returns the first table that can be used, for inputs from the lowest to the highest; None without one.

    A table cannot be used without a descriptor of three whole numbers, with fewer entries than that says, or
    where it gives all inputs the same value.
    """
    tables = (read_table(item, inputs) for item in items)
    return next((table for table in tables if table is not None), None)


def read_table(item: Elements, inputs: tuple[float, float]) -> LookupTable | None:
    """Reads one item of a sequence; None where it cannot be used."""
    entries = item.by_keyword.get("LUTData")
    descriptor = item.numbers("LUTDescriptor")
    if entries is None or len(descriptor) != 3 or not all(_is_whole(value) for value in descriptor):
        return None
    stated_count, first, bits = (int(value or 0) & 0xFFFF for value in descriptor)
    count = stated_count or LARGEST_COUNT
    values = _read_entries(entries, count, bits)
    if values is None:
        return None
    first_mapped = choose_first_mapped(first, count, inputs)
    ends = np.clip(np.floor(inputs) - first_mapped, 0, count - 1).astype(int)
    reached = values[ends[0] : ends[1] + 1]
    return LookupTable(values, first_mapped, bits) if reached.min() < reached.max() else None


def _is_whole(value: float | None) -> bool:
    return value is not None and float(value).is_integer()


def _read_entries(entries: Element, count: int, bits: int) -> NDArray[np.uint16] | None:
    """Returns the table's entries; of 8 bits they may be packed two in a word, the first in the low byte."""
    if entries.vr not in WORDS:
        numbers = entries.numbers()[:count]
        are_words = all(_is_whole(number) and 0 <= (number or 0) < LARGEST_COUNT for number in numbers)
        return np.array(numbers, np.uint16) if are_words and len(numbers) == count else None
    if len(entries.content) >= 2 * count:
        return entries.words()[:count]
    if len(entries.content) < count or bits > 8:
        return None
    padded = Element(
        entries.keyword, entries.vr, entries.content + b"\0" * (count % 2), entries.is_big_endian
    )
    packed = padded.words().astype("<u2").view(np.uint8)
    return packed[:count].astype(np.uint16)


def choose_first_mapped(bits: int, count: int, inputs: tuple[float, float]) -> int:
    """Reads 16 bits as the first mapped input, signed or not as the inputs are.

    Its VR may contradict the inputs, so it says nothing. Where some are negative and some beyond 32,767, the
    table is put where it covers more of them.
    """
    if inputs[0] >= 0 or bits < 2**15:
        return bits
    signed = bits - 2**16
    is_better = _overlap(signed, count, inputs) >= _overlap(bits, count, inputs)
    return signed if is_better else bits


def _overlap(first_mapped: int, count: int, inputs: tuple[float, float]) -> float:
    """Returns how much of the inputs' range a table covers; negative where it lies beyond them."""
    return min(inputs[1], first_mapped + count - 1) - max(inputs[0], first_mapped)
