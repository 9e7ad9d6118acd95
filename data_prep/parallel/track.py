"""The protocols by which long work reports its progress, to whatever displays it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Says that some units of the work are done."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Adds to the count; a note replaces the one before it."""


class Track(Protocol):
    """Opens the display of a piece of work."""

    def __call__(self, title: str, total: int, unit: str = "images") -> AbstractContextManager[Advance]:
        """Yields what advances the work `title` of `total` units."""


@contextmanager
def untracked(title: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Shows nothing; a `Track`."""
    del title, total, unit
    yield _advance_nothing


def _advance_nothing(count: int = 1, note: str = "") -> None:
    del count, note
