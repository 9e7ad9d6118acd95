"""The only writers but for `locks`: atomic files, journals and logs."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from data_prep.errors import DiskFull, FolderInUse, UserError
from data_prep.storage.files import NotAFile, open_own, parse_json, read_own, require_ordinary

TEMPORARY_PREFIX = ".tmp-"  # then the writer's process id, a random part, and the final name
FORMULA = r"[=+\-@\t\r]"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_bytes(path: Path, payload: bytes | memoryview) -> None:
    """Writes a file that is either absent, the old one, or complete, whatever kills the process.

    Raises:
        DiskFull: if the disk or the quota is full; the old file is intact.
        UserError: if the folder cannot be written to.
    """
    with replacing(path) as stream:
        stream.write(payload)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a stream for what is too large to be in memory twice; else like `write_bytes`.

    Raises:
        DiskFull: if the disk or the quota is full; the old file is intact.
        UserError: if the folder cannot be written to.
    """
    try:
        with _replacing(path) as stream:
            yield stream
    except OSError as error:
        raise as_user_error(error, path) from error


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Makes sure, before long work, that its result will have space.

    Raises:
        DiskFull: if the disk has less; says how much `what` needs.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise DiskFull(
            f"disk full at {folder}: {what} needs {num_bytes / 1e9:.3g} GB or more; "
            "free some space and run the same command again"
        )


@contextmanager
def preallocate(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """Yields a stream for a large file whose space is taken on the disk before the first byte is written.

    Like `write_bytes`, it leaves the old file or a complete one: the new one comes when the block ends well.

    Raises:
        DiskFull: if the disk or the quota has too little space; the old file is intact.
        UserError: if the folder cannot be written to.
    """
    full = DiskFull(
        f"disk full at {path.parent}, {path.name} needs {num_bytes / 1e9:.1f} GB: "
        "free some space and run the same command again"
    )
    if shutil.disk_usage(path.parent).free < num_bytes:  # to try would fill the disk for everybody
        raise full
    try:
        with _replacing(path) as stream:
            os.posix_fallocate(stream.fileno(), 0, num_bytes)
            yield stream
    except OSError as error:
        raise (full if error.errno in DISK_FULL else as_user_error(error, path)) from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a stream on a temporary file that is flushed and renamed when the block ends well."""
    require_ordinary(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        with open_own(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_temporary(path: Path) -> bool:
    """Whether a writer made this file on its way to a complete one; folders and links are never ours."""
    is_named_so = re.fullmatch(rf"{re.escape(TEMPORARY_PREFIX)}[0-9]+-.+", path.name) is not None
    return is_named_so and path.is_file() and not path.is_symlink()


def find_temporaries(folder: Path) -> list[Path]:
    """Returns what killed writers left below a folder, sorted."""
    return sorted(path for path in folder.rglob(f"{TEMPORARY_PREFIX}*") if is_temporary(path))


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left below a folder that this process holds."""
    for path in find_temporaries(folder):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text like `write_bytes`; names of files that are none are written with backslashes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index; numbers keep every digit that they need to be read back exactly.

    Raises:
        UserError: if a cell begins like a formula, which a spreadsheet would run.
    """
    for name in table.select_dtypes(["object", "str"]):
        cells = table[name].dropna().astype(str)
        is_formula = cells.str.match(FORMULA) & pd.to_numeric(cells, errors="coerce").isna()
        if is_formula.any():
            raise UserError(
                f"{path.name} is not written: {cells[is_formula].iloc[0]!r} in the column {name} begins like "
                "a formula, which a spreadsheet would run; choose a name that begins with a letter"
            )
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; NaN is refused, since no standard reader takes it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def make_folder(path: Path) -> None:
    """Makes a folder and its parents.

    Raises:
        UserError: if that cannot be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_user_error(error, path) from error


def require_writable(path: Path) -> None:
    """Makes sure, before long work, that its result can be written.

    Raises:
        UserError: if the path is a folder, or its folder cannot be made or written to.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    try:
        require_ordinary(path)
    except OSError as error:
        raise as_user_error(error, path) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write to {path.parent}: choose a folder that you may write to")


def as_user_error(error: OSError, path: Path) -> UserError:
    """Turns an error of the file system into one sentence with the way out."""
    if isinstance(error, NotAFile):
        return UserError(f"cannot use {error.filename}: {error.strerror}; remove it, or name another place")
    if error.errno in DISK_FULL:
        return DiskFull(f"disk full at {path.parent}: free some space and run the same command again")
    if error.errno == errno.EISDIR:
        return UserError(f"cannot write {path}: it is a folder; remove it or name another place")
    if error.errno in {errno.EEXIST, errno.ENOTDIR}:
        in_the_way = next((place for place in (path, *path.parents) if place.is_file()), path)
        return UserError(
            f"cannot write {path}: {in_the_way} is not a folder; remove it or name another place"
        )
    return UserError(f"cannot write {path}: {error.strerror}; name a place that you may write to")


class Journal:
    """Appends one JSON record a line, so that a killed run loses at most the line it was writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Returns all whole records; a torn last line is dropped.

        Raises:
            UserError: if another line is not a record.
        """
        try:
            lines = read_own(self.path).split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise as_user_error(error, self.path) from error
        damaged = UserError(f"{self.path} is damaged: remove it and run the interrupted command again")
        try:
            records = [parse_json(line) for line in lines[:-1]]  # what follows the last newline is torn
        except ValueError as error:
            raise damaged from error
        if not all(isinstance(record, dict) for record in records):
            raise damaged
        return records

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record after the last whole one.

        Raises:
            DiskFull: if the disk is full.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            with open_own(self.path, "ab") as stream:
                stream.write(line)
        except OSError as error:
            raise as_user_error(error, self.path) from error

    def mend(self) -> None:
        """Cuts a torn last line off, so that the next record starts a line of its own."""
        if not self.path.exists():
            return
        with open_own(self.path, "r+b") as stream:  # in place: who holds the file holds it still
            stream.truncate(stream.read().rfind(b"\n") + 1)

    def remove(self) -> None:
        """Removes the journal once its records stand in a table."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes off this journal; one that is empty at the end is removed.

        Raises:
            FolderInUse: if another process holds it.
            UserError: if the journal cannot be written.
        """
        try:
            stream = open_own(self.path, "ab")
        except OSError as error:
            raise as_user_error(error, self.path) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FolderInUse(
                    f"{self.path} is in use by another process: wait for it, or stop it first"
                ) from error
            try:
                yield
            finally:
                if self.path.exists() and not self.path.stat().st_size:
                    self.remove()


class SharedLog:
    """A text stream of sentences, written on one machine and read on another that shares the storage.

    Where the storage fails they are lost: the work that they tell of will say so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_read = path.stat().st_size if path.exists() else 0  # in bytes; from an earlier command

    def read(self) -> list[str]:
        """Returns the lines that have come since the last time."""
        with suppress(OSError), open_own(self._path) as stream:
            stream.seek(self._num_read)
            whole, newline, _ = stream.read().rpartition(b"\n")  # what is behind it is still on its way
            self._num_read += len(whole + newline)
            return whole.decode(errors="replace").splitlines()
        return []

    def write(self, text: str) -> int:
        """Appends, and closes the file, so that all machines see it."""
        with suppress(OSError), open_own(self._path, "ab") as stream:
            stream.write(text.encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        """Has nothing to do."""


def read_header(path: Path) -> list[str]:
    """Returns the names in a CSV's first line, empty for an empty file."""
    with open_own(path) as stream:
        return stream.readline(10_000).decode("utf-8", "replace").strip().split(",")


def require_replaceable(path: Path, columns: list[str], *, optional: Sequence[str] = ()) -> None:
    """Makes sure that a table replaces nothing but another one of its kind, with or without `optional`.

    Raises:
        UserError: if a file with other contents is there.
    """
    is_there = path.is_file() and path.stat().st_size
    if is_there and [name for name in read_header(path) if name not in optional] != columns:
        raise UserError(
            f"{path} is not a table of {', '.join(columns[:4])} and would be overwritten: "
            "move it, or choose another --out"
        )
