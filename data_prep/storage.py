"""Files in object storage: the one door to fsspec, by ranges and with retries. Knows no images.

fsspec is imported for URLs alone. What a store says of an error is never shown, since it may quote a key or a
signed address: every error becomes an OSError with a sentence of our own. Credentials are the business of
fsspec and of the store's own library, which find them in the environment.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from data_prep.errors import UserError

Answer = TypeVar("Answer")

NUM_TRIES = 4  # of each request
FIRST_WAIT_S = 0.5  # before the second try, and twice as long before each further one
TIMEOUT_S = 10  # for a connection, or for the next bytes; four times that is less than an image may take
AT_ONCE = 16  # requests that look for files
FIRST_BYTES = 2**16  # of the first request for a file: holds the header of most,
LAST_BYTES = 2**12  # so few are not left behind: with them, all of the file is known
FIRST_SHARE = 8  # and this part of the file on top, which is what a quarter-size JPEG 2000 image takes

URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)")
WITHOUT_LISTING = {"http", "https"}
PINNING = {"s3", "s3a"}  # protocols whose requests name the version that they want
DENIED, ABSENT, CHANGED = {401, 403}, {404, 410}, {412}
PASSING = {408, 425, 429, *range(500, 600)}  # what may be well the next time
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}


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
        return self.text.partition("://")[0] not in WITHOUT_LISTING

    def find(self) -> "RemoteFile":
        """Looks the file up.

        Raises:
            OSError: if it is not there or cannot be reached.
        """
        return _describe(self.text, _ask(partial(_open_store(self.text).info, self.text)))

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
        return _ask(partial(_open_store(self.text).cat_file, self.text))


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
    if match is None:
        return Path(text)
    protocol, host = match.groups()
    if protocol == "file":
        return Path(text.removeprefix("file://"))
    user, has_user, _ = host.rpartition("@")
    if (has_user and (":" in user or protocol in WITHOUT_LISTING)) or "?" in text or "#" in text:
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
    store = _open_store(folder.text)
    try:
        found = _ask(partial(store.find, folder.text, detail=True))
    except FileNotFoundError:
        return []
    return [_describe(store.unstrip_protocol(name), entry) for name, entry in found.items()]


def list_each(folders: Iterable[Url]) -> list[list[RemoteFile]]:
    """Lists several folders at once.

    Raises:
        OSError: if the store cannot be reached or does not tell.
    """
    folders = list(folders)
    for folder in folders[:1]:
        _open_store(folder.text)  # here, so that the threads share it
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(list_files, folders))


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

    urls = list(urls)
    for url in urls[:1]:
        _open_store(url.text)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(find, urls))


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
            self._fetch_to(end if self.content else max(end, FIRST_BYTES + self.file.size // FIRST_SHARE))
        return self.content[start:end]

    def _fetch_to(self, end: int) -> None:
        start, end = len(self.content), min(end, self.file.size)
        end = self.file.size if self.file.size - end <= LAST_BYTES else end
        part = _ask(partial(_get_range, self.file, start, end))
        self.num_requests += 1
        self.content = part if len(part) == self.file.size else self.content + part
        is_pinned = self.file.url.partition("://")[0] in PINNING
        if start and not is_pinned and Url(self.file.url).find() != self.file:
            raise OSError(errno.ESTALE, "it changed while it was read")


def _get_range(file: RemoteFile, start: int, end: int) -> bytes:
    """Returns the bytes from start to end; all of the file from a server that does not know ranges."""
    store = _open_store(file.url)
    if file.url.partition("://")[0] in PINNING:
        part = _get_pinned(store, file, start, end)
    else:
        part = store.cat_file(file.url, start=start, end=end)
    if len(part) not in {end - start, file.size}:
        raise ConnectionError("other bytes than were asked for")
    return part


def _get_pinned(store: Any, file: RemoteFile, start: int, end: int) -> bytes:
    """Asks S3 for a range of this very version; it answers 412 where there is another one."""
    from fsspec.asyn import sync  # noqa: PLC0415  for URLs alone

    bucket, key, _ = store.split_path(file.url)
    span, version = f"bytes={start}-{end - 1}", f'"{file.etag}"'
    answer = store.call_s3("get_object", Bucket=bucket, Key=key, Range=span, IfMatch=version, **store.req_kw)

    async def read() -> bytes:
        async with answer["Body"] as body:
            return bytes(await body.read())

    content: bytes = sync(store.loop, read)
    return content


def _ask(request: Callable[[], Answer]) -> Answer:
    """Makes a request, again and again where its failure may pass.

    Raises:
        OSError: with a sentence that quotes nothing of the store's.
    """
    for attempt in range(1, NUM_TRIES + 1):
        try:
            return request()
        except Exception as error:  # each store has errors of its own
            problem, may_pass = _judge(error)
        if not may_pass:
            raise problem
        if attempt < NUM_TRIES:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    raise OSError(problem.errno, f"{problem.strerror}, {NUM_TRIES} times")


def _judge(error: Exception) -> tuple[OSError, bool]:
    """Returns what to raise for an error of a store, and whether to try again."""
    status = _find_status(error)
    if status in DENIED or (status is None and isinstance(error, PermissionError)):
        return PermissionError(errno.EACCES, "the store denies access"), False
    if status in ABSENT or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(errno.ENOENT, "it is not there"), False
    if status is not None:
        changed = OSError(errno.ESTALE, "it changed while it was read")
        other = OSError(errno.EIO, f"the store answered {status}")
        return changed if status in CHANGED else other, status in PASSING
    if type(error).__name__ in NO_CREDENTIALS:
        return PermissionError(errno.EACCES, "the environment holds no credentials for the store"), False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TimeoutError(errno.ETIMEDOUT, "the store did not answer in time"), True
    return OSError(errno.EIO, "the connection to the store broke"), True


def _find_status(error: BaseException | None) -> int | None:
    """Returns the HTTP status that is behind an error of aiohttp, botocore or what wraps them."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp calls everything 400 that breaks off, as a code
            is_code = not type(error).__module__.startswith("aiohttp")
            status = getattr(error, "status", None) or (is_code and getattr(error, "code", None))
        if isinstance(status, int) and status >= 300:
            return status
        error = error.__cause__
    return None


def _open_store(url: str) -> Any:
    match = URL.match(url)
    assert match, "`to_place` lets only URLs through"
    return _connect(*match.groups(), os.getpid())


@cache
def _connect(protocol: str, host: str, _process: int) -> Any:
    """Returns fsspec's file system, the same for all threads of a process."""
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415  for URLs alone

        options = _choose_options(protocol)
        store = url_to_fs(f"{protocol}://{host}/", use_listings_cache=False, **options)[0]
    except ImportError as error:
        ours = protocol in PINNING | WITHOUT_LISTING
        raise UserError(
            f'{protocol}:// needs packages that are not installed: `pip install "mammo-vit[storage]"`'
            + ("" if ours else f", and fsspec's package for {protocol}")
        ) from error
    except ValueError as error:
        raise UserError(
            f"{protocol}:// is no storage that fsspec knows: give a folder, or a URL such as s3://BUCKET/FOLDER"
        ) from error
    if protocol in PINNING:
        store.retries = 1  # s3fs's own; `_ask` tries again
    return store


def _choose_options(protocol: str) -> dict[str, Any]:
    """Time limits, and no retries but ours, where we know how to ask for them."""
    if protocol in WITHOUT_LISTING:
        import aiohttp  # noqa: PLC0415

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        as_it_is = {"Accept-Encoding": "identity"}  # a range of compressed bytes is of no use
        return {"client_kwargs": {"timeout": timeout, "trust_env": True, "headers": as_it_is}}
    if protocol in PINNING:
        limits = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retries": {"max_attempts": 0}}
        return {"config_kwargs": limits}
    return {}
