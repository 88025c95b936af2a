"""The safety envelope: every command of every source passes it, one control period at a time.

Each column follows its target by a jerk-limited trajectory (ruckig). Ruckig bounds velocity, acceleration and
jerk; position limits are kept by an invariant: from every setpoint that is given out, the jerk-limited stop stays
inside the position limits. A step that would break it is replaced by the next step of that stop, so a safe setpoint
always exists and a stop never needs a new calculation. The tool's workspace is kept in the same way, by the stop of all columns
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Trajectory

from vigil.arm.columns import Columns, Refused
from vigil.arm.workspace import Workspace
from vigil.rig import JointLimits

HEADROOM = 0.999
"""Share of velocity, acceleration and jerk that is used: rounding must not cross a limit."""
PLAN_POINTS = 8
"""Of a stop: as it is sent, and at which the tool has to be in its workspace."""
SHORTEST_PLAN = 0.1
"""[s] A plan reaches at least this far: a controller refuses one that lies in the past when it arrives."""


@dataclass(frozen=True)
class Setpoint:
    """State of all columns; [N] each, rad or m, per second, per second squared."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray


class _Column:
    """One column: its setpoint is where its stop is ``elapsed`` seconds after ``origin``.

    Stops are planned from position 0: with a velocity as goal ruckig counts position 0 among the extrema of any
    trajectory, which is then the start and does no harm.
    """

    def __init__(self, limits: JointLimits, period: float) -> None:
        self._limits = limits
        self._period = period
        self._ruckig = Ruckig(1)
        self._reach = Trajectory(1)
        self._stop, self._next_stop = Trajectory(1), Trajectory(1)
        self._origin, self._elapsed = 0.0, 0.0
        self._to_target = self._parameters(limits)
        self._to_rest = self._parameters(limits)
        self._to_rest.control_interface = ControlInterface.Velocity
        self._to_rest.target_velocity = [0.0]
        self.position, self.velocity, self.acceleration = 0.0, 0.0, 0.0
        self._proposed: tuple[float, float, float] | None = None
        self._speed = HEADROOM * limits.velocity  # of targets, and on the way to them
        self.anchor(0.5 * (limits.lower + limits.upper), 0.0, 0.0)

    @staticmethod
    def _parameters(limits: JointLimits) -> InputParameter:
        parameters = InputParameter(1)
        parameters.max_velocity = [HEADROOM * limits.velocity]
        parameters.max_acceleration = [HEADROOM * limits.acceleration]
        parameters.max_jerk = [HEADROOM * limits.jerk]
        return parameters

    def anchor(self, position: float, velocity: float, acceleration: float) -> None:
        """Start anew at a state; motion that could not stop inside the limits is dropped."""
        limits = self._limits
        position = self._clamped(position)
        speed = HEADROOM * limits.velocity
        velocity = min(max(velocity, -speed), speed)
        acceleration = min(max(acceleration, -HEADROOM * limits.acceleration), HEADROOM * limits.acceleration)
        # The velocity still to come while the acceleration is run down counts as well.
        peak = velocity + acceleration * abs(acceleration) / (2 * HEADROOM * limits.jerk)
        if abs(peak) > speed:
            acceleration = 0.0
        if not self._can_stop(position, velocity, acceleration):
            velocity = acceleration = 0.0
            # From rest the stop is no motion at all; ruckig does not fail on it.
            self._can_stop(position, velocity, acceleration)
        self._take(position, velocity, acceleration)

    def slow_down(self, share: float) -> None:
        """Use ``share`` of the velocity limit."""
        self._speed = share * HEADROOM * self._limits.velocity
        self._to_target.max_velocity = [self._speed]

    def propose(self, position: float, velocity: float, ahead: float) -> None:
        """Plan one period towards a target that is due ``ahead`` seconds from now; `take` or `brake` follows."""
        self._proposed = None
        limits, to_target = self._limits, self._to_target
        inside, speed = self._clamped(position), self._speed
        to_target.minimum_duration = ahead
        to_target.target_position = [inside]
        to_target.target_velocity = [min(max(velocity, -speed), speed) if inside == position else 0.0]
        to_target.current_position = [self.position]
        to_target.current_velocity = [self.velocity]
        to_target.current_acceleration = [self.acceleration]
        try:
            self._ruckig.calculate(to_target, self._reach)
            (position,), (velocity,), (acceleration,) = self._reach.at_time(self._period)
        except RuckigError:
            return
        if abs(velocity) <= limits.velocity and self._can_stop(position, velocity, acceleration):
            self._proposed = (position, velocity, acceleration)

    def take(self) -> None:
        """Advance one period as proposed, or brake if nothing was possible."""
        if self._proposed is None:
            self.brake()
        else:
            self._take(*self._proposed)

    def brake(self) -> None:
        """Advance one period along the stop."""
        self._elapsed += self._period
        (travelled,), (self.velocity,), (self.acceleration,) = self._stop.at_time(self._elapsed)
        self.position = self._clamped(self._origin + travelled)

    def _can_stop(self, position: float, velocity: float, acceleration: float) -> bool:
        """Plan the stop from a state; False if it leaves the position limits or cannot be planned."""
        self._to_rest.current_velocity = [velocity]
        self._to_rest.current_acceleration = [acceleration]
        try:
            self._ruckig.calculate(self._to_rest, self._next_stop)
        except RuckigError:
            return False
        (extrema,) = self._next_stop.position_extrema
        (end,), _, _ = self._next_stop.at_time(self._next_stop.duration)
        limits = self._limits
        return (
            position + min(extrema.min, end) >= limits.lower
            and position + max(extrema.max, end) <= limits.upper
        )

    def _take(self, position: float, velocity: float, acceleration: float) -> None:
        self._stop, self._next_stop = self._next_stop, self._stop
        self._origin, self._elapsed = position, 0.0
        self.position, self.velocity, self.acceleration = position, velocity, acceleration

    def _clamped(self, position: float) -> float:
        """The stop's end is inside the limits but for rounding."""
        return min(max(position, self._limits.lower), self._limits.upper)

    @property
    def stop(self) -> Stop:
        """The stop from the setpoint."""
        return Stop(self._stop, self._origin, self._elapsed, self._clamped)

    @property
    def proposed_stop(self) -> Stop:
        """The stop from what `take` would make the setpoint."""
        if self._proposed is None:
            return Stop(self._stop, self._origin, self._elapsed + self._period, self._clamped)
        return Stop(self._next_stop, self._proposed[0], 0.0, self._clamped)


@dataclass(frozen=True)
class Stop:
    """Coming to rest: a trajectory from position 0, of which ``elapsed`` seconds are over."""

    trajectory: Trajectory
    origin: float
    elapsed: float
    clamped: Callable[[float], float]

    @property
    def time_left(self) -> float:
        """Seconds until rest; 0 at rest."""
        return max(self.trajectory.duration - self.elapsed, 0.0)

    def at(self, times: Sequence[float]) -> list[tuple[float, float]]:
        """Positions and velocities, each of ``times`` [s] from now."""
        trajectory, origin, clamped = self.trajectory, self.origin, self.clamped
        elapsed, duration = self.elapsed, trajectory.duration
        states = []
        for ahead in times:
            (travelled,), (velocity,), _ = trajectory.at_time(min(elapsed + ahead, max(elapsed, duration)))
            states.append((clamped(origin + travelled), velocity if elapsed + ahead < duration else 0.0))
        return states

    @property
    def end(self) -> float:
        """Position at rest."""
        ((position, _),) = self.at((self.time_left,))
        return position


Stops = tuple[np.ndarray, np.ndarray, np.ndarray]


class Envelope:
    """Position, velocity, acceleration and jerk limits of N columns, kept at every control period.

    Args:
        columns: names and limits.
        period: control period [s]; every call of `track` or `brake` advances the setpoint by it.
        workspace: limits of the tool; none if left out.

    Attributes:
        speed: share of the velocity limits that is used.
        held_back: why the newest target was not followed, in words; empty if it was.
    """

    def __init__(self, columns: Columns, period: float, workspace: Workspace | None = None) -> None:
        self.columns = columns
        self.period = period
        self.workspace = workspace
        self.speed = 1.0
        self.held_back = ""
        self._columns = [_Column(limits, period) for limits in columns.limits]
        self._plan: Stops | None = None  # of the setpoint, where it is known already

    @property
    def setpoint(self) -> Setpoint:
        """The newest setpoint."""
        states = np.array([(c.position, c.velocity, c.acceleration) for c in self._columns])
        return Setpoint(states[:, 0], states[:, 1], states[:, 2])

    @property
    def at_rest(self) -> bool:
        """True when every column has come to rest."""
        return all(column.stop.time_left == 0.0 for column in self._columns)

    @property
    def rest_position(self) -> np.ndarray:
        """[N] where the columns come to rest if they brake from now on."""
        return np.array([column.stop.end for column in self._columns])

    def anchor(
        self, position: np.ndarray, velocity: np.ndarray | None = None, acceleration: np.ndarray | None = None
    ) -> None:
        """Set the setpoint to a state [N] (clamped into the limits), at rest unless told.

        Raises:
            Refused: not finite or not [N]; the setpoint is unchanged.
        """
        zeros = np.zeros(len(self.columns))
        states = [self._checked(x, what) for x, what in (
            (position, "anchor position"),
            (zeros if velocity is None else velocity, "anchor velocity"),
            (zeros if acceleration is None else acceleration, "anchor acceleration"),
        )]  # fmt: skip
        self._plan = None
        for column, p, v, a in zip(self._columns, *(s.tolist() for s in states), strict=True):
            column.anchor(p, v, a)

    def slow_down(self, share: float) -> None:
        """From now on use ``share`` of the velocity limits, of joints and tool. It may get slower, never faster again.

        Raises:
            Refused: not above 0, or more than what is in force.
        """
        if not 0.0 < share <= self.speed:
            raise Refused(
                f"speed {share:g} is refused: at run time it may be lowered, to more than 0 and at most {self.speed:g}, what "
                "is in force; restart the arm node for more"
            )
        self.speed = share
        for column in self._columns:
            column.slow_down(share)
        if self.workspace is not None:
            self.workspace.slow_down(share)

    def track(self, position: np.ndarray, velocity: np.ndarray, ahead: float) -> Setpoint:
        """Advance one period towards a target [N] that is due ``ahead`` seconds after the current setpoint.

        The target may lie anywhere; the setpoint stays inside the limits. Some periods of ``ahead`` make the motion calm:
        the next period's target, chased in minimal time, makes a joint buzz.

        Raises:
            Refused: not finite or not [N]; the setpoint is unchanged.
        """
        position = self._checked(position, "target position")
        velocity = self._checked(velocity, "target velocity")
        if self.workspace is not None:
            inside = np.clip(position, self.columns.lower, self.columns.upper)
            velocity, position = np.where(inside == position, velocity, 0.0), inside
            position, velocity = self.workspace.within(
                (self._position, self._velocity), (position, velocity), ahead
            )
        for column, p, v in zip(self._columns, position.tolist(), velocity.tolist(), strict=True):
            column.propose(p, v, ahead)
        self._plan = _plan([column.proposed_stop for column in self._columns], self.period)
        self.held_back = "" if self.workspace is None else self._forbidden(*self._plan)
        if self.held_back:
            return self.brake()
        for column in self._columns:
            column.take()
        return self.setpoint

    def _forbidden(self, times: np.ndarray, positions: np.ndarray, velocities: np.ndarray) -> str:
        """Why the workspace forbids a plan that begins a period from now, in words; empty if it does not."""
        return self.workspace.forbids(
            np.concatenate([[0.0], times + self.period]),
            np.vstack([self._position, positions]),
            velocities,
        )

    @property
    def _position(self) -> np.ndarray:
        return np.array([column.position for column in self._columns])

    @property
    def _velocity(self) -> np.ndarray:
        return np.array([column.velocity for column in self._columns])

    def brake(self) -> Setpoint:
        """Advance one period of a stop inside the limits."""
        self._plan = None
        for column in self._columns:
            column.brake()
        return self.setpoint

    def stop_plan(self) -> Stops:
        """The setpoint and the stop from it, for a controller that must come to rest if nothing follows.

        Returns:
            times [`PLAN_POINTS`] s after the setpoint (the first is 0), positions [`PLAN_POINTS`, N], velocities
            [`PLAN_POINTS`, N]; the last velocity is 0.
        """
        if self._plan is None:
            self._plan = _plan([column.stop for column in self._columns], self.period)
        times, positions, velocities = self._plan
        # Exact where the trajectory's own arithmetic is not.
        positions[0], velocities[0] = self._position, self._velocity
        return times, positions, velocities

    def _checked(self, values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
        values = np.asarray(values, float)
        if values.shape != (len(self.columns),):
            raise Refused(f"{what} has shape {values.shape}, needed ({len(self.columns)},)")
        if not np.isfinite(values).all():
            raise Refused(f"{what}: {self.columns.describe_non_finite(values)}")
        return values


def _plan(stops: Sequence[Stop], period: float) -> Stops:
    """Times [P] s from now on until all rest, positions and velocities [P, N]."""
    duration = max(*(stop.time_left for stop in stops), SHORTEST_PLAN)
    # One point after the first period: until then velocities may still rise, as accelerations are run down.
    times = np.concatenate([[0.0], np.linspace(period, duration, PLAN_POINTS - 1)])
    ahead = times.tolist()
    states = np.array([stop.at(ahead) for stop in stops])
    return times, states[:, :, 0].T.copy(), states[:, :, 1].T.copy()
