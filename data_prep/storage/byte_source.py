"""Bytes of a file, read as far as somebody asks."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.errors import ImageError
from data_prep.storage.files import open_input
from data_prep.storage.places import Download, ImagePath, RemoteFile

CHUNK_BYTES = 2**16  # holds the header of most files
WHOLE_BYTES = 2**27  # more than any mammogram has; of a longer file no more is read than is asked for
MAX_BYTES = 2**28  # of a file, or of what a deflated one inflates to; the largest detector's pixels are 2**26
MAX_READS = 2**18  # of a header: a hundred times as many elements as any mammogram's


@dataclass
class ByteSource:
    """The first bytes of a file, as a binary stream; what lies beyond `content` nobody has asked for yet.

    Every method raises ImageError: `io_error` if the file cannot be read, `too_large` if more is asked of it
    than of any mammogram.

    Attributes:
        origin: None for bytes in memory.
        size: of the whole file, in bytes.
        content: what was asked for, from the file's beginning.
        num_reads: how often `read` was called.
    """

    origin: Path | Download | None
    size: int
    content: bytes = b""
    position: int = 0
    num_reads: int = 0

    @classmethod
    def open(cls, path: ImagePath, *, whole: bool) -> "ByteSource":
        """Opens a file and reads all of it, or enough for a header."""
        if isinstance(path, RemoteFile):
            source = cls(Download(path), path.size)
        else:
            try:
                with open_input(path) as stream:
                    source = cls(path, os.fstat(stream.fileno()).st_size)
            except OSError as error:
                raise _io_error(error) from error
        source.read_to(WHOLE_BYTES if whole else CHUNK_BYTES)
        return source

    @classmethod
    def of(cls, content: bytes) -> "ByteSource":
        """Returns bytes in memory as a source."""
        return cls(None, len(content), content)

    def read_to(self, end: int) -> None:
        """Makes sure that `content` reaches `end`, or the end of the file."""
        missing = min(end, self.size) - len(self.content)
        if missing <= 0 or self.origin is None:
            return
        if len(self.content) + missing > MAX_BYTES:
            raise ImageError("too_large", f"more than {MAX_BYTES >> 20} MB of the file would have to be read")
        try:
            more = _read_part(self.origin, len(self.content), missing)
        except OSError as error:
            raise _io_error(error) from error
        self.content = self.content + more if self.content else more

    def read(self, count: int = -1) -> bytes:
        """Reads from the position on, like a file."""
        self.num_reads += 1
        if self.num_reads > MAX_READS:
            raise ImageError("too_large", f"the header has more than {MAX_READS} parts")
        end = self.size if count < 0 else self.position + count
        if end > len(self.content):  # by chunks: each reading copies what there is
            self.read_to(-(-end // CHUNK_BYTES) * CHUNK_BYTES)
        part = self.content[self.position : end]
        self.position += len(part)
        return part

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position, like a file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """Returns the position, like a file."""
        return self.position

    @property
    def received(self) -> bytes:
        """All that was read; of a remote file that may be more than anybody asked for."""
        return self.origin.content if isinstance(self.origin, Download) else self.content

    def sha256(self) -> str:
        """Returns the checksum of what was read, in hexadecimal."""
        return hashlib.sha256(self.received).hexdigest()


def _read_part(origin: Path | Download, start: int, count: int) -> bytes:
    if isinstance(origin, Download):
        return origin.read(start, start + count)
    with open_input(origin) as stream:
        stream.seek(start)
        return _read(stream, count)


def _read(stream: BinaryIO, count: int) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            raise OSError(0, "it became shorter while it was read")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _io_error(error: OSError) -> ImageError:
    return ImageError("io_error", f"the file cannot be read: {error.strerror}")


@dataclass(frozen=True)
class Span:
    """A part of a source: `size` bytes from `start`."""

    source: ByteSource
    start: int
    size: int

    @classmethod
    def of(cls, content: bytes) -> "Span":
        """Returns bytes in memory as a span."""
        return cls(ByteSource.of(content), 0, len(content))

    @property
    def num_read(self) -> int:
        """How many of its first bytes have been read."""
        return min(self.size, max(0, len(self.source.content) - self.start))

    def first(self, count: int) -> bytes:
        """Returns a copy of the first `count` bytes, or of all where there are fewer."""
        end = self.start + min(count, self.size)
        self.source.read_to(end)
        return self.source.content[self.start : end]

    def all(self) -> memoryview:
        """Returns everything, without a copy."""
        self.source.read_to(self.start + self.size)
        return memoryview(self.source.content)[self.start : self.start + self.size]
