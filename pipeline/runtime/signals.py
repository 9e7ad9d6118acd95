"""Ctrl-C and SIGTERM as a request that the work in hand may finish before it stops.

A handler that raises does so wherever the program happens to be, and other people's code may swallow or wrap
what it raises. So no handler here raises: signals are noted, and work looks at the note where it may end. If
that takes too long, a thread ends the process, which harms nothing: all that is written survives a SIGKILL.
Only C code that keeps Python's lock for long can delay that.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

GRACE_S = 1.0  # for work to reach a point where it may end, and to get out from there
GRACE_TO_SAVE_S = 25.0  # within a `StopRequest`; torchrun, Kubernetes and Slurm send SIGKILL after 30
TWICE_S = 0.5  # `timeout` and others send one stop to a process and to its group
NUMBERS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h\n"


class Interrupted(BaseException):
    """The work was stopped by a signal; what was done is saved.

    No `Exception`, so that nothing that deals with errors of any kind takes it for one.

    Attributes:
        number: the signal's.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class _Watch:
    """Notes signals as they come, and ends the process in time."""

    def __init__(self, describe: Callable[[int], str]) -> None:
        self._describe = describe
        self._number: int | None = None
        self._came = self._deadline = 0.0
        self._num_open = 0  # requests to stop
        self._lock, self._speech = threading.RLock(), threading.Lock()
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, _do_nothing)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def look(self) -> int | None:
        """Returns the first signal's number, if one has come."""
        with self._lock:
            if self._number is None and self._read() is not None:
                self._wake()  # as it waits for what was just read
            return self._number

    def count_request(self, change: int) -> None:
        """Gives more time while somebody saves, and the usual time from then on."""
        with self._lock:
            self._num_open += change
            if self._number is not None and self._deadline:
                self._give_time()
                self._wake()

    @property
    def must_save(self) -> bool:
        """Whether a `StopRequest` is open."""
        return self._num_open > 0

    def speak(self) -> bool:
        """Returns whether the caller is the first to say how the process ends."""
        return self._speech.acquire(blocking=False)

    def _read(self) -> int | None:
        """Takes in what has come since, and returns the first signal's number."""
        with self._lock, contextlib.suppress(BlockingIOError):
            for number in os.read(self._reader, 4096):
                if self._number is None and number in NUMBERS:
                    self._number, self._came = number, time.monotonic()
                    self._give_time()
                elif number == signal.SIGINT and time.monotonic() - self._came > TWICE_S:
                    self._deadline = 0.0  # a second Ctrl-C
        return self._number

    def _give_time(self) -> None:
        self._deadline = time.monotonic() + (GRACE_TO_SAVE_S if self._num_open else GRACE_S)

    def _wake(self) -> None:
        """Has the thread look at its deadline again."""
        os.write(self._writer, b"\0")

    def _wait(self) -> None:
        left: float | None = None
        while left is None or left > 0:
            select.select([self._reader], [], [], left)
            if self._read() is not None:
                left = self._deadline - time.monotonic()
        self._leave()

    def _leave(self) -> NoReturn:
        number = self._number or signal.SIGTERM
        try:
            if self.speak():
                if os.isatty(1):
                    _write(1, SHOW_CURSOR)
                _write(2, self._describe(number).encode())
        finally:
            os._exit(128 + number)


def _write(descriptor: int, text: bytes) -> None:
    """Writes, unless whoever reads takes nothing just now: a pager, or a terminal after Ctrl-S."""
    with contextlib.suppress(OSError):
        if select.select([], [descriptor], [], 0.2)[1]:
            os.write(descriptor, text)


_watch: _Watch | None = None


def watch_signals(describe: Callable[[int], str]) -> None:
    """From now on, Ctrl-C and SIGTERM end this process in time: by `Interrupted` if that can be, or without.

    `describe` makes what is printed in the second case, of the signal's number. For the main thread.
    """
    global _watch  # noqa: PLW0603  a process has one set of signal handlers
    if _watch is None:
        _watch = _Watch(describe)
        os.register_at_fork(after_in_child=_forget)
        atexit.register(_ignore)


def _ignore() -> None:
    """Ignores signals at the very end, when all is done: Python would restore their default action."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """Leaves signals to a forked process's own handlers; the pipe is its parent's."""
    global _watch  # noqa: PLW0603
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)


def find_signal() -> int | None:
    """Returns the number of the signal that has come, if signals are watched and one has."""
    return None if _watch is None else _watch.look()


def raise_if_stopped() -> None:
    """Ends work that need not save anything first; to be called where it may end.

    Raises:
        Interrupted: if a signal has come, and no `StopRequest` is open.
    """
    if _watch is not None and not _watch.must_save and (number := _watch.look()) is not None:
        raise Interrupted(number)


def leave(number: int, sentence: str) -> NoReturn:
    """Ends the process after a signal, with one sentence, whoever else is about to do so."""
    if _watch is None or _watch.speak():
        with contextlib.suppress(OSError):
            sys.stderr.write(sentence)
            sys.stderr.flush()
    sys.exit(128 + number)


class StopRequest:
    """Within `with`, a signal is only noted; a second Ctrl-C interrupts as usual.

    A second SIGTERM does not: job systems send it to a process and to the launcher that passes it on.
    Where signals are watched, one that has come before is noted too.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in NUMBERS:
            self._previous[number] = signal.signal(number, self._note)
        if _watch is not None:
            _watch.count_request(1)
            self._number = self._number or _watch.look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if _watch is not None:
            _watch.count_request(-1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = self._number or number
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    @property
    def is_made(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def raise_if_made(self) -> None:
        """Ends the work where that is safe.

        Raises:
            Interrupted: if a signal has come.
        """
        if self._number is not None:
            raise Interrupted(self._number)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Keeps a signal from its default action; the pipe tells that it has come."""
