"""Folders that one process at a time holds, over all machines that share them.

The system's own lock ends with its process, however that ends, on one machine and on most shared file
systems. Some of those let each machine lock by itself: there, the holder's name in the lock file and its
sign of life, the file's time, keep other machines away.
"""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from data_prep.errors import FolderInUse
from data_prep.storage.atomic import as_user_error, make_folder

LOCK_NAME = ".lock"
HEARTBEAT_S = 60.0
STALE_S = 300.0  # five heartbeats, for clocks that differ and storage that is slow


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process until the block ends or the process does.

    Raises:
        FolderInUse: if another process holds it; the message names host and process.
        UserError: if the folder cannot be made or written to.
    """
    make_folder(folder)
    path = folder / LOCK_NAME
    try:
        stream = path.open("a+")
    except OSError as error:
        raise as_user_error(error, path) from error
    with stream:
        _lock(stream, fcntl.LOCK_EX, folder)
        stream.seek(0)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            with _sign_of_life(stream):
                yield
        finally:
            stream.truncate(0)


def require_unlocked(folder: Path) -> None:
    """Makes sure that nobody holds the folder, without taking or writing anything.

    Raises:
        FolderInUse: if another process holds it; the message names host and process.
    """
    try:
        stream = (folder / LOCK_NAME).open()
    except OSError:  # nobody ever held it, or nobody whom this user could ask
        return
    with stream:
        _lock(stream, fcntl.LOCK_SH, folder)


def _lock(stream: TextIO, kind: int, folder: Path) -> None:
    """Takes the system's lock, unless another machine has shown of late that it holds the folder."""
    stream.seek(0)
    owner = stream.read().strip()
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = owner or "another process"
        raise FolderInUse(f"{folder} is in use by {owner}: wait for it, or stop it first") from error
    age = time.time() - os.fstat(stream.fileno()).st_mtime
    is_here = owner.endswith(f" on {socket.gethostname()}")
    if owner and not is_here and age < STALE_S:
        raise FolderInUse(
            f"{folder} is in use by {owner}, which gave a sign of life {max(age, 0):.0f} s ago: wait for it; "
            f"if that machine is gone, remove {folder / LOCK_NAME} or wait until {STALE_S:g} s have passed"
        )


@contextmanager
def _sign_of_life(stream: TextIO) -> Iterator[None]:
    """Renews the time of the lock file, in a thread, as long as the block lasts."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(OSError):  # of a share that is away for a moment
                os.utime(stream.fileno())

    thread = threading.Thread(target=renew, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
