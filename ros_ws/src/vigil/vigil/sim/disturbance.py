"""Slowly varying Cartesian noise on executed commands, so that demonstrations show how to come back (DART, Laskey
et al. 2017: noise in the supervisor's executed action, clean action as the label)."""

from __future__ import annotations

import numpy as np

from vigil.errors import VigilError

LARGEST = 0.05
_PARTS = 4
_FREQUENCIES = (0.15, 0.9)  # [Hz]
_RAMP = 0.8  # [s] from nothing to full strength after reset
# Share of the amplitude by axis: x, y, z in m/m, then rotations in rad/m. Tilting and height are kept small: the finger
# tips pass the table at a centimetre.
_WEIGHTS = np.array([1.0, 1.0, 0.5, 1.0, 1.0, 5.0])


class CartesianDisturbance:
    """A sum of sines per axis, with random frequencies and phases; ``amplitude`` is each axis' root mean square."""

    def __init__(self, amplitude: float, rng: np.random.Generator) -> None:
        if not 0.0 <= amplitude <= LARGEST:
            raise VigilError(f"disturbance is {amplitude}; it must lie in [0, {LARGEST}] m")
        self.amplitude = amplitude
        self._omega = 2 * np.pi * rng.uniform(*_FREQUENCIES, (6, _PARTS))
        self._phase = rng.uniform(0, 2 * np.pi, (6, _PARTS))
        self._scale = amplitude * _WEIGHTS * np.sqrt(2.0 / _PARTS)

    def sample(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Offset [6] (m, rad) and its rate [6] (m/s, rad/s) at ``time`` seconds after reset."""
        ramp = min(time / _RAMP, 1.0)
        growth = 1.0 / _RAMP if time < _RAMP else 0.0
        angle = self._omega * time + self._phase
        wave = self._scale * np.sin(angle).sum(axis=1)
        rate = self._scale * (self._omega * np.cos(angle)).sum(axis=1)
        return ramp * wave, ramp * rate + growth * wave
