"""The simulated camera: draws its own view of the state that the physics process publishes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vigil.camera.driver import CameraDriver, Frame


class Renderer(Protocol):
    """What `vigil.camera.simulated.SimulatedCamera` offers."""

    def render(self, qpos: np.ndarray, appearance: Sequence[str]) -> np.ndarray:
        """uint8 [H, W, 3]"""

    def render_depth(self, qpos: np.ndarray, appearance: Sequence[str]) -> np.ndarray:
        """uint16 [H, W] mm"""

    def close(self) -> None: ...


class FrameClock:
    """Picks, of a stream of states, those that begin a new frame: the first at or after each multiple of the period.

    So cameras of the same rate in different processes choose the same states.
    """

    def __init__(self, rate: float) -> None:
        """``rate`` [Hz]."""
        self._period = round(1e9 / rate)
        self._last: int | None = None
        self._drawn: int | None = None
        self.passed_over = 0  # frames for which no state came

    def begins_frame(self, stamp: int) -> bool:
        """True if a state stamped ``stamp`` [ns] is due to be drawn.

        A state that was drawn is due again if it comes again: in lock step physics repeats an instant for which a
        frame was lost.
        """
        if stamp == self._drawn:
            return True
        index = stamp // self._period
        # Before the first frame the count starts just before this state: on a multiple it is drawn, else not.
        last = (stamp - 1) // self._period if self._last is None else self._last
        self._last = index
        if index > last:
            self.passed_over += index - last - 1
        if index == last:  # greater in time, less after the clock was set back
            return False
        self._drawn = stamp
        return True


class SimulatedDriver(CameraDriver):
    """Draws the newest state that is due; a state that was overtaken while the last frame was drawn is skipped."""

    def __init__(self, make_renderer: Callable[[], Renderer], rate: float, depth: bool = False) -> None:
        """``make_renderer`` is called in the thread that draws: an OpenGL context belongs to its thread."""
        self._make_renderer = make_renderer
        self._depth = depth
        self._clock = FrameClock(rate)
        self._renderer: Renderer | None = None
        self._wake = threading.Condition()
        self._state: tuple[int, np.ndarray, Sequence[str]] | None = None
        self._overtaken = 0

    def offer(self, stamp: int, qpos: np.ndarray, appearance: Sequence[str]) -> None:
        """Hand over a state of the world; from any thread, returns at once."""
        if not self._clock.begins_frame(stamp):
            return
        with self._wake:
            self._overtaken += self._state is not None
            self._state = (stamp, qpos, appearance)
            self._wake.notify()

    def open(self) -> None:
        self._renderer = self._make_renderer()

    def read(self, timeout: float) -> Frame | None:
        with self._wake:
            self._wake.wait_for(lambda: self._state is not None, timeout)
            state, self._state = self._state, None
        if state is None:
            return None
        stamp, qpos, appearance = state
        rgb = self._renderer.render(qpos, appearance)
        depth = self._renderer.render_depth(qpos, appearance) if self._depth else None
        return Frame(stamp=stamp, rgb=rgb, depth=depth)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    @property
    def skipped(self) -> int:
        return self._overtaken + self._clock.passed_over
