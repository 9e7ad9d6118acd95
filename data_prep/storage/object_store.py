"""The one door to fsspec: stores of objects, asked again where a failure may pass.

fsspec is imported for URLs alone. What a store says of an error is never shown, since it may quote a key or a
signed address: every error becomes an OSError with a sentence of our own. Credentials are the business of
fsspec and of the store's own library, which find them in the environment.
"""

import errno
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

from data_prep.errors import UserError

Answer = TypeVar("Answer")

NUM_TRIES = 4  # of each request
FIRST_WAIT_S = 0.5  # before the second try, and twice as long before each further one
REQUEST_TIMEOUT_S = 10
"""For a connection, or for the next bytes; four times that is less than an image may take."""
CHUNK_BYTES = 2**16  # taken of an answer at once
MAX_BYTES = 2**28  # of one answer; no file of which mammo takes all is longer
DEADLINE_S = 45.0  # for an answer as a whole, all tries together; less than an image may take
LISTING_DEADLINE_S = 900.0  # for a listing, which takes a request per thousand files

URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)")
HTTP = {"http", "https"}
S3 = {"s3", "s3a"}
DENIED, ABSENT, CHANGED = {401, 403}, {404, 410}, 412
PASSING = {408, 425, 429, *range(500, 600)}  # what may be well the next time
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
WRONG_SETTINGS = {"ProfileNotFound", "NoRegionError", "ParamValidationError"}


def protocol_of(url: str) -> str:
    """Returns what stands before `://`."""
    return url.partition("://")[0]


class Refused(OSError):
    """What a store sends is not taken, and not asked for again; the sentence is our own."""


def has_changed() -> Refused:
    """Returns what to raise for an object that is another one than it was."""
    return Refused(errno.ESTALE, "it changed while it was read")


def too_long() -> Refused:
    """Returns what to raise for an answer that is longer than any file of which mammo takes all."""
    return Refused(errno.EFBIG, f"it is longer than {MAX_BYTES:,} bytes")


async def _read_some(parts: AsyncIterator[bytes], close: Callable[[], None]) -> bytes:
    """Returns the whole body of an answer; one that is too long is left."""
    taken, num_bytes = [], 0
    async for part in parts:
        num_bytes += len(part)
        if num_bytes > MAX_BYTES:
            close()
            raise too_long()
        taken.append(part)
    return b"".join(taken)


def read_version(url: str, etag: str, start: int, end: int) -> bytes:
    """Reads a range of this very version from S3, which answers 412 where there is another one."""
    from fsspec.asyn import sync  # noqa: PLC0415  for URLs alone

    store = open_store(url)
    bucket, key, _ = store.split_path(url)
    span, version = f"bytes={start}-{end - 1}", f'"{etag}"'
    answer = store.call_s3("get_object", Bucket=bucket, Key=key, Range=span, IfMatch=version, **store.req_kw)
    if answer.get("ETag", version) != version:  # from a store that takes no conditions
        raise has_changed()

    async def read() -> bytes:
        async with answer["Body"] as body:
            return await _read_some(body.iter_chunks(CHUNK_BYTES), body.close)

    content: bytes = sync(store.loop, read, timeout=DEADLINE_S)
    return content


def ask(request: Callable[[], Answer], *, deadline_s: float | None = None) -> Answer:
    """Makes a request, again and again where its failure may pass.

    Raises:
        OSError: with a sentence that quotes nothing of the store's.
    """
    deadline = time.monotonic() + (deadline_s or DEADLINE_S)
    for attempt in range(1, NUM_TRIES + 1):
        try:
            return _ask_once(request, deadline)
        except Exception as error:  # each store has errors of its own
            problem, may_pass = _judge(error)
        wait = FIRST_WAIT_S * 2 ** (attempt - 1)
        if not may_pass or time.monotonic() + wait > deadline:
            raise problem
        if attempt < NUM_TRIES:
            time.sleep(wait)
    raise OSError(problem.errno, f"{problem.strerror}, {NUM_TRIES} times")


def _ask_once(request: Callable[[], Answer], deadline: float) -> Answer:
    """Makes a request in a thread of its own, which is left behind where no answer comes in time.

    Raises:
        TimeoutError: if the deadline passes.
    """
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:  # raised where it is awaited
            answer.set_exception(error)

    threading.Thread(target=work, name="request", daemon=True).start()
    return answer.result(deadline - time.monotonic())


def _judge(error: Exception) -> tuple[OSError, bool]:
    """Returns what to raise for an error of a store, and whether to try again."""
    if isinstance(error, UserError):  # of `open_store`, in a worker
        return OSError(errno.ENOPKG, str(error)), False
    if refused := next((one for one in _causes(error) if isinstance(one, Refused)), None):
        return refused, False
    status = _find_status(error)
    if status is None and error.__cause__ is None:  # with a cause, "absent" is fsspec's word for any failure
        plain = {PermissionError: 403, FileNotFoundError: 404}  # of stores that hide the status
        status = next((plain[kind] for kind in plain if isinstance(error, kind)), None)
    return _judge_silence(error) if status is None else _judge_answer(status)


def _judge_answer(status: int) -> tuple[OSError, bool]:
    if status in DENIED:
        return PermissionError(errno.EACCES, "the store denies access"), False
    if status in ABSENT:
        return FileNotFoundError(errno.ENOENT, "it is not there"), False
    if status == CHANGED:
        return has_changed(), False
    return OSError(errno.EIO, f"the store answered {status}"), status in PASSING


def _judge_silence(error: Exception) -> tuple[OSError, bool]:
    if type(error).__name__ in NO_CREDENTIALS:
        return PermissionError(errno.EACCES, "the environment holds no credentials for the store"), False
    if type(error).__name__ in WRONG_SETTINGS:
        return OSError(errno.EINVAL, "the settings do not fit: look at bucket, profile and region"), False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TimeoutError(errno.ETIMEDOUT, "the store did not answer in time"), True
    return OSError(errno.EIO, "the connection to the store broke"), True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _find_status(outer: BaseException) -> int | None:
    """Returns the HTTP status that is behind an error of aiohttp, botocore or what wraps them."""
    for error in _causes(outer):
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp calls everything 400 that breaks off, as a code
            is_code = not type(error).__module__.startswith("aiohttp")
            status = getattr(error, "status", None) or (is_code and getattr(error, "code", None))
        if isinstance(status, int) and status >= 300:
            return status
    return None


def open_store(url: str) -> Any:
    """Returns fsspec's file system for a URL.

    Raises:
        UserError: if fsspec does not know it, or a package is absent.
    """
    match = URL.match(url)
    assert match, "only URLs come here"
    return _connect(*match.groups(), os.getpid())


@cache
def _connect(protocol: str, host: str, _process: int) -> Any:
    """Returns fsspec's file system, the same for all threads of a process."""
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415  for URLs alone

        options = _choose_options(protocol)
        store = url_to_fs(f"{protocol}://{host}/", use_listings_cache=False, **options)[0]
    except ImportError as error:
        ours = protocol in S3 | HTTP
        raise UserError(
            f'{protocol}:// needs packages that are not installed: `pip install "mammo-vit[storage]"`'
            + ("" if ours else f", and fsspec's package for {protocol}")
        ) from error
    except ValueError as error:
        raise UserError(
            f"{protocol}:// is not storage that fsspec knows: give a folder, or a URL such as s3://BUCKET/FOLDER"
        ) from error
    if protocol in S3:
        store.retries = 1  # s3fs's own; `ask` tries again
    return store


def _choose_http_options() -> dict[str, Any]:
    """Time limits, no answer longer than a file may be, and no redirection to another server."""
    import aiohttp  # noqa: PLC0415  an optional extra
    import yarl  # noqa: PLC0415  aiohttp's own

    def _origin(url: yarl.URL) -> tuple[str, str | None, int | None]:
        return url.scheme, url.host, url.port

    class Response(aiohttp.ClientResponse):  # type: ignore[misc]  # without the extra it is Any
        async def read(self) -> bytes:
            return await _read_some(self.content.iter_chunked(CHUNK_BYTES), self.close)

    async def look(_session: Any, _context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        headers = redirect.response.headers
        target = redirect.url.join(yarl.URL(headers.get("Location") or headers.get("URI", "")))
        if _origin(target) != _origin(redirect.url):
            raise Refused(errno.EXDEV, "it leads to another server, which is not asked")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return {
        "timeout": aiohttp.ClientTimeout(
            total=DEADLINE_S, sock_connect=REQUEST_TIMEOUT_S, sock_read=REQUEST_TIMEOUT_S
        ),
        "trust_env": True,
        "headers": {"Accept-Encoding": "identity"},  # a range of compressed bytes is of no use
        "response_class": Response,
        "trace_configs": [trace],
    }


def _choose_options(protocol: str) -> dict[str, Any]:
    """Time limits, and no retries but ours, where we know how to ask for them."""
    if protocol in HTTP:
        return {"client_kwargs": _choose_http_options()}
    if protocol in S3:
        limits = {
            "connect_timeout": REQUEST_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
            "retries": {"max_attempts": 0},
        }
        return {"config_kwargs": limits}
    return {}
