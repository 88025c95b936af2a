"""Device ``web`` without ROS: polled as the node polls it, with browsers that answer every state, as the page does."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from support.rigs import real_rig
from support.wait import wait_for
from vigil.kinematics import CHAINS
from vigil.rig import RigConfig
from vigil.teleop.device import DeviceOptions, Reading, Surroundings
from vigil.teleop.devices.factory import make_device

PERIOD = 0.02
TIMEOUT = 1.0  # a busy machine is no lost browser
STILL = (0.0,) * 6


def free_port() -> int:
    """A port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Browser:
    """One browser; a thread answers the server's states with what the hand does.

    Attributes:
        hand: what it does, but for the echo.
        mute: nothing is answered any more, and the connection stays.
        echo: stamp that is repeated in place of the newest one.
        state, states: the newest state, and how many came.
        answered: stamp of the last one that was answered.
        welcome: what is told once; None if it was not let in.
        refused: reasons of refusals.
    """

    def __init__(self, port: int, name: str = "", token: str = "", **options: Any) -> None:
        self.hand: dict[str, Any] = {"deadman": False, "axes": STILL, "speed": 1.0, "grip": ""}
        self.mute, self.echo = False, None
        self.state: dict[str, Any] = {}
        self.states, self.answered = 0, 0.0
        self.refused: list[str] = []
        options = {"origin": f"http://127.0.0.1:{port}", **options}
        self._connection = connect(f"ws://127.0.0.1:{port}/drive", **options).__enter__()
        self.say(type="hello", name=name, token=token)
        first = json.loads(self._connection.recv(timeout=10))
        self.welcome = first if first["type"] == "welcome" else None
        self.first = first
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            for text in self._connection:
                message = json.loads(text)
                if message["type"] == "refused":
                    self.refused.append(message["reason"])
                elif message["type"] == "state":
                    self.state = message
                    self.states += 1
                    self._answer()

    def _answer(self) -> None:
        echo = self.state["stamp"] if self.echo is None else self.echo
        if self.mute:
            return
        self.answered = echo
        if self.state["you"]:
            self.say(type="hand", echo=echo, **self.hand)
        else:
            self.say(type="here", echo=echo)

    def say(self, **message: Any) -> None:
        """One message."""
        self.send(json.dumps(message))

    def send(self, data: str | bytes) -> None:
        """Whatever it is."""
        self._connection.send(data)

    def drive(self) -> None:
        """Take the seat, and have it."""
        self.say(type="seat", take=True)
        wait_for(lambda: self.state.get("you"))

    def do(self, **hand: Any) -> None:
        """Change what the hand does."""
        self.hand = {**self.hand, **hand}

    def tell(self, **hand: Any) -> None:
        """The same, and say so at once."""
        self.do(**hand)
        self._answer()

    def press(self, button: str) -> None:
        """A button."""
        self.say(type="press", button=button)

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason if the server ended the connection."""
        self._thread.join(10)
        return (
            None if self._thread.is_alive() else (self._connection.close_code, self._connection.close_reason)
        )

    def vanish(self) -> None:
        """The network is gone: the connection ends without a farewell."""
        self.mute = True
        self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def close(self) -> None:
        """As a browser whose tab is closed."""
        self._connection.close()
        self._thread.join(10)


class Served:
    """A device that is polled as the node polls it, and browsers of its page."""

    def __init__(self, rig: RigConfig) -> None:
        self.rig, self.port = rig, rig.teleop.port
        self.device = make_device(rig, DeviceOptions(period=PERIOD))
        self.measured: np.ndarray | None = np.array([rig.home[name] for name in rig.columns])
        self.around: dict[str, Any] = {}
        self.browsers: list[Browser] = []
        self.now = 1.0  # of the node's clock: each poll is one period later, on however busy a machine
        self.device.open()

    def browser(self, *arguments: Any, **options: Any) -> Browser:
        """One that is closed with the device."""
        self.browsers.append(Browser(self.port, *arguments, **options))
        return self.browsers[-1]

    def driver(self, name: str = "") -> Browser:
        """One that has the seat."""
        browser = self.browser(name)
        browser.drive()
        return browser

    def poll(self, deadman: bool | None = None) -> Reading:
        self.now += PERIOD
        return self.device.poll(
            self.now, Surroundings(measured=self.measured, deadman=deadman, **self.around)
        )

    def until(self, condition: Callable[[Reading], bool], timeout: float = 10.0) -> Reading:
        """The first reading that is so, polled at the device's rate."""
        end = time.monotonic() + timeout
        while not condition(reading := self.poll()):
            assert time.monotonic() < end, reading
            time.sleep(PERIOD)
        return reading

    def stays(self, condition: Callable[[Reading], bool], duration: float = 0.3) -> None:
        """Every reading is so."""
        end = time.monotonic() + duration
        while time.monotonic() < end:
            assert condition(self.poll())
            time.sleep(PERIOD)

    def press(self, browser: Browser, button: str) -> Reading:
        """Press it, and give the first reading in which something is pressed."""
        self.poll()  # a device that nobody polls refuses
        browser.press(button)

        def pressed(reading: Reading) -> bool:
            if browser.refused and "not active" in browser.refused[-1]:  # this thread had to wait too long
                browser.refused.pop()
                browser.press(button)
            return bool(reading.pressed) or reading.hand_back

        return self.until(pressed)

    def take_over(self, browser: Browser) -> Reading:
        """Let go and hold the deadman until it has its effect: on a busy machine it may not have been seen released."""

        def held() -> Reading | None:
            for deadman in (False, True):
                browser.do(deadman=deadman)
                self.stays(lambda _: True, 0.15)
            reading = self.poll()
            return reading if reading.deadman else None

        return wait_for(held)

    def tool(self, reading: Reading) -> np.ndarray:
        """Position of the first arm's tool."""
        config = self.rig.arms[0]
        return CHAINS[config.kinematics].forward(reading.positions[:7], config.tool_offset)[0]


@contextlib.contextmanager
def served(folder: Path, arms: tuple[str, ...] = ("franka",), **settings: Any) -> Iterator[Served]:
    """Device ``web`` of a rig whose teleop section says ``settings``."""
    section = {"device": "web", "rate": 50, "port": free_port(), "timeout": TIMEOUT, **settings}
    made = Served(real_rig(folder, section, arms, watchdogs={"operator": 2.0}))
    try:
        yield made
    finally:
        for browser in made.browsers:
            browser.close()
        made.device.close()
