"""Ctrl-C and SIGTERM as a request that the work in hand may finish before it stops."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):
    """The work was stopped by a signal; what was done is saved.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """Within `with`, a signal is only noted; a second Ctrl-C interrupts as usual.

    A second SIGTERM does not: job systems send it to a process and to the launcher that passes it on.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = self._number or number
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

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
