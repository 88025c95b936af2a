"""Execution of the policy's chunks: which ones may move the arm, and the target they make at an instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND, Constant, CrossFade, Ensemble, Steps
from vigil.rig import Seam

LOOKAHEAD = 0.1
"""[s] The arm is steered to where the chunk will be then: two of its steps. With less it swings past where one chunk gives
way to another that lies apart; with more it cuts corners."""
OVERSHOOT = 0.25
"""A target this share of a column's range outside its limits is clamped; further out the chunk is broken."""
FUTURE_TOLERANCE = 20_000_000
"""[ns] Clocks of two processes may disagree by this much; a later stamp is a fault."""
LONGEST_STEP = 0.5
"""[s] A longer step is not control any more."""


@dataclass(frozen=True)
class Chunk:
    """What ``ActionChunk`` carries. ``positions``: H * N values, row-major, columns as in ``names``."""

    stamp: int
    names: Sequence[str]
    step_dt: float
    horizon: int
    positions: np.ndarray
    bundle: str = ""


class Late(Refused):
    """A chunk that is out of date: passed over, but nothing is wrong with its sender."""


class ChunkTracker:
    """Follows the newest chunk. Step i is due at stamp + i * step_dt; late steps are skipped, never replayed.

    Args:
        columns: the arm's columns.
        period: how often a chunk is expected [s]; a chunk must reach further than that.
        seam: how one chunk follows another: by a cross-fade, at once, or as the mean of all that hold.
        fade: of a cross-fade, or of a chunk into the mean [s].
        start: cross-fade from the measured pose to the first chunk, and from one policy's chunk to another's [s].
    """

    def __init__(
        self, columns: Columns, period: float, seam: Seam = "blend", fade: float = 0.05, start: float = 0.3
    ) -> None:
        self._columns = columns
        self._period = period
        self._seam = 0 if seam == "switch" else int(fade * SECOND)
        self._start = int(start * SECOND)
        self._slack = OVERSHOOT * (columns.upper - columns.lower)
        self._averages = seam == "ensemble"
        self._curve = self._make_curve()
        self._bundle = ""
        self._not_before = 0
        self._step_dt: float | None = None
        self._stamp: int | None = None
        self._end = 0

    def _make_curve(self) -> Ensemble | CrossFade:
        return Ensemble(self._seam) if self._averages else CrossFade()

    def restart(self, position: np.ndarray, instant: int) -> None:
        """Flush all chunks; rest at ``position`` [N] until one comes that is stamped after ``instant`` [ns]."""
        self._curve.restart(Constant(position))
        self._not_before = instant
        self._step_dt = self._stamp = None
        self._end = 0

    def wait_at(self, position: np.ndarray) -> None:
        """Move the pose from which the first chunk will be faded in; [N]. No chunk may be in force."""
        self._curve.restart(Constant(position))

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk was accepted since the last `restart`."""
        return self._stamp is not None

    def stale(self, instant: int) -> bool:
        """Whether the accepted chunk's horizon has passed at ``instant`` [ns]."""
        return self.has_chunk and instant > self._end

    def check(self, chunk: Chunk, now: int) -> np.ndarray:
        """The chunk's targets [H, N] in column order, clamped into the limits.

        Raises:
            Late: stamped before what is in force, or past its own horizon.
            Refused: anything else that must not move the arm; names what was passed and what is allowed.
        """
        columns = self._columns
        order = columns.order(chunk.names)
        values, horizon = np.asarray(chunk.positions, float), chunk.horizon
        if horizon < 2 or values.size != horizon * len(columns):
            raise Refused(
                f"chunk has {values.size} positions, its shape is [{horizon}, {len(columns)}]: needed "
                f"{horizon * len(columns)} and at least 2 steps"
            )
        values = values.reshape(horizon, len(columns))[:, order]
        if not np.isfinite(values).all():
            raise Refused(f"chunk: {columns.describe_non_finite(values)}")
        outside = (values < columns.lower - self._slack) | (values > columns.upper + self._slack)
        if outside.any():
            step, column = np.argwhere(outside)[0]
            raise Refused(
                f"chunk step {step}: {columns.names[column]} = {values[step, column]:.4g} is far outside "
                f"[{columns.lower[column]}, {columns.upper[column]}]"
            )
        self._check_time(chunk, now)
        return np.clip(values, columns.lower, columns.upper)

    def _check_time(self, chunk: Chunk, now: int) -> None:
        step_dt = chunk.step_dt
        if not (0.0 < step_dt <= LONGEST_STEP) or step_dt * chunk.horizon < self._period:
            raise Refused(
                f"chunk has step_dt {step_dt} s over {chunk.horizon} steps: needed 0 < step_dt <= {LONGEST_STEP} and "
                f"a horizon of at least {self._period} s"
            )
        if self.has_chunk and chunk.bundle == self._bundle and step_dt != self._step_dt:
            raise Refused(
                f"chunk has step_dt {step_dt} s, the ones before had {self._step_dt} s: hold and engage"
            )
        if chunk.stamp > now + FUTURE_TOLERANCE:
            raise Refused(f"chunk is stamped {(chunk.stamp - now) / SECOND:.3f} s in the future")
        if now > chunk.stamp + int(step_dt * SECOND) * chunk.horizon:
            raise Late(f"chunk is {(now - chunk.stamp) / SECOND:.3f} s old, past its own horizon")

    def accept(self, chunk: Chunk, now: int, aim: int) -> None:
        """Take a chunk over.

        Args:
            chunk: the chunk.
            now: instant of receipt [ns].
            aim: instant of the next target that will be asked for [ns]; the cross-fade starts there.

        Raises:
            Late, Refused: as `check`; also stamped before `restart` or before the chunk in force (Late).
        """
        positions = self.check(chunk, now)
        if chunk.stamp <= self._not_before:
            raise Late("chunk was observed before the policy was given control")
        if self._stamp is not None and chunk.stamp <= self._stamp:
            raise Late("chunk is not newer than the one in force")
        step = round(chunk.step_dt * SECOND)
        fade = self._seam if self.has_chunk else self._start
        if self.has_chunk and chunk.bundle != self._bundle:
            # Another policy: what the arm was on its way to is left within the time that a first chunk gets, and the chunks
            # of the old one have no part in what follows.
            left, self._curve, fade = self._curve, self._make_curve(), self._start
            self._curve.restart(left)
        self._curve.add(Steps(chunk.stamp, step, positions), aim, fade)
        self._stamp, self._step_dt, self._bundle = chunk.stamp, chunk.step_dt, chunk.bundle
        self._end = chunk.stamp + step * chunk.horizon

    def target(self, instant: int) -> tuple[np.ndarray, np.ndarray]:
        """Position [N] and velocity [N] due at ``instant`` [ns]."""
        return self._curve.at(instant)
