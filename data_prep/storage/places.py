"""Where data lie, a folder or a URL; and files in object storage, found by listings and read by ranges."""

import errno
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import UserError
from data_prep.storage.object_store import (
    HTTP,
    LISTING_DEADLINE_S,
    MAX_BYTES,
    S3,
    URL,
    Answer,
    ask,
    has_changed,
    open_store,
    protocol_of,
    read_version,
    too_long,
)

AT_ONCE = 16  # requests that look for files
FIRST_BYTES = 2**16  # of the first request for a file: holds the header of most,
LAST_BYTES = 2**12  # so few are not left behind: with them, all of the file is known
FIRST_BYTES_MOST = 2**24
FIRST_SHARE = 8  # and this part of the file on top, which is what a quarter-size JPEG 2000 image takes


@dataclass(frozen=True)
class Url:
    """The address of a file or folder in object storage."""

    text: str

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def has_listing(self) -> bool:
        """Whether the store can tell what is in a folder."""
        return protocol_of(self.text) not in HTTP

    def find(self) -> "RemoteFile":
        """Looks the file up.

        Raises:
            OSError: if it is not there or cannot be reached.
        """
        return _describe(self.text, ask(partial(open_store(self.text).info, self.text)))

    def is_file(self) -> bool:
        """Whether a file is there, or something that only reading it will tell."""
        try:
            self.find()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def read_bytes(self) -> bytes:
        """Reads all of a file.

        Raises:
            OSError: if it is not there or cannot be reached.
        """
        if not self.has_listing:  # a web server, which need not tell a size
            return ask(partial(open_store(self.text).cat_file, self.text))
        file = self.find()
        if file.size > MAX_BYTES:
            raise too_long()
        return Download(file).read(0, file.size)


@dataclass(frozen=True)
class RemoteFile:
    """One version of a file in object storage; small, as it travels to the workers.

    Attributes:
        etag: what the store tells its versions apart by: an ETag, or else the time of the last change.
    """

    url: str
    size: int
    etag: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.url).suffix

    @property
    def folder(self) -> str:
        """The name of the folder that the file lies in."""
        return PurePosixPath(self.url).parent.name


Place = Path | Url
"""A folder, or a table in it."""
ImagePath = Path | RemoteFile
"""Where an image is read from."""


def to_place(text: str) -> Place:
    """Reads what a user gave as a path or URL; `file://` is a path too.

    Raises:
        UserError: if the URL holds a password or a query, which would end up in messages and tables.
    """
    match = URL.match(text)
    if match is None and "://" in text:
        raise UserError("an address begins with its protocol in small letters, such as s3:// or https://")
    if match is None:
        return Path(text)
    protocol, host = match.groups()
    if protocol == "file":
        return Path(text.removeprefix("file://"))
    user, has_user, _ = host.rpartition("@")
    has_password = re.search(r":(?![0-9]*$)", host) or (":" in host and "@" in text)  # which may hold a slash
    if has_password or (has_user and (":" in user or protocol in HTTP)) or "?" in text or "#" in text:
        raise UserError(
            f"this {protocol}:// address holds a user name, password or query: give it without, and the "
            "credentials in the environment, where the store's own programs look for them"
        )
    return Url(text)


def to_image_path(text: str) -> ImagePath:
    """Reads what a user gave as one file.

    Raises:
        UserError: as `to_place` does, or if no such file can be found in object storage.
    """
    place = to_place(text)
    if isinstance(place, Path):
        return place
    try:
        return place.find()
    except OSError as error:
        raise UserError(f"cannot read {place} ({error.strerror}): name one mammogram") from error


# Looking for files


def list_files(folder: Url) -> list[RemoteFile]:
    """Lists all files below a folder, some thousand per request.

    Raises:
        OSError: if the store cannot be reached or does not tell.
    """
    store = open_store(folder.text)
    try:
        found = ask(partial(store.find, folder.text, detail=True), deadline_s=LISTING_DEADLINE_S)
    except FileNotFoundError:
        return []
    return [_describe(store.unstrip_protocol(name), entry) for name, entry in found.items()]


def list_each(folders: Iterable[Url]) -> list[list[RemoteFile]]:
    """Lists several folders at once.

    Raises:
        OSError: if the store cannot be reached or does not tell.
    """
    return _ask_each(list_files, folders)


def find_each(urls: Iterable[Url]) -> list[RemoteFile | None]:
    """Looks several files up at once; None where there is none.

    Raises:
        OSError: if the store cannot be reached or does not tell.
    """

    def find(url: Url) -> RemoteFile | None:
        try:
            return url.find()
        except FileNotFoundError:
            return None

    return _ask_each(find, urls)


def _ask_each(request: Callable[[Url], Answer], urls: Iterable[Url]) -> list[Answer]:
    urls = list(urls)
    for url in urls[:1]:
        open_store(url.text)  # here, so that the threads share it
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(request, urls))


def _describe(url: str, entry: dict[str, Any]) -> RemoteFile:
    if entry.get("type") == "directory":
        raise FileNotFoundError(errno.ENOENT, "it is a folder")
    if entry.get("size") is None:
        raise OSError(errno.EIO, "the store does not tell its size")
    names = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "mtime", "updated", "created")
    version = next((str(entry[name]) for name in names if entry.get(name)), "unknown")
    return RemoteFile(url, int(entry["size"]), version.strip('"'))


# Reading


@dataclass
class Download:
    """The beginning of one version of a file, fetched in few requests, as each of them takes its time.

    Attributes:
        content: what has arrived, from the file's beginning.
        num_requests: how many it took.
    """

    file: RemoteFile
    content: bytes = field(default=b"", repr=False)
    num_requests: int = 0

    def read(self, start: int, end: int) -> bytes:
        """Returns a part, at most to the end of the file.

        Raises:
            OSError: if the file cannot be reached, or is another one than it was.
        """
        end = min(end, self.file.size)
        if end > len(self.content):
            more = FIRST_BYTES + min(self.file.size // FIRST_SHARE, FIRST_BYTES_MOST)
            self._fetch_to(end if self.content else max(end, more))
        return self.content[start:end]

    def _fetch_to(self, end: int) -> None:
        start, end = len(self.content), min(end, self.file.size)
        end = self.file.size if self.file.size - end <= LAST_BYTES else end
        part = ask(partial(_get_range, self.file, start, end))
        self.num_requests += 1
        self.content = part if len(part) == self.file.size else self.content + part
        is_pinned = protocol_of(self.file.url) in S3
        if start and not is_pinned and Url(self.file.url).find() != self.file:
            raise has_changed()


def _get_range(file: RemoteFile, start: int, end: int) -> bytes:
    """Returns the bytes from start to end; all of the file from a server that does not know ranges."""
    if protocol_of(file.url) in S3:
        part = read_version(file.url, file.etag, start, end)
    else:
        part = open_store(file.url).cat_file(file.url, start=start, end=end)
    if len(part) not in {end - start, file.size}:
        raise ConnectionError("other bytes than were asked for")
    return part
