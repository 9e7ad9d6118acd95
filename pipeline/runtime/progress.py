"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from data_prep.errors import printable
from data_prep.parallel.track import Advance
from pipeline.runtime.signals import raise_if_stopped

SECONDS_BETWEEN_LINES = 15.0  # of a log at first
SHARE_BETWEEN_LINES = 0.05  # of the time gone by, where that is more: a day's work needs no 6,000 lines


class Reporter:
    """Shows what is going on, on the console that it is given."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Shows one line."""
        self.console.print(text, markup=False, highlight=False)

    @contextmanager
    def track(self, title: str, total: int, unit: str = "images") -> Iterator[Advance]:
        """Yields a function that advances the work `title` of `total` units.

        It raises `Interrupted` after a signal, unless whoever works has asked to save first.
        """
        title = printable(title)
        if self.console.is_terminal:
            with _make_bar(self.console, unit) as bar:
                yield _BarAdvance(bar, bar.add_task(title, total=total, note="", rate=""))
        else:
            advance = _LineAdvance(self, title, total, unit)
            yield advance
            advance.show()


def format_duration(seconds: float) -> str:
    """Returns seconds, minutes, or hours and minutes, whichever a person would say."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _make_bar(console: Console, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class _BarAdvance:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, count: int = 1, note: str = "") -> None:
        raise_if_stopped()
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self._bar.update(self._task, advance=count, note=note, rate=rate)


class _LineAdvance:
    def __init__(self, reporter: Reporter, title: str, total: int, unit: str) -> None:
        self._reporter, self._title, self._total, self._unit = reporter, title, total, unit
        self._done, self._note, self._told = 0, "", -1
        self._start = self._shown = time.monotonic()

    def __call__(self, count: int = 1, note: str = "") -> None:
        raise_if_stopped()
        self._done += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._shown >= max(SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES * (now - self._start)):
            self.show()

    def show(self) -> None:
        """Says how far the work is, unless the last line said that already."""
        if self._told == self._done:
            return
        self._shown, self._told = time.monotonic(), self._done
        rate = self._done / max(self._shown - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        parts = [f"{self._title}: {self._done:,}/{self._total:,} {self._unit}", f"{rate:.1f}/s"]
        parts += [f"{format_duration(left)} left"] if self._done < self._total else []
        self._reporter.say(", ".join(parts + ([self._note] if self._note else [])))
