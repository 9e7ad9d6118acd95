"""Errors: one line of text that is safe to print, and that travels between processes."""

from multiprocessing.reduction import ForkingPickler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DiskFull, ImageError, UserError, count, printable


@given(st.text())
def test_printable_text_steers_no_terminal_and_stays_as_it_is(text: str) -> None:
    safe = printable(text)
    assert all(character in "\n\t" or character.isprintable() or character.isspace() for character in safe)
    assert not set(safe) & {"\x1b", "\x9b", "\x7f", "\u202e"}
    assert printable(safe) == safe
    safe.encode("utf-8")


@pytest.mark.parametrize("text", ["Müller, 50 µm", "日本", "a\tb"])
def test_letters_of_any_script_stay(text: str) -> None:
    assert printable(text) == text


def test_errors_are_one_line_and_can_be_sent() -> None:
    error = ForkingPickler.loads(ForkingPickler.dumps(DiskFull("full\nat \x1b[2J\udcff")))
    assert str(error) == r"full at \x1b[2J\udcff"
    assert isinstance(error, UserError)
    assert error.exit_code == 4
    image_error = ForkingPickler.loads(ForkingPickler.dumps(ImageError("truncated", "it ends")))
    assert (image_error.reason, str(image_error)) == ("truncated", "it ends")


def test_one_is_not_many() -> None:
    assert count(1, "image") == "1 image"
    assert count(0, "image") == "0 images"
    assert count(54_706, "image") == "54,706 images"
    assert (count(1, "process", "processes"), count(2, "process", "processes")) == (
        "1 process",
        "2 processes",
    )
