# ruff: noqa: INP001 - a tool beside the documents, not a package
"""Takes a picture of a running dashboard with headless Chromium.

    python docs/screenshot.py http://127.0.0.1:8321/ picture.png --token-file ~/.atoll/token --theme dark

Speaks the browser's DevTools protocol over the WebSocket that it prints at its start, so that the page is really open,
connected and drawn when the picture is taken. The token is read from a file, so that no list of processes shows it.
Nothing of the browser stays: its profile is a temporary folder, and it is ended by the pid that was started here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_START_S = 30.0
_ANSWER_S = 30.0


def find_chromium() -> str | None:
    """The browser's path, if the machine has one."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


class Tab:
    """One page of the browser."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._last = socket, session, 0
        self.requests: list[str] = []
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser, and read what it says until the answer comes."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        deadline = time.monotonic() + _ANSWER_S
        while True:
            said = json.loads(self._socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            if said.get("id") == self._last:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']['message']}")
                return dict(said["result"])
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        params = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if said.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = 15.0) -> None:
        """Return once the expression is true in the page."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {seconds:g} s: {expression}")
            time.sleep(0.1)

    def prepare(self, *, theme: str = "light", width: int = 1440, height: int = 900) -> None:
        """Set theme and size, and listen to what the page asks for and to its errors."""
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def open(self, url: str, *, token: str | None = None) -> None:
        """Load a page and wait until it is connected; the token is handed over once and becomes a cookie."""
        if token:
            parts = urlsplit(url)
            self.call("Page.navigate", url=f"{parts.scheme}://{parts.netloc}/?token={quote(token, safe='')}")
            self.wait_for("document.readyState === 'complete'")
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && window.socket && window.socket.connected")

    def picture(self, *, whole: bool = False) -> bytes:
        """The page as PNG; `whole` takes what is below the fold too."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


@contextlib.contextmanager
def browser(chromium: str) -> Iterator[Tab]:
    """A private browser with one open tab; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-browser-", ignore_cleanup_errors=True) as profile:
        command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(  # its own group: the browser's children end with it
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        try:
            with connect(_endpoint(process), max_size=None, open_timeout=_ANSWER_S) as socket:
                yield _first_tab(socket)
        finally:
            _end(process)


def _endpoint(process: subprocess.Popen[str]) -> str:
    """The WebSocket URL that the browser prints. A watchdog ends a browser that prints none."""
    watchdog = threading.Timer(_START_S, process.kill)
    watchdog.start()
    said = []
    try:
        for line in process.stderr or ():
            said.append(line)
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                threading.Thread(target=_drain, args=(process,), name="atoll-browser-drain", daemon=True).start()
                return found[1]
    finally:
        watchdog.cancel()
    raise RuntimeError(f"the browser did not start within {_START_S:g} s: {''.join(said[-5:]).strip()}")


def _drain(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for _ in process.stderr or ():
            pass


def _first_tab(socket: ClientConnection) -> Tab:
    root = Tab(socket, "")
    target = root.call("Target.createTarget", url="about:blank")["targetId"]
    return Tab(socket, root.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
    if process.stderr:
        process.stderr.close()


def main() -> int:
    """Take one picture."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("url")
    asked.add_argument("picture", type=Path)
    asked.add_argument("--token-file", type=Path)
    asked.add_argument("--theme", choices=("light", "dark"), default="light")
    asked.add_argument("--size", default="1440x900", help="width x height in pixels")
    asked.add_argument("--whole", action="store_true", help="also what is below the fold")
    asked.add_argument("--settle", type=float, default=2.5, help="seconds to let charts draw and updates come")
    given = asked.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.stderr.write("no Chromium on this machine; install one, for example: apt-get install chromium\n")
        return 3
    width, height = (int(part) for part in given.size.split("x"))
    token = given.token_file.expanduser().read_text().strip() if given.token_file else None
    with browser(chromium) as tab:
        tab.prepare(theme=given.theme, width=width, height=height)
        tab.open(given.url, token=token)
        time.sleep(given.settle)
        given.picture.write_bytes(tab.picture(whole=given.whole))
        for error in tab.errors:
            sys.stderr.write(f"the page said: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
