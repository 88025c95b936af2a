"""No sequence of targets makes the envelope give out a setpoint outside the limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.hostile import EPS, PERIOD, assert_inside, hostile_targets
from vigil.arm.columns import Columns, Refused
from vigil.arm.envelope import Envelope
from vigil.rig import JointLimits, load_rig

AHEAD = 0.05


@pytest.fixture(scope="module")
def columns():
    return Columns.of(load_rig("franka_sim"))


@pytest.fixture
def envelope(columns):
    made = Envelope(columns, PERIOD)
    made.anchor(0.5 * (columns.lower + columns.upper))
    return made


def run(envelope, targets):
    positions = [envelope.setpoint.position]
    for position, velocity in targets:
        try:
            positions.append(envelope.track(position, velocity, AHEAD).position)
        except Refused:
            positions.append(envelope.brake().position)
    return positions


@pytest.mark.parametrize("seed", range(4))
def test_hostile_targets_never_leave_the_limits(envelope, columns, seed):
    positions = run(envelope, hostile_targets(columns, np.random.default_rng(seed), 12_000))
    assert_inside(columns, positions)
    assert np.ptp(positions, axis=0) == pytest.approx(columns.upper - columns.lower, rel=0.05), (
        "the fuzz reached both ends of every range"
    )


targets = st.lists(
    st.tuples(st.floats(width=64), st.floats(width=64), st.integers(1, 40)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(targets)
def test_any_sequence_of_floats(columns, sequence):
    envelope = Envelope(columns, PERIOD)
    n = len(columns)
    steps = [(np.full(n, p), np.full(n, v)) for p, v, times in sequence for _ in range(times)]
    assert_inside(columns, run(envelope, steps))


def test_follows_a_smooth_target_closely_and_quietly(envelope, columns):
    """Chasing each target in minimal time would make the joint buzz: the jerk must stay near the target's own."""
    start = envelope.setpoint.position
    times = np.arange(400) * PERIOD
    rate = 2 * np.pi * 0.5

    def target(t):
        return start + 0.3 * span * (1 - np.cos(rate * t)), 0.3 * span * rate * np.sin(rate * t)

    span = np.where(np.arange(len(columns)) < 7, 1.0, 0.02)
    positions = np.array([envelope.track(*target(t + AHEAD), AHEAD).position for t in times])
    wanted = np.array([target(t + PERIOD)[0] for t in times])
    settled = slice(50, None)
    assert np.abs(positions - wanted)[settled].max() < 2e-3
    jerk, own = (np.diff(x[settled], 3, axis=0) / PERIOD**3 for x in (positions, wanted))
    assert (jerk.std(axis=0) < 2 * own.std(axis=0) + 1.0).all()


def test_a_stop_decelerates_inside_the_limits(envelope, columns):
    positions = [envelope.setpoint.position]
    fast = columns.upper, columns.velocity
    for _ in range(35):
        positions.append(envelope.track(*fast, AHEAD).position)
    assert not envelope.at_rest
    promised = envelope.rest_position
    times, plan, speeds = envelope.stop_plan()
    assert times[0] == 0 and (np.diff(times) >= PERIOD - EPS).all() and not speeds[-1].any()
    assert plan[0] == pytest.approx(positions[-1]) and plan[-1] == pytest.approx(promised)
    while not envelope.at_rest:
        positions.append(envelope.brake().position)
    assert_inside(columns, positions)
    assert positions[-1] == pytest.approx(promised, abs=1e-9)
    slowest = columns.velocity / columns.acceleration + columns.acceleration / columns.jerk
    assert (len(positions) - 36) * PERIOD <= slowest.max() + 3 * PERIOD, "as short as the limits allow"
    assert envelope.brake().position == pytest.approx(promised), "and stays there"


@pytest.mark.parametrize("column", [0, 3, 7])
def test_starts_outside_the_limits_without_raising(envelope, columns, column):
    """Noise puts a measured pose beyond a limit, or a velocity where no stop fits any more."""
    position = 0.5 * (columns.lower + columns.upper)
    position[column] = columns.upper[column] + 1e-3
    velocity = np.zeros(len(columns))
    velocity[column] = 1.5 * columns.velocity[column]
    acceleration = np.zeros(len(columns))
    acceleration[column] = 2 * columns.acceleration[column]
    envelope.anchor(position, velocity, acceleration)
    positions = [envelope.setpoint.position]
    positions += [envelope.brake().position for _ in range(60)]
    positions += run(envelope, [(position + 1, velocity)] * 60)
    assert_inside(columns, positions)


def test_anchoring_in_motion_keeps_the_motion(envelope, columns):
    for _ in range(20):
        before = envelope.track(columns.upper, 0.5 * columns.velocity, AHEAD)
    envelope.anchor(before.position, before.velocity, before.acceleration)
    positions = [before.position - PERIOD * before.velocity, before.position]
    positions.append(envelope.brake().position)
    assert np.diff(positions, 2, axis=0) / PERIOD**2 == pytest.approx(
        np.broadcast_to(before.acceleration, (1, len(columns))), abs=10.5
    )


@pytest.mark.parametrize("bad", [[np.nan] * 8, [0.0] * 7 + [np.inf], [0.0] * 7, [[0.0] * 8]])
def test_refuses_what_is_not_a_target(envelope, bad):
    before = envelope.setpoint
    with pytest.raises(Refused, match=r"finite|shape"):
        envelope.track(bad, np.zeros(8), AHEAD)
    with pytest.raises(Refused, match=r"finite|shape"):
        envelope.track(np.zeros(8), bad, AHEAD)
    with pytest.raises(Refused, match=r"finite|shape"):
        envelope.anchor(bad)
    assert np.array_equal(envelope.setpoint.position, before.position)


def test_tiny_limits_do_not_break_the_solver():
    columns = Columns(
        {"slow": JointLimits(lower=-1e-3, upper=1e-3, velocity=1e-3, acceleration=1e-2, jerk=1e-1)}, ()
    )
    envelope = Envelope(columns, PERIOD)
    rng = np.random.default_rng(1)
    assert_inside(columns, run(envelope, hostile_targets(columns, rng, 2000)))
