"""An object store on loopback: moto's S3 server, and before it a door that counts, waits and misbehaves.

The door speaks S3 and, since moto asks nobody who they are, plain HTTP with ranges and ETags too.
"""

import contextlib
import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "mammograms"
SECRET = "dummy-and-never-to-be-seen"  # noqa: S105
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "dummy",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
DRIP_S = 0.1
HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}

Fault = str | Callable[[], None]
"""A status such as "503"; a word that `_Door` explains; or something to do first."""


@dataclass
class Store:
    """The door, and what went through it.

    Attributes:
        address: host and port.
        client: of somebody who fills the bucket, past the door.
        latency_s: how long every answer waits.
        faults: what happens to the next requests for contents and listings; then they go through.
        requests: method, path and range of each request.
        num_bytes: content that was sent.
    """

    address: str
    client: Any
    latency_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def s3(self) -> str:
        """The folder as an S3 URL."""
        return f"s3://{BUCKET}/data"

    @property
    def http(self) -> str:
        """The same folder for a client that knows no S3."""
        return f"http://{self.address}/{BUCKET}/data"

    def upload(self, folder: Path, prefix: str = "data") -> None:
        """Puts all files of a folder into the bucket."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def put(self, key: str, content: bytes) -> None:
        """Writes one object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, ACL="public-read")

    def remove(self, key: str) -> None:
        """Removes one object."""
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def clear(self) -> None:
        """Removes all objects and faults."""
        for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.remove(entry["Key"])
        self.faults.clear()
        self.latency_s = 0.0
        self.forget()

    def forget(self) -> None:
        """Begins to count anew."""
        self.requests.clear()
        self.num_bytes = 0

    def count(self, method: str, ending: str = "") -> int:
        """How many requests there were for paths that end so."""
        return sum(name == method and path.endswith(ending) for name, path, _ in self.requests)


class _Door(BaseHTTPRequestHandler):
    """Passes requests on to moto, but for the faults.

    drop: no answer. cut: half of the promised body. short: less than was asked for, as if that were all.
    drip: a byte now and then, so that it is never silent. endless: zeros, and no end. http...: a redirection
    to that server. whole: as a server does that knows no ranges.
    """

    protocol_version = "HTTP/1.1"
    store: Store
    inner: str

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.store.requests.append((self.command, path, self.headers.get("Range", "")))
        time.sleep(self.store.latency_s)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else None
        fault = self.store.faults.pop(0) if self.command == "GET" and self.store.faults else ""
        if callable(fault):
            fault()
            fault = ""
        if fault == "drop":
            self.close_connection = True
        elif fault.startswith("http"):
            self._answer(302, {"Location": fault + path}, b"")
        elif fault.startswith("URI http"):  # an older name of that header
            self._answer(302, {"URI": fault.removeprefix("URI ") + path}, b"")
        elif fault == "endless":
            self._send_for_ever()
        elif fault.isdigit():
            self._answer(int(fault), {}, b"<Error><Code>Fault</Code><Message>secret</Message></Error>")
        else:
            self._pass_on(body, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _pass_on(self, body: bytes | None, fault: str) -> None:
        inner = http.client.HTTPConnection(self.inner)
        headers = {name: value for name, value in self.headers.items() if name != "Range" or fault != "whole"}
        inner.request(self.command, self.path, body, headers)
        answer = inner.getresponse()
        content = answer.read()
        inner.close()
        if fault == "short":
            content = content[: len(content) // 2]
        fields = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self._answer(answer.status, fields | {"Content-Length": str(length)}, content, fault)

    def _answer(self, status: int, fields: dict[str, str], content: bytes, fault: Fault = "") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | fields).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            sent = content[: len(content) // 2] if fault == "cut" else content
            self.store.num_bytes += len(sent) if self.command == "GET" else 0
            size = 1 if fault == "drip" else len(sent) or 1
            with contextlib.suppress(ConnectionError):  # of a client that waits no longer
                for start in range(0, len(sent), size):
                    self.wfile.write(sent[start : start + size])
                    time.sleep(DRIP_S if fault == "drip" else 0.0)
        self.close_connection |= fault == "cut"

    def _send_for_ever(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(chunk)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Says nothing: of clients that break off, in what they do or by a signal."""


@contextmanager
def serve() -> Iterator[Store]:
    """Runs the store with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    inner = "{}:{}".format(*moto.get_host_and_port())
    door = _Server(("127.0.0.1", 0), type("Door", (_Door,), {"inner": inner}))
    keys = {"aws_access_key_id": "dummy", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{inner}", **keys)
    store = Store(f"127.0.0.1:{door.server_address[1]}", client)
    door.RequestHandlerClass.store = store
    threading.Thread(target=door.serve_forever, daemon=True).start()
    try:
        client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        client.close()
        door.shutdown()
        door.server_close()
        moto.stop()


def point_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leads S3 clients in this process and its workers to the store, and nowhere else."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://{store.address}"}).items():
        monkeypatch.setenv(name, value)
