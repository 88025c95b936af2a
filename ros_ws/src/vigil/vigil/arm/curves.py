"""Targets as functions of time, and the cross-fade that joins one to the next without a jump."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

SECOND = 1_000_000_000
"""Nanoseconds. Instants are integers in ns; only differences become float seconds."""


class Curve(Protocol):
    """A target over time."""

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N] at ``instant`` [ns]."""


class Constant:
    """A pose that does not move."""

    def __init__(self, position: np.ndarray) -> None:
        self._position = position
        self._velocity = np.zeros_like(position)

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        return self._position, self._velocity


class Steps:
    """Targets due at regular instants, joined by cubic Hermite pieces through every target.

    Velocities at the targets are central differences (Catmull-Rom). Before the first target and after the last one the
    curve rests there.

    Args:
        start: instant of step 0 [ns].
        step: time between steps [ns].
        positions: [H, N].

    Attributes:
        end: instant of the last step [ns].
    """

    def __init__(self, start: int, step: int, positions: np.ndarray) -> None:
        self._start, self._step = start, step
        self._positions = positions
        self._tangents = np.gradient(positions, axis=0) if len(positions) > 1 else np.zeros_like(positions)
        self._rest = np.zeros(positions.shape[1])
        self.end = start + step * (len(positions) - 1)

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        index, remainder = divmod(instant - self._start, self._step)
        if index < 0:
            return self._positions[0], self._rest
        if index >= len(self._positions) - 1:
            return self._positions[-1], self._rest
        s = remainder / self._step
        p0, p1 = self._positions[index], self._positions[index + 1]
        m0, m1 = self._tangents[index], self._tangents[index + 1]
        rise = p1 - p0
        c2, c3 = 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise
        position = p0 + s * (m0 + s * (c2 + s * c3))
        velocity = (m0 + s * (2 * c2 + 3 * s * c3)) * (SECOND / self._step)
        return position, velocity


def ramp(instant: int, start: int, duration: int) -> float:
    """From 0 at ``start`` to 1 after ``duration`` [ns], smoothly."""
    if instant <= start:
        return 0.0
    if instant >= start + duration:
        return 1.0
    s = (instant - start) / duration
    return s * s * (3 - 2 * s)


class CrossFade:
    """Several curves in order of arrival, each faded in over the ones before it.

    The weight is the smooth step 3 s^2 - 2 s^3, so position and velocity are continuous at both ends of a fade. The
    velocity is that of the curves, weighted in the same way, without what the fade itself adds between curves that lie
    apart: that lasts a moment, and an arm which meets it swings past the new curve. A fade of no length is a switch.
    """

    _DEPTH = 16
    """Curves kept: arrivals that never let a fade end would otherwise pile up."""

    def __init__(self) -> None:
        self._layers: deque[tuple[Curve, int, int]] = deque(maxlen=self._DEPTH)

    def restart(self, curve: Curve) -> None:
        """Forget everything and follow ``curve``."""
        self._layers.clear()
        self._layers.append((curve, 0, 0))

    def add(self, curve: Curve, start: int, duration: int) -> None:
        """Fade to ``curve`` from instant ``start`` over ``duration`` [ns]."""
        self._layers.append((curve, start, duration))

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N] at ``instant`` [ns]; asked for in increasing order."""
        layers = self._layers
        while len(layers) > 1 and instant >= layers[1][1] + layers[1][2]:
            layers.popleft()  # the next one has faded in: nothing is left of this one
        position, velocity = layers[0][0].at(instant)
        for curve, start, duration in list(layers)[1:]:
            weight = ramp(instant, start, duration)
            if weight == 0.0:
                continue
            other, other_velocity = curve.at(instant)
            velocity = velocity + weight * (other_velocity - velocity)
            position = position + weight * (other - position)
        return position, velocity


class Ensemble:
    """The mean of all curves that hold at an instant: temporal ensembling of action chunks.

    Curve k, counted from the oldest, has weight exp(-m k), m = `DECAY` (Zhao et al., "Learning Fine-Grained Bimanual
    Manipulation with Low-Cost Hardware", 2023, section IV-B). Each is faded in when it comes and out before it ends, so that
    neither makes a jump.
    """

    DECAY = 0.01
    _DEPTH = 128

    def __init__(self, fade_out: int) -> None:
        """``fade_out`` [ns]: how long before its end a curve begins to leave."""
        self._fade_out = fade_out
        self._base: Curve = Constant(np.zeros(0))
        self._members: deque[tuple[Steps, int, int]] = deque(maxlen=self._DEPTH)
        self._begin = (0, 0)

    def restart(self, curve: Curve) -> None:
        """Forget everything and follow ``curve``."""
        self._base = curve
        self._members.clear()

    def add(self, curve: Steps, start: int, duration: int) -> None:
        """Take ``curve`` into the mean from instant ``start``, faded in over ``duration`` [ns]."""
        if not self._members:
            self._begin = (start, duration)
        self._members.append((curve, start, duration))

    def at(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N] at ``instant`` [ns]; asked for in increasing order."""
        members = self._members
        while len(members) > 1 and instant >= members[0][0].end:
            members.popleft()
        position, velocity = self._base.at(instant)
        begun = ramp(instant, *self._begin) if members else 0.0
        if begun == 0.0:
            return position, velocity
        if begun == 1.0:
            self._base = Constant(position)  # counts no more: what it was made of need not be asked again
        weights = [
            np.exp(-self.DECAY * k)
            * ramp(instant, start, duration)
            * (1.0 - ramp(instant, curve.end - self._fade_out, self._fade_out))
            for k, (curve, start, duration) in enumerate(members)
        ]
        if not any(weights):  # all have come to their end, where the newest rests
            weights[-1] = 1.0
        shares = begun * np.array(weights) / sum(weights)
        states = np.array([curve.at(instant) for curve, _, _ in members])
        mean = np.tensordot(shares, states, axes=1)
        return (1 - begun) * position + mean[0], (1 - begun) * velocity + mean[1]
