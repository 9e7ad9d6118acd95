"""Opening files: regular ones alone, and those of caches, runs and outputs never through a link.

A pipe or a device in a file's place would keep a reader waiting for ever, and a link in a folder that others
can write to would lead a reader or a writer to any file of this user's.
"""

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO, cast

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
FLAGS = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    "a+b": os.O_RDWR | os.O_APPEND | os.O_CREAT,
    "xb": os.O_WRONLY | os.O_EXCL | os.O_CREAT,
}


class NotAFile(OSError):
    """Something else is in the place of a file or a folder."""

    @classmethod
    def at(cls, path: Path, mode: int, wanted: str = "file") -> "NotAFile":
        """Returns the error that says so; it can be sent between processes."""
        return cls(errno.EINVAL, f"it is a {KINDS[stat.S_IFMT(mode)]}, not a {wanted}", str(path))


def open_input(path: Path) -> BinaryIO:
    """Opens a user's file for reading, through links too.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    return _open(path, "rb", path.stat(), os.O_CLOEXEC)


def open_own(path: Path, mode: str = "rb") -> BinaryIO:
    """Opens a file of a cache, a run or an output, in a mode of `FLAGS`.

    Raises:
        OSError: if it cannot be opened, or is a link or no regular file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        found = None
    return _open(path, mode, found, os.O_CLOEXEC | os.O_NOFOLLOW)


def _open(path: Path, mode: str, found: os.stat_result | None, flags: int) -> BinaryIO:
    """Looks first, since opening a device may have effects, and afterwards, since it may be swapped."""
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise NotAFile.at(path, found.st_mode)
    descriptor = os.open(path, FLAGS[mode] | flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    opened = os.fstat(descriptor)
    if not stat.S_ISREG(opened.st_mode):
        os.close(descriptor)
        raise NotAFile.at(path, opened.st_mode)
    return cast("BinaryIO", os.fdopen(descriptor, mode.replace("x", "w")))


def require_own(path: Path) -> Path:
    """Returns the path of a file of mammo's that a library opens by its name.

    Raises:
        OSError: as `open_own` does.
    """
    open_own(path).close()
    return path


def require_input(path: Path) -> Path:
    """Returns the path of a user's file that a library opens by its name.

    Raises:
        OSError: as `open_input` does.
    """
    open_input(path).close()
    return path


def real_folder(path: Path) -> Path:
    """Returns the path of a folder below a cache or a run, which may be absent, but no link.

    Raises:
        NotAFile: if something else is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISDIR(mode):
        raise NotAFile.at(path, mode, "folder")
    return path


def require_ordinary(path: Path) -> None:
    """Makes sure that what a new file would replace is no pipe, device or socket, nor a link to one.

    Raises:
        NotAFile: if it is.
    """
    for look in (path.lstat, path.stat):
        try:
            mode = look().st_mode
        except OSError:  # absent, or a link that leads nowhere
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise NotAFile.at(path, mode)


def read_own(path: Path) -> bytes:
    """Reads a file of a cache, a run or an output.

    Raises:
        OSError: as `open_own` does.
    """
    with open_own(path) as stream:
        return stream.read()


def read_input(path: Path) -> bytes:
    """Reads a user's file.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    with open_input(path) as stream:
        return stream.read()


def parse_json(content: bytes) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if it is none, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Reads TOML.

    Raises:
        ValueError: if it is none, or nested too deep.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
