"""Requests to a chat server that speaks OpenAI's protocol, asked again as long as there is hope.

A server that is busy, fails, cuts connections or is not there is asked again, after pauses that grow, or when it says
(`Retry-After`). What it refuses is not asked again. The key is in the header of requests alone: messages of the server
that repeat it are told without it.
"""

import math
import random
import time
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any

import httpx2

from pipeline.answer.engine import ServerSettings
from pipeline.errors import UserError
from schemas.wording import clipped, visible

PAUSES_SEC = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0)  # between the tries of one request
MOST_BUSY = 60  # times that a request is told to come back later
LONGEST_WAIT_SEC = 600.0  # that a server may ask for
_CONNECT_SEC = 10.0
_BUSY = 429
_PASSING = {408, 425, _BUSY}  # and all from 500 on
_OF_REQUESTS = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR"
_MOST_BYTES = 64 << 20  # of an answer
_READ_HEADERS = ("Content-Type", "Location", "Retry-After")
_MOST_SAID = 300  # characters of a server's message


class RequestRefusedError(Exception):
    """The server refused a request; it would do so again."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"the server refused the prompt (status {status}): {said}")
        self.status, self.said = status, said


class ServerGoneError(Exception):
    """The server gave no answer, however often it was asked."""


class _PassingError(Exception):
    """A try that failed; another may not."""

    def __init__(self, why: str, wait_sec: float | None = None, *, is_busy: bool = False) -> None:
        super().__init__(why)
        self.wait_sec, self.is_busy = wait_sec, is_busy


class ChatServer:
    """A server, which several threads may ask at once.

    Args:
        settings: of the server.
        pauses_sec: between the tries of a request.

    Raises:
        UserError: the environment names proxies or certificates that can't be used.
    """

    def __init__(self, settings: ServerSettings, pauses_sec: tuple[float, ...] | None = None) -> None:
        self._settings = settings
        self._pauses_sec = PAUSES_SEC if pauses_sec is None else pauses_sec
        self._key = settings.api_key.get_secret_value() if settings.api_key is not None else ""
        limits = httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        try:
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx2.Timeout(settings.timeout_sec, connect=min(_CONNECT_SEC, settings.timeout_sec)),
                limits=limits,
            )
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"--server {settings.url}: requests can't be made with what the environment says of proxies and "
                f"certificates ({self.clean(f'{type(error).__name__}: {error}')}); correct or unset {_OF_REQUESTS}"
            ) from error

    def models(self) -> list[str]:
        """Names of what the server serves. Raises as `chat` does."""
        data = self._ask("GET", "models", None, Event()).get("data")
        found = data if isinstance(data, list) else []
        return [str(one["id"]) for one in found if isinstance(one, dict) and one.get("id") is not None]

    def chat(self, body: dict[str, Any], given_up: Event | None = None) -> dict[str, Any]:
        """The response to a chat request.

        Args:
            body: the request.
            given_up: set by another thread when there is no use in waiting any longer.

        Raises:
            RequestRefusedError: the server refused it.
            ServerGoneError: the server gave no answer.
        """
        return self._ask("POST", "chat/completions", body, given_up or Event())

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, given_up: Event) -> dict[str, Any]:
        began, failures, busy = time.monotonic(), 0, 0
        while True:
            try:
                return self._try(method, path, body)
            except _PassingError as error:
                failures, busy = failures + (not error.is_busy), busy + error.is_busy
                wait_sec = self._wait(error, failures, busy)
                if wait_sec is None or given_up.wait(wait_sec):
                    raise ServerGoneError(
                        f"--server {self._settings.url} did not answer a request in {failures + busy} tries over "
                        f"{time.monotonic() - began:.1f} s; at last: {error}"
                    ) from None

    def _wait(self, error: _PassingError, failures: int, busy: int) -> float | None:
        """Seconds until the next try; None: there is none."""
        if failures > len(self._pauses_sec) or busy > MOST_BUSY:
            return None
        number = max(failures, min(busy, len(self._pauses_sec))) - 1
        pause_sec = self._pauses_sec[number] * random.uniform(0.5, 1.0) if number >= 0 else 0.0
        wait_sec = max(pause_sec, error.wait_sec or 0.0)
        return wait_sec if wait_sec <= LONGEST_WAIT_SEC else None

    def _try(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._response(method, path, body)
        except httpx2.RequestError as error:
            raise _PassingError(self.clean(f"{type(error).__name__}: {error}")) from None
        status = response.status_code
        if status in _PASSING or status >= 500:
            why = f"status {status}: {self._said(response)}"
            raise _PassingError(why, _retry_after(response.headers.get("Retry-After")), is_busy=status == _BUSY)
        if response.is_redirect:
            there = self.clean(response.headers.get("Location", "nowhere"))
            raise RequestRefusedError(status, f"it redirects to {there}, which is not followed")
        if status != 200:
            raise RequestRefusedError(status, self._said(response))
        try:
            data = response.json()
        except (ValueError, RecursionError):
            raise _PassingError(f"status 200 without JSON: {self._said(response)}") from None
        if not isinstance(data, dict):
            raise _PassingError(f"status 200 without a JSON object: {self._said(response)}")
        if data.get("error") and not data.keys() & {"choices", "data"}:
            raise _PassingError(f"status 200 with an error: {self._said(response)}")
        return data

    def _response(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        """A response that is there as a whole: within the time and the size that one may take.

        The client itself bounds the time between two pieces alone.
        """
        pieces, size, end = [], 0, time.monotonic() + self._settings.timeout_sec
        with self._client.stream(method, f"{self._settings.url}/{path}", json=body) as response:
            for piece in response.iter_bytes():
                pieces.append(piece)
                size += len(piece)
                if size > _MOST_BYTES:
                    raise _PassingError(f"its answer is larger than {_MOST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise _PassingError(f"its answer was not whole after {self._settings.timeout_sec:g} s")
        headers = {name: response.headers[name] for name in _READ_HEADERS if name in response.headers}
        return httpx2.Response(response.status_code, headers=headers, content=b"".join(pieces))

    def _said(self, response: httpx2.Response) -> str:
        """What the server says is wrong, in one line."""
        try:
            data = response.json()
        except (ValueError, RecursionError):
            return self.clean(response.text)
        for name in ("error", "message", "detail"):
            if isinstance(data, dict) and name in data:
                data = data[name]
        return self.clean(data if isinstance(data, str) else str(data))

    def clean(self, text: str) -> str:
        """What the server says, as it can be shown: a line, without the key, not too long."""
        return clipped(self.without_key(visible(" ".join(text.split()))), _MOST_SAID) or "no message"

    def without_key(self, text: str) -> str:
        """The text with `[key]` where it holds the key."""
        return text.replace(self._key, "[key]") if self._key else text


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which holds seconds or a date; None where it holds neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
