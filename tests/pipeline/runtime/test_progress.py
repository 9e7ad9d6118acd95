"""Progress: a bar with rate and time left on a terminal, plain lines now and then in a log."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

from pipeline.runtime import progress
from pipeline.runtime.progress import Reporter, format_duration
from tests.pipeline.tiny import heard, quiet


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_every_fifteen_seconds_and_one_at_the_end(clock: Clock) -> None:
    reporter = quiet()
    with reporter.track("prepare", 60) as advance:
        for _ in range(60):
            clock.now += 1
            advance()
    lines = heard(reporter).splitlines()
    assert lines == [
        "prepare: 15/60 images, 1.0/s, 45 s left",
        "prepare: 30/60 images, 1.0/s, 30 s left",
        "prepare: 45/60 images, 1.0/s, 15 s left",
        "prepare: 60/60 images, 1.0/s",
    ]


def test_a_long_log_has_fewer_lines_and_none_twice(clock: Clock) -> None:
    reporter = quiet()
    with reporter.track("prepare", 54_706) as advance:
        for _ in range(54_706):
            clock.now += 1
            advance()
    lines = heard(reporter).splitlines()
    assert 60 < len(lines) < 150
    assert len(set(lines)) == len(lines)
    assert lines[0] == "prepare: 15/54,706 images, 1.0/s, 15 h 12 min left"
    assert lines[-1] == "prepare: 54,706/54,706 images, 1.0/s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (59.4 * 60, "59 min"),
        (59.6 * 60, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_the_last_note_stays(clock: Clock) -> None:
    reporter = quiet()
    with reporter.track("fold 0", 8, unit="steps") as advance:
        clock.now += 2
        advance(4, note="loss 0.5")
        advance(4)
    assert heard(reporter) == "fold 0: 8/8 steps, 4.0/s, loss 0.5\n"


def test_work_of_no_units_is_no_error(clock: Clock) -> None:
    reporter = quiet()
    with reporter.track("nothing", 0):
        pass
    assert heard(reporter) == "nothing: 0/0 images, 0.0/s\n"


def test_broken_off_work_is_not_told_as_done(clock: Clock) -> None:
    reporter = quiet()
    with suppress(RuntimeError), reporter.track("prepare", 3) as advance:
        advance()
        raise RuntimeError
    assert heard(reporter) == ""


def test_a_terminal_shows_a_bar_with_count_and_note() -> None:
    stream = io.StringIO()
    with Reporter(Console(file=stream, force_terminal=True, width=120)).track("train", 4) as advance:
        advance(1, note="loss 0.5")
        advance(3, note="loss 0.25")
    last = stream.getvalue().rpartition("train")[2]
    for part in ("4/4", "images", "loss 0.25"):
        assert part in last


def test_text_is_shown_as_it_is() -> None:
    """Brackets are no markup, and a path is not broken."""
    reporter = quiet()
    reporter.say("[bold]/a/[b]/c")
    assert heard(reporter) == "[bold]/a/[b]/c\n"
