"""A real browser without a window, driven over the Chrome DevTools Protocol: real touches, mouse, keys and timers.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "no Chromium here: `sudo apt-get install -y chromium`"
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--mute-audio",
    # Without a window there is no mouse: it is said here. A phone's page says otherwise by itself.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
)
START_TIMEOUT = 60.0  # [s] on a loaded machine


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self.target, self._session = browser, target, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression; an exception fails the test."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, timeout: float = 20.0) -> Any:
        """First true value of ``script``."""
        until = time.monotonic() + timeout
        while not (value := self.evaluate(script)):
            assert time.monotonic() < until, f"not met within {timeout:g} s: {script}"
            time.sleep(0.02)
        return value

    def center(self, selector: str) -> tuple[float, float]:
        """Where an element's middle is, in CSS pixels."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return tuple(self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})"))

    def touch(self, kind: str, *points: tuple[int, float, float]) -> None:
        """``touchStart`` or ``touchMove`` of all fingers (id, x, y) that are down; ``touchEnd`` of those that are lifted, or of
        all; ``touchCancel``.
        """
        fingers = [{"id": finger, "x": x, "y": y} for finger, x, y in points]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def mouse(self, kind: str, x: float, y: float, *, down: bool = False) -> None:
        """``mousePressed``, ``mouseMoved`` or ``mouseReleased`` of the left button."""
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="none" if kind == "mouseMoved" and not down else "left",
            buttons=int(down or kind == "mousePressed"),
            clickCount=int(kind != "mouseMoved"),
        )

    def click(self, selector: str) -> None:
        """With the mouse."""
        x, y = self.center(selector)
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def key(self, key: str, *, down: bool) -> None:
        """A key goes down or up."""
        code = {" ": "Space", "Escape": "Escape", "Backspace": "Backspace"}.get(key, f"Key{key.upper()}")
        self.call("Input.dispatchKeyEvent", type="rawKeyDown" if down else "keyUp", key=key, code=code)

    def screenshot(self, path: Path) -> None:
        """As a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """As a person closes a tab."""
        self._browser.call("Target.closeTarget", targetId=self.target)


class Browser:
    """A running browser: ``process`` leads a group of its own."""

    def __init__(self, process: subprocess.Popen, connection: ClientConnection) -> None:
        self.process, self._connection, self._numbers = process, connection, itertools.count(1)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps({**message, "sessionId": session} if session else message))
        while True:
            answer = json.loads(self._connection.recv(timeout=30))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def page(self, url: str, width: int = 1280, height: int = 800, *, touch: bool = False) -> Page:
        """A new tab, as large as a screen of ``width`` x ``height`` CSS pixels; ``touch``: a phone's or tablet's."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if touch else 1,
            mobile=touch,
        )
        if touch:
            page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
        page.call("Page.enable")
        page.call("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        return page


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in ``folder``; ended with all its processes."""
    command = [find_browser(), *FLAGS, f"--user-data-dir={folder}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # its sandbox refuses to run as root
    with (folder / "browser.log").open("w") as log:
        running = subprocess.Popen(
            [*command, "about:blank"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        port = folder / "DevToolsActivePort"
        until = time.monotonic() + START_TIMEOUT
        while not port.exists() or len(port.read_text().splitlines()) < 2:
            assert running.poll() is None and time.monotonic() < until, (folder / "browser.log").read_text()
            time.sleep(0.05)
        number, path = port.read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{number}{path}", max_size=None, compression=None) as connection:
            yield Browser(running, connection)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
