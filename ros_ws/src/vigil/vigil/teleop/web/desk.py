"""Who drives, what this hand does, and what the page shows. No sockets here.

A state that is sent to a browser has a stamp, and the browser's answer repeats it. So the age of what a hand does is known by
one clock, the server's, and covers the whole way: a network that stalls, a page that sleeps, messages that were kept
somewhere and arrive in a bunch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigil.teleop.devices.cartesian import Controls
from vigil.teleop.web.messages import OF_ALL, Hand, Hello, Here, Press, Seat

SEAT_SILENCE = 5.0  # [s] without a sign of the driver's browser after which the seat is free
PULSE = 0.2  # [s] that a press of a button lasts once it was read: some messages of a lossy topic may be lost
ASLEEP = 1.0  # [s] since the last poll after which nobody reads what a hand does


@dataclass(eq=False)
class Visitor:
    """One browser.

    Attributes:
        age: of its last answer: the way there and back [s]; None before the first.
    """

    name: str
    address: str
    age: float | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address


class Desk:
    """One seat, and the visitors around it.

    Used by the server's thread and by the node's; never waits for either. ``now`` is of one steady clock [s].

    Args:
        timeout: age of what a hand does from which on it counts as let go [s].
        period: between two polls [s].
    """

    def __init__(self, timeout: float, period: float) -> None:
        self._timeout, self._pulse = timeout, max(PULSE, 2 * period)
        self._lock = threading.Lock()
        self._driver: Visitor | None = None
        self._hand: Hand | None = None
        self._gone = True  # at some time since the last poll nothing was known of a hand
        self._let_go = False  # at some time since the last poll
        self._heard = self._polled = -np.inf
        self._pressed: dict[str, float] = {}  # when, by button; not read yet
        self._pulses: dict[str, float] = {}  # until when, by button
        self._shown: Mapping[str, Any] = {}

    # The server's side ------------------------------------------------------------------------------------------

    def hear(self, visitor: Visitor, message: Hello | Seat | Here | Hand | Press, now: float) -> str:
        """A visitor's message. Gives why it is refused; empty if it is not."""
        with self._lock:
            match message:
                case Seat(take=True):
                    return self._sit(visitor, now)
                case Seat():
                    self._leave(visitor)
                    return ""
                case Press():
                    return self._press(visitor, message.button, now)
                case Here() | Hand():
                    return self._answer(visitor, message, now)
            return "said hello twice"

    def spoil(self, visitor: Visitor) -> None:
        """It said something that cannot be used: if it drives, it has let go."""
        with self._lock:
            if visitor is self._driver:
                self._release()

    def leave(self, visitor: Visitor) -> None:
        """Its connection has ended."""
        with self._lock:
            self._leave(visitor)

    def state(self, visitor: Visitor, now: float) -> dict[str, Any]:
        """What this visitor's page shows."""
        with self._lock:
            self._expire(now)
            driver = self._driver
            return {
                **self._shown,
                "stamp": now,
                "age": visitor.age,
                "live": self._live(now),
                "driver": "" if driver is None else str(driver),
                "you": visitor is driver,
            }

    def _sit(self, visitor: Visitor, now: float) -> str:
        self._expire(now)
        if self._driver is visitor:
            return ""
        if self._driver is not None:
            return f"{self._driver} drives: only they can give up the seat"
        self._driver, self._heard = visitor, now
        self._release()
        return ""

    def _leave(self, visitor: Visitor) -> None:
        if visitor is self._driver:
            self._driver = None
            self._release()

    def _release(self) -> None:
        self._hand, self._gone, self._let_go = None, True, False

    def _expire(self, now: float) -> None:
        if self._driver is not None and now - self._heard > SEAT_SILENCE:
            self._leave(self._driver)

    def _answer(self, visitor: Visitor, message: Here | Hand, now: float) -> str:
        if message.echo > now:
            if visitor is self._driver:
                self._release()
            return f"echo {message.echo} is later than any stamp that was sent"
        visitor.age = now - message.echo
        if isinstance(message, Here):
            return ""
        if visitor is not self._driver:
            return "you do not drive"
        self._hand, self._heard = message, now
        self._let_go |= not message.deadman
        return ""

    def _press(self, visitor: Visitor, button: str, now: float) -> str:
        if visitor is not self._driver and button not in OF_ALL:
            return f"{button} is for whoever drives"
        if not self._live(now):
            beside = ": press the hardware's own e-stop" if button == "estop" else ""
            return f"{button}: the teleop node is not active{beside}"
        self._pressed[button] = now
        return ""

    def _live(self, now: float) -> bool:
        return now - self._polled <= ASLEEP

    # The device's side ------------------------------------------------------------------------------------------

    def read(self, now: float) -> Controls | None:
        """What the driver's hand does; None if nobody drives, or what is known of it is too old."""
        with self._lock:
            self._polled = now
            self._begin_pulses(now)
            self._expire(now)
            hand, gone, self._gone = self._hand, self._gone, False
            if hand is None or gone or now - hand.echo > self._timeout:
                return None  # also once between two drivers: what the second one holds was not seen released
            let_go, self._let_go = self._let_go, False
            held = {hand.grip} - {""}
            if hand.deadman and not let_go:  # let go and pressed again between two polls: it was let go
                held.add("deadman")
            if now < self._pulses.get("switch", -np.inf):
                held.add("switch")
            return Controls(np.array(hand.axes), held, hand.speed)

    def _begin_pulses(self, now: float) -> None:
        """A pulse begins when it is read, so that a poll that came late misses none. Too late, and only the e-stop counts."""
        for button, since in self._pressed.items():
            if button == "estop" or now - since <= ASLEEP:
                self._pulses[button] = now + self._pulse
        self._pressed.clear()

    def pressed(self, now: float) -> frozenset[str]:
        """Buttons that were pressed before the last `read`, for a moment."""
        with self._lock:
            return frozenset(button for button, until in self._pulses.items() if now < until)

    def show(self, shown: Mapping[str, Any]) -> None:
        """What all pages show from now on; JSON."""
        with self._lock:
            self._shown = shown

    @property
    def driver(self) -> str:
        """Who drives; empty if nobody does."""
        with self._lock:
            return "" if self._driver is None else str(self._driver)
