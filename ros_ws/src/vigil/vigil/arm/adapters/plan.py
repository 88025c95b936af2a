"""A command to the hardware, before it is written as the messages of one kind of controller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The next setpoint, and the stop that follows it if no newer plan arrives.

    Attributes:
        stamp: instant from which ``times`` count [ns].
        times: [P] s, increasing; the first is one control period.
        positions: [P, N] rad, m; columns as in the rig file, the gripper last.
        velocities: [P, N] per second; the last row is 0.
    """

    stamp: int
    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
