"""Folders that one process at a time holds, over all machines that share them.

The system's own lock ends with its process, however that ends, on one machine and on most shared file
systems. Some of those let each machine lock by itself: there, the holder's name in the lock file and its
sign of life, the file's time, keep other machines away.
"""

import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data_prep.errors import FolderInUse
from data_prep.storage.atomic import as_user_error, make_folder
from data_prep.storage.files import NotAFile, open_own

LOCK_NAME = ".lock"
HEARTBEAT_S = 60.0
OWNER, LONGEST_OWNER = r"process [0-9]+ on [\w.-]+", 1000  # bytes
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
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        stream = open_own(path, "a+b")
    except OSError as error:
        raise as_user_error(error, path) from error
    with stream:
        _lock(stream, fcntl.LOCK_EX, folder)
        try:
            stream.truncate(0)
            os.write(stream.fileno(), owner.encode())
        except OSError as error:  # the disk is full; with the buffer past, it is not written again at the end
            raise as_user_error(error, path) from error
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
        stream = open_own(folder / LOCK_NAME)
    except NotAFile as error:
        raise as_user_error(error, folder / LOCK_NAME) from error
    except OSError:  # nobody ever held it, or nobody whom this user could ask
        return
    with stream:
        _lock(stream, fcntl.LOCK_SH, folder)


def _lock(stream: BinaryIO, kind: int, folder: Path) -> None:
    """Takes the system's lock, unless another machine has shown of late that it holds the folder."""
    stream.seek(0)
    content = stream.read(LONGEST_OWNER).decode("utf-8", "replace").strip()
    owner = content if re.fullmatch(OWNER, content) else ""  # whatever else is there is nobody's to repeat
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = owner or "another process"
        raise FolderInUse(f"{folder} is in use by {owner}: wait for it, or stop it first") from error
    age = time.time() - os.fstat(stream.fileno()).st_mtime
    is_here = owner.endswith(f" on {socket.gethostname()}")
    if owner and not is_here and abs(age) < STALE_S:  # one from the future is nobody's
        raise FolderInUse(
            f"{folder} is in use by {owner}, which gave a sign of life {max(age, 0.0):.0f} s ago: "
            f"wait for it; if that machine is gone, remove {folder / LOCK_NAME} or wait until {STALE_S:g} s "
            "have passed"
        )


@contextmanager
def _sign_of_life(stream: BinaryIO) -> Iterator[None]:
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
