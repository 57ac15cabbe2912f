"""A headless Chromium that tests drive over its remote-debugging port, with nothing but a websocket between."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--force-color-profile=srgb"),
)
TIMEOUT_SEC = 120.0
_KEYS = {"Tab": 9, "Enter": 13, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, " ": 32}
_LOCAL = ("file:", "data:", "about:", "blob:")


class Chromium:
    """One browser with one page. Everything the page says or asks for is kept.

    Attributes:
        complaints: errors and warnings of the console, exceptions, and what the page's policy refused.
        requests: addresses that the page asked for, but for those of files and of data within it.
    """

    def __init__(self, *flags: str) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise RuntimeError("no chromium is installed; `make test-browser` installs Debian's, or says how to")
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [program, *_FLAGS, *flags, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._replies: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._number = 0
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        deadline = time.monotonic() + TIMEOUT_SEC
        told = Path(self._profile.name) / "DevToolsActivePort"
        while not (told.exists() and len(told.read_text().split()) == 2):
            if self._process.poll() is not None:
                raise RuntimeError(f"chromium ended with status {self._process.returncode} before it listened")
            if time.monotonic() > deadline:
                raise RuntimeError(f"chromium did not listen within {TIMEOUT_SEC:g} s")
            await asyncio.sleep(0.05)
        port = told.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        pages: list[dict[str, Any]] = []
        while not pages:  # it listens a moment before its page is there
            if time.monotonic() > deadline:
                raise RuntimeError(f"chromium opened no page within {TIMEOUT_SEC:g} s")
            async with self._session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                pages = [one for one in await reply.json() if one["type"] == "page"]
            await asyncio.sleep(0.05)
        (page,) = pages
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable")

    async def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while number not in self._replies:
            await self._take()
        reply = self._replies.pop(number)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result

    async def _take(self) -> None:
        message = json.loads(await asyncio.wait_for(self._socket.receive_str(), TIMEOUT_SEC))
        if "id" in message:
            self._replies[message["id"]] = message
            return
        self._events.append(message)
        method, told = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(_LOCAL):
            self.requests.append(told["request"]["url"])

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the DevTools protocol; its result."""
        return self._loop.run_until_complete(self._call(method, **parameters))

    def open(self, path: Path) -> float:
        """Open a file; seconds until it has loaded and was drawn once."""
        self._events.clear()
        started = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._loop.run_until_complete(self._take())
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return time.perf_counter() - started

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise AssertionError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def until(self, expression: str, holds: Callable[[Any], bool] = bool) -> Any:
        """The value of an expression as soon as it holds."""
        deadline = time.monotonic() + TIMEOUT_SEC / 6
        while not holds(value := self.js(expression)):
            assert time.monotonic() < deadline, f"{expression} stayed {value!r}"
            time.sleep(0.02)
        return value

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, as a person at the keyboard would."""
        code = _KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            down: dict[str, object] = {"type": "keyDown" if text else "rawKeyDown", **({"text": text} if text else {})}
            self.call("Input.dispatchKeyEvent", key=key, code=key, windowsVirtualKeyCode=code, **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int) -> None:
        """Give the window this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str, media: str = "") -> None:
        """Be asked for a page by a person who prefers these colours: `light` or `dark`; or for print."""
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def picture(self) -> bytes:
        """A screenshot of the window, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def printed(self) -> bytes:
        """The page as PDF."""
        reply = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(reply["data"])

    def close(self) -> None:
        """End the browser."""
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
