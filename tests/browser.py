"""A headless Chromium, driven over its DevTools protocol: what a reader of a page would see, press and point at."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sae_moo.explore.pages.dashboard import serve

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--remote-debugging-port=0", "--window-size=1200,900", "--disable-extensions",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
)  # fmt: skip
WAIT = 120.0  # s; a loaded machine starts a browser slowly


class Page:
    """One page. `errors`: what went wrong in it so far; `asked`: addresses it fetched."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._last = loop, socket, 0
        self.errors: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        number = self._last
        self._loop.run_until_complete(self._socket.send_json({"id": number, "method": method, "params": params}))
        while True:
            said = self._loop.run_until_complete(self._socket.receive_json(timeout=WAIT))
            self._note(said.get("method", ""), said.get("params", {}))
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str) -> Any:
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := self.value(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}; errors: {self.errors}")

    def point_at(self, x: float, y: float) -> None:
        for step in (3, 0):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y + step)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=13, text="\r")


def served(storage) -> str:
    """The address of the API of a dashboard that is served from here on."""
    addresses: list[str] = []
    there = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        there.set()

    threading.Thread(target=serve, args=(storage, 0, ready), daemon=True).start()
    assert there.wait(30)
    return addresses[0].replace("/dashboard", "/api")


@contextmanager
def opened(address: str) -> Iterator[Page]:
    """Open an address in a browser of its own; the test is skipped where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no {', '.join(NAMES)} on this machine")
    aiohttp = pytest.importorskip("aiohttp")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        command = [program, *OPTIONS, f"--user-data-dir={own}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = asyncio.new_event_loop()
        try:
            port = _port(Path(own) / "DevToolsActivePort")
            session = aiohttp.ClientSession(loop=loop)
            try:
                socket = loop.run_until_complete(_connected(session, port))
                page = Page(loop, socket)
                page.open(address)
                yield page
                loop.run_until_complete(socket.close())
            finally:
                loop.run_until_complete(session.close())
        finally:
            browser.terminate()
            browser.wait()
            loop.close()


def _port(file: Path) -> int:
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError("the browser did not start")


async def _connected(session: Any, port: int) -> Any:
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        targets = await answer.json(content_type=None)
    address = next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
    return await session.ws_connect(address, max_msg_size=0)
