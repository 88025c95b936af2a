"""Serves the page, and talks with the browsers that show it, in a thread of its own.

A page of another site cannot drive: browsers tell the origin of whoever opens a WebSocket. An origin is ours if it is the very
address that the browser reached us under, and that one is a number or a name of this machine: a name that somebody else's
DNS server points here (DNS rebinding) is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vigil.errors import VigilError
from vigil.teleop.device import BadInput
from vigil.teleop.settings import WebSettings
from vigil.teleop.web.desk import Desk, Visitor
from vigil.teleop.web.messages import LONGEST, Hello, parse

PAGE = Path(__file__).with_name("page.html")
RATE = 30.0  # [Hz] of states to each browser, and so of its answers
MOST_VISITORS = 8
MOST_MESSAGES = 300  # of one browser in a second: it answers each state, and tells of presses
HELLO_TIMEOUT = 5.0  # [s]
WRONG_TOKEN, CLOSE_TIMEOUT = 1.0, 0.5  # [s] that a guess costs; that browsers may delay the end
# The page needs nothing from anywhere, and nobody may show it inside another page, where clicks can be lured to it.
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def import_websockets() -> Any:
    """The package; VigilError says how to install it."""
    try:
        import websockets.asyncio.server
        import websockets.datastructures
        import websockets.exceptions
        import websockets.http11
    except ImportError as error:
        raise VigilError(
            f"device web needs websockets ({error}): install it by `.venv/bin/pip install -e '.[web]'`"
        ) from None
    return websockets


class WebServer:
    """The page at ``/``, and a WebSocket at ``/drive``.

    Args:
        about: what every page is told once, JSON.
    """

    def __init__(self, settings: WebSettings, desk: Desk, about: Mapping[str, Any]) -> None:
        self._settings, self._desk, self._about = settings, desk, about
        self._token = settings.token.get_secret_value() if settings.token else ""
        self._visitors = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where a browser of this machine finds the page, or of others if it is served to them."""
        host = self._settings.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.port}"

    def open(self) -> None:
        """Begin to serve.

        Raises:
            VigilError: a package is missing, or the address cannot be had; says what to do.
        """
        self._websockets = import_websockets()
        self._page = PAGE.read_bytes()
        opened: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(opened)), name="web", daemon=True
        )
        self._thread.start()
        if (error := opened.get()) is not None:
            self._thread.join()
            self._thread = None
            raise VigilError(self._why_not(error)) if isinstance(error, OSError) else error

    def close(self) -> None:
        """Send all browsers away; harmless if it was never opened."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    def _why_not(self, error: OSError) -> str:
        host, port = self._settings.host, self._settings.port
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {port} of {host} is in use: end what listens there (`ss -ltnp 'sport = :{port}'` shows it), "
                "or set teleop.port to another one"
            )
        if error.errno == errno.EACCES:
            return f"port {port} is not for ordinary users: set teleop.port to one above 1023"
        return (
            f"cannot listen at {host} ({error}): set teleop.host to an address of this machine (`ip -brief address` "
            "shows them), or to 0.0.0.0 for all of them"
        )

    # In the thread ----------------------------------------------------------------------------------------------

    async def _serve(self, opened: queue.SimpleQueue[Exception | None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        logger = logging.getLogger("vigil.teleop.web")
        logger.addFilter(lambda record: "handshake" not in record.msg)  # whoever is no browser
        try:
            server = await self._websockets.asyncio.server.serve(
                self._visit,
                self._settings.host,
                self._settings.port,
                process_request=self._on_request,
                compression=None,  # a message is small, and must not wait
                max_size=LONGEST,
                open_timeout=HELLO_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                server_header=None,
                logger=logger,
            )
        except Exception as error:
            opened.put(error)
            return
        opened.put(None)
        await self._stop.wait()
        server.close()
        # Browsers connect in advance, and then say nothing: what is left then ends with the loop.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.wait_closed(), CLOSE_TIMEOUT)

    def _on_request(self, connection: Any, request: Any) -> Any:
        """An answer, or None for a WebSocket that may be opened."""
        path = request.path.partition("?")[0]
        if path not in ("/", "/drive"):
            return connection.respond(HTTPStatus.NOT_FOUND, "nothing here: the page is at /\n")
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        # The page itself has no origin; under a name that is not ours it could not drive, and says why.
        refusal = self._refuse_host(hosts) if path == "/" else self._refuse_origin(hosts, origins)
        if refusal:
            shown = refusal.encode("ascii", "backslashreplace").decode()  # what was passed may be anything
            return connection.respond(HTTPStatus.FORBIDDEN, shown + "\n")
        if path == "/drive":
            return None
        headers = self._websockets.datastructures.Headers(HEADERS)
        headers["Content-Length"] = str(len(self._page))
        return self._websockets.http11.Response(HTTPStatus.OK, "OK", headers, self._page)

    def _refuse_host(self, hosts: list[str]) -> str:
        if len(hosts) != 1:
            return "give one Host, as browsers do"
        proxies = [urlsplit(origin).netloc for origin in self._settings.origins]
        if hosts[0] in proxies or is_own_name(host_name(hosts[0])):
            return ""
        return (
            f"{hosts[0]} is no address in numbers, and not the name that this machine has itself ({socket.gethostname()}): "
            f"open the page by one of these, or add http://{hosts[0]} to teleop.origins"
        )

    def _refuse_origin(self, hosts: list[str], origins: list[str]) -> str:
        if len(origins) != 1:
            return "give one Origin, as browsers do"
        if origins[0] in self._settings.origins:
            return ""
        if refusal := self._refuse_host(hosts):
            return refusal
        if origins[0] != f"http://{hosts[0]}":
            return f"a page of {origins[0]} may not drive: open the page of this machine, or add this to teleop.origins"
        return ""

    async def _visit(self, connection: Any) -> None:
        if self._visitors >= MOST_VISITORS:
            await connection.close(1013, f"{MOST_VISITORS} browsers are here: close one")
            return
        self._visitors += 1
        visitor = Visitor("", str((connection.remote_address or ["?"])[0]))
        closed = self._websockets.exceptions.ConnectionClosed
        try:
            if await self._welcome(connection, visitor):
                telling = asyncio.create_task(self._tell(connection, visitor))
                try:
                    await self._listen(connection, visitor)
                finally:
                    self._desk.leave(visitor)  # first of all
                    telling.cancel()
        except (closed, TimeoutError, asyncio.TimeoutError):
            pass
        finally:
            self._visitors -= 1

    async def _welcome(self, connection: Any, visitor: Visitor) -> bool:
        try:
            hello = parse(await asyncio.wait_for(connection.recv(), HELLO_TIMEOUT))
        except BadInput as error:
            await self._send(connection, {"type": "refused", "reason": str(error)})
            return False
        if not isinstance(hello, Hello):
            await self._send(connection, {"type": "refused", "reason": "say hello first"})
            return False
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()) and self._token:
            await asyncio.sleep(WRONG_TOKEN)
            await self._send(connection, {"type": "token", "given": bool(hello.token)})
            return False
        visitor.name = "".join(letter for letter in hello.name.strip() if letter.isprintable())
        await self._send(connection, {"type": "welcome", **self._about})
        return True

    async def _listen(self, connection: Any, visitor: Visitor) -> None:
        second, count = 0, 0
        async for text in connection:
            now = time.monotonic()
            second, count = (int(now), 1) if int(now) != second else (second, count + 1)
            if count > MOST_MESSAGES:
                await connection.close(1008, f"more than {MOST_MESSAGES} messages in a second")
                return
            try:
                refusal = self._desk.hear(visitor, parse(text), now)
            except BadInput as error:
                self._desk.spoil(visitor)
                refusal = str(error)
            if refusal:
                await self._send(connection, {"type": "refused", "reason": refusal})

    async def _tell(self, connection: Any, visitor: Visitor) -> None:
        with contextlib.suppress(self._websockets.exceptions.ConnectionClosed):
            while True:
                await self._send(connection, {"type": "state", **self._desk.state(visitor, time.monotonic())})
                await asyncio.sleep(1.0 / RATE)

    @staticmethod
    async def _send(connection: Any, message: Mapping[str, Any]) -> None:
        await connection.send(json.dumps(message))


def host_name(netloc: str) -> str:
    """The name or address in ``netloc``, without the port; empty if there is none."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def is_own_name(host: str) -> bool:
    """Whether ``host`` is an address in numbers, or a name that this machine gave itself."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    own = socket.gethostname().lower()
    return host.lower() in {"localhost", own, f"{own}.local"}
