"""An S3-compatible server on the loopback address: moto's, behind a proxy that makes faults when it is told to.

moto looks at the condition of a request and then does it, which two requests can do at once; so the proxy lets one
conditional request through at a time, as S3 does. It starts with the first test that asks for it.

    python -m tests.object_server SECONDS      one to try things on; prints its address
"""

import contextlib
import http.client
import json
import logging
import math
import random
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HOST = "127.0.0.1"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
FAULTS = ("500", "503", "500 done", "cut", "cut done")  # "done": the request was, but its answer is lost
_PER_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}  # `Host` is part of what is signed


@dataclass
class Faults:
    """What the proxy does to requests."""

    share: float = 0.0
    seed: int = 0
    refuse: Callable[[str, str], str | None] = lambda method, path: None  # the S3 code to refuse a request with
    made: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self) -> str | None:
        """The fault of the next request, if any."""
        with self._lock:
            if self._random.random() >= self.share:
                return None
            fault = self._random.choice(FAULTS)
            self.made[fault] += 1
            return fault


class ObjectServer:
    """The proxy, and moto behind it."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer  # here: it takes half a second, and most tests need none

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes of objects, by `/BUCKET/KEY`
        self._moto = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
        self._moto.start()
        self._behind = self._moto.get_host_and_port()
        self._conditional = threading.Lock()
        self._connections = threading.local()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _handle(self) -> None:
                server.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *of: object) -> None:
                if not isinstance(sys.exception(), OSError):  # a client that was killed has closed its connection
                    super().handle_error(*of)  # type: ignore[arg-type]

        self._proxy = Server((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._proxy.server_address[1]}"
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to know of it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def new_bucket(self) -> str:
        """The name of a bucket of one's own."""
        name = f"b-{uuid.uuid4().hex}"
        host, port = self._behind
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")).close()
        return name

    def ask_who_asks(self, *allowed: str) -> dict[str, str]:
        """Let moto check keys, signatures and permissions from now on.

        Args:
            allowed: what a user who is made for it may do, as `s3:GetObject`.

        Returns:
            what he needs in his environment.
        """
        from moto import settings
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.iam import iam_backends

        users, name = iam_backends[DEFAULT_ACCOUNT_ID]["aws"], f"u-{uuid.uuid4().hex}"
        users.create_user(ENVIRONMENT["AWS_REGION"], name)
        key = users.create_access_key(name)
        if allowed:
            statement = {"Effect": "Allow", "Action": list(allowed), "Resource": "*"}
            users.put_user_policy(name, "p", json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0.0
        return {"AWS_ACCESS_KEY_ID": key.access_key_id, "AWS_SECRET_ACCESS_KEY": key.secret_access_key}

    def ask_nobody(self) -> None:
        """Let everybody do everything again."""
        from moto import settings

        settings.INITIAL_NO_AUTH_ACTION_COUNT = math.inf

    def stop(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    def handle(self, to: BaseHTTPRequestHandler) -> None:
        """Pass a request on to moto and its answer back, unless a fault comes between."""
        body = to.rfile.read(int(to.headers.get("Content-Length") or 0))
        self.requests[_kind(to.command, to.path)] += 1
        code = self.faults.refuse(to.command, urllib.parse.unquote(to.path))
        if code is not None:
            _answer(to, 403, {}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        fault = self.faults.next()
        if fault in ("500", "503"):
            _answer(to, int(fault), {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if fault == "cut":
            to.close_connection = True
            return
        is_conditional = "If-Match" in to.headers or "If-None-Match" in to.headers
        with self._conditional if is_conditional else contextlib.nullcontext():
            status, headers, data = self._pass_on(to, body)
        if fault == "500 done":
            _answer(to, 500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if _kind(to.command, to.path) == "GET":
            self.sent[urllib.parse.unquote(urllib.parse.urlsplit(to.path).path)] += len(data)
        _answer(to, status, headers, data, cut=fault == "cut done")

    def _pass_on(self, of: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in of.headers.items() if name.lower() not in _PER_HOP}
        if not hasattr(self._connections, "one"):
            self._connections.one = http.client.HTTPConnection(*self._behind)
        connection = self._connections.one
        try:
            connection.request(of.command, of.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (http.client.HTTPException, OSError):
            connection.close()
            raise
        return answer.status, dict(answer.getheaders()), data


def _kind(method: str, path: str) -> str:
    """`LIST`, `GET`, `PUT`, ... of a request."""
    at = urllib.parse.urlsplit(path)
    return "LIST" if method == "GET" and "list-type" in urllib.parse.parse_qs(at.query) else method


def _answer(
    to: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
) -> None:
    size = headers.get("Content-Length", headers.get("content-length")) if to.command == "HEAD" else None
    to.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in _PER_HOP:
            to.send_header(name, value)
    to.send_header("Content-Length", size or str(len(data)))
    if cut and not data:
        to.close_connection = True  # not even its header is sent
        return
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        to.close_connection = True


@pytest.fixture(scope="session")
def started_object_server() -> Iterator[ObjectServer]:
    """One server a process of tests."""
    server = ObjectServer()
    yield server
    server.stop()


@pytest.fixture
def object_server(started_object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The server as this test and the programs that it starts reach it: it makes no faults, and counts from zero."""
    from pipeline.storage.bucket import bucket

    for name, value in started_object_server.environment.items():
        monkeypatch.setenv(name, value)
    started_object_server.faults, started_object_server.requests = Faults(), Counter()
    started_object_server.sent = Counter()
    bucket.cache_clear()
    yield started_object_server
    started_object_server.faults = Faults()
    started_object_server.ask_nobody()
    bucket.cache_clear()


@pytest.fixture
def s3(object_server: ObjectServer) -> str:
    """The address of an empty bucket."""
    return f"s3://{object_server.new_bucket()}"


if __name__ == "__main__":
    running = ObjectServer()
    print(running.url, running.new_bucket(), flush=True)
    time.sleep(float(sys.argv[1]))
