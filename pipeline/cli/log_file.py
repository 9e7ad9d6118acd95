"""`log.txt` of a cache or a run: what the commands that worked on it have said, and when."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console

from data_prep.parallel.track import Advance
from data_prep.storage.atomic import SharedLog
from pipeline.cli.console import console, error_console
from pipeline.cli.stopped import describe_command
from pipeline.runtime.progress import Reporter

LOG_NAME = "log.txt"
MADE_BY = "settings.toml"
"""What every cache and every run has from its beginning; in any other folder nothing is written."""
SECRETS = [(r"(://)[^\s'\"]*@", r"\1***@"), (r"(://[^\s?'\"]*\?)[^\s'\"]+", r"\1***")]
"""User names, passwords and keys in addresses, and what stands for them."""
COLUMNS = 120


class LogFile:
    """A text stream of lines that get their time; they wait until the folder is a cache or a run.

    A line is appended at once or, where the storage fails, lost: the work that it tells of will say so.
    """

    def __init__(self, folder: Path) -> None:
        self._made_by, self._log = folder / MADE_BY, SharedLog(folder / LOG_NAME)
        self._waiting = ""

    def write(self, text: str) -> int:
        """Appends what is said, by the clock of UTC, without the secrets of addresses."""
        for secret, stars in SECRETS:
            text = re.sub(secret, stars, text)
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z"
        self._waiting += "".join(f"{now} {line.rstrip()}\n" for line in text.splitlines() if line.strip())
        with suppress(OSError):
            if self._waiting and self._made_by.is_file():
                waiting, self._waiting = self._waiting, ""
                self._log.write(waiting)
        return len(text)

    def flush(self) -> None:
        """Has nothing to do."""


class LoggingReporter(Reporter):
    """Reports on the console and, where that has a bar, in the log with a line now and then."""

    def __init__(self, shown: Console, log: Console) -> None:
        super().__init__(shown)
        self._log = log

    @contextmanager
    def track(self, *arguments: Any, **options: Any) -> Iterator[Advance]:
        """Yields what a `Reporter` yields."""
        with super().track(*arguments, **options) as advance:
            if not self.console.is_terminal:
                yield advance  # whose lines are in the log already
                return
            with Reporter(self._log).track(*arguments, **options) as note_advance:

                def advance_both(count: int = 1, note: str = "") -> None:
                    advance(count, note)
                    note_advance(count, note)

                yield advance_both


def keep_log(folder: Path) -> Reporter:
    """Has all that is said from here on written to the folder's log too, beginning with the command."""
    if console.quiet:  # of the processes that train together, the main one alone speaks
        return Reporter(console)
    log = Console(file=cast("IO[str]", LogFile(folder)), force_terminal=False, width=COLUMNS, soft_wrap=True)
    console.log_console = error_console.log_console = log
    log.print(describe_command(), markup=False, highlight=False)
    return LoggingReporter(console, log)
