"""A page in a browser: pads for a finger, a mouse or keys, and a deadman that is held all the while.

The rig serves the page itself (`vigil.teleop.web`). One browser drives; others watch, and may stop the arm.
"""

from __future__ import annotations

import time
from dataclasses import replace

from vigil.rig import RigConfig
from vigil.teleop.device import DeviceOptions, Reading, Surroundings
from vigil.teleop.devices.cartesian import CartesianDevice, Controls
from vigil.teleop.settings import REQUEST_ROLES, WebSettings
from vigil.teleop.web.desk import Desk
from vigil.teleop.web.server import WebServer


class WebDevice(CartesianDevice):
    """Ages are told by the steady clock of this machine, in lock step too: hands move in real time."""

    name = "web"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        super().__init__(rig, options)
        settings: WebSettings = rig.teleop
        self._desk = Desk(settings.timeout, options.period)
        self._server = WebServer(
            settings,
            self._desk,
            {
                "rig": rig.name,
                "task": rig.task,
                "arms": [arm.name for arm in rig.arms],
                "pedal": self._beside,
                "speed": settings.speed,
                "turn": settings.turn,
                "timeout": settings.timeout,
            },
        )

    def open(self) -> None:
        self._server.open()

    def close(self) -> None:
        self._server.close()

    def read(self, now: float) -> Controls | None:
        return self._desk.read(time.monotonic())

    def poll(self, now: float, around: Surroundings) -> Reading:
        reading = super().poll(now, around)
        pressed = self._desk.pressed(time.monotonic())  # also of whoever only watches
        self._desk.show(
            {
                "deadman": reading.deadman,
                "measured": around.measured is not None,
                "arm": self._target.arm.name,
                "stuck": self._stuck,
                "authority": "" if around.arm_silent else around.authority,
                "event": around.event,
                "reason": around.reason,
                "blocked_by": around.blocked_by,
                "episode": around.episode,
                "answer": around.answer,
                "answers": around.answers,
            }
        )
        return replace(
            reading,
            hand_back=reading.hand_back or "hand_back" in pressed,
            pressed=frozenset(REQUEST_ROLES) & pressed,
        )

    @property
    def state(self) -> str:
        return f"{self._server.url}, {self._desk.driver or 'nobody'} drives, {super().state}"
