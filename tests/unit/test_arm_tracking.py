"""Chunks: when each step is due, how two are joined, and which ones are refused."""

from dataclasses import replace

import numpy as np
import pytest

from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND, Constant, CrossFade, Steps
from vigil.arm.tracking import Chunk, ChunkTracker, Late
from vigil.rig import load_rig

STEP_DT, HORIZON, PERIOD = 0.05, 16, 0.2
STEP = int(STEP_DT * SECOND)
START = 1_000 * SECOND


@pytest.fixture(scope="module")
def columns():
    return Columns.of(load_rig("franka_sim"))


@pytest.fixture
def home(columns):
    return 0.5 * (columns.lower + columns.upper)


@pytest.fixture
def tracker(columns, home):
    made = ChunkTracker(columns, PERIOD)
    made.restart(home, START)
    return made


def make(columns, positions, stamp, step_dt=STEP_DT):
    return Chunk(stamp, columns.names, step_dt, len(positions), np.asarray(positions).ravel())


def ramp(home, slope=0.02, steps=HORIZON):
    positions = np.tile(home, (steps, 1))
    positions[:, :7] += slope * np.arange(steps)[:, None]
    return positions


def settled(tracker, chunk):
    """Accept ``chunk`` and let every fade end before its own stamp counts."""
    tracker.accept(chunk, chunk.stamp, chunk.stamp - 2 * SECOND)


def test_step_i_is_due_at_stamp_plus_i_steps(tracker, columns, home):
    positions = ramp(home) + 0.01 * np.random.default_rng(0).normal(size=(HORIZON, 8)) * (np.arange(8) < 7)
    stamp = START + 7
    settled(tracker, make(columns, positions, stamp))
    for i in range(HORIZON):
        assert tracker.target(stamp + i * STEP)[0] == pytest.approx(positions[i], abs=1e-12)


def test_late_steps_are_skipped_not_replayed(tracker, columns, home):
    """Complaint 2: a chunk that arrives late goes on where it is due now."""
    positions, stamp = ramp(home), START + 1
    now = stamp + 5 * STEP
    tracker.accept(make(columns, positions, stamp), now, now - SECOND)
    assert tracker.target(now)[0] == pytest.approx(positions[5])
    assert tracker.target(now)[1][:7] == pytest.approx(0.02 / STEP_DT)


def test_between_steps_position_and_velocity_belong_together(tracker, columns, home):
    positions = ramp(home) + 0.02 * np.sin(np.arange(HORIZON))[:, None] * (np.arange(8) < 7)
    stamp = START + 1
    settled(tracker, make(columns, positions, stamp))
    instants = stamp + np.arange(0, (HORIZON - 1) * STEP, SECOND // 1000)
    path, speed = (np.array(x) for x in zip(*(tracker.target(int(t)) for t in instants), strict=True))
    assert np.gradient(path, 1e-3, axis=0)[5:-5] == pytest.approx(speed[5:-5], abs=0.02)
    assert np.abs(np.diff(speed, axis=0)).max() < 0.05, "no velocity step at a knot"


def test_after_the_last_step_the_target_rests_and_the_chunk_becomes_stale(tracker, columns, home):
    positions, stamp = ramp(home), START + 1
    settled(tracker, make(columns, positions, stamp))
    end = stamp + HORIZON * STEP
    position, velocity = tracker.target(end)
    assert position == pytest.approx(positions[-1]) and not velocity.any()
    assert not tracker.stale(end) and tracker.stale(end + 1)


def test_without_a_chunk_nothing_is_stale_and_the_target_is_the_start(tracker, home):
    assert not tracker.has_chunk and not tracker.stale(START + 100 * SECOND)
    position, velocity = tracker.target(START + SECOND)
    assert np.array_equal(position, home) and not velocity.any()


@pytest.mark.parametrize("seam", ["blend", "ensemble"])
@pytest.mark.parametrize("interval", [0.2, 0.07, 0.011])
def test_seams_have_no_jump_in_position_or_velocity(columns, home, interval, seam):
    """Complaint 2: jumps at the seam of two chunks, also when chunks come quicker than a fade lasts."""
    tracker = ChunkTracker(columns, PERIOD, seam)
    tracker.restart(home, START)
    rng = np.random.default_rng(3)
    path, speed = [], []
    every = int(interval * SECOND)
    next_chunk = START + SECOND // 10
    for now in range(START, START + 2 * SECOND, SECOND // 1000):
        if now >= next_chunk:
            offset = 0.1 * rng.normal(size=8) * (np.arange(8) < 7)
            tracker.accept(make(columns, ramp(home) + offset, now - SECOND // 20), now, now)
            next_chunk += every
        position, velocity = tracker.target(now)
        path.append(position)
        speed.append(velocity)
    path, speed = np.array(path), np.array(speed)
    assert np.abs(np.diff(path, axis=0)).max() < 0.015
    assert np.abs(np.diff(speed, axis=0)).max() < 1.0


def test_an_ensemble_is_the_weighted_mean_of_the_chunks_that_hold(columns, home):
    tracker = ChunkTracker(columns, PERIOD, "ensemble", fade=0.01)
    tracker.restart(home, START)
    offsets, every = [0.0, 0.06, -0.03], SECOND // 5
    for k, offset in enumerate(offsets):
        stamp = START + 1 + k * every
        tracker.accept(make(columns, ramp(home + offset * (np.arange(8) < 7)), stamp), stamp, stamp)

    def expected(instant, members):
        weights = np.exp(-0.01 * np.arange(len(members)))
        ramps = [home[0] + offsets[k] + 0.02 * (instant - START - 1 - k * every) / STEP for k in members]
        return np.average(ramps, weights=weights)

    # Three hold for 0.75 s from their stamps on; then one after another ends.
    for ahead, members in ((0.6, [0, 1, 2]), (0.85, [1, 2]), (1.05, [2])):
        instant = START + int(ahead * SECOND)
        position, velocity = tracker.target(instant)
        assert position[0] == pytest.approx(expected(instant, members), abs=1e-6)
        assert velocity[0] == pytest.approx(0.02 / STEP_DT)
    position, velocity = tracker.target(START + 3 * SECOND)
    assert position[0] == pytest.approx(home[0] - 0.03 + 0.02 * (HORIZON - 1)) and not velocity.any()


def test_a_switch_takes_the_new_chunk_at_once(columns, home):
    tracker = ChunkTracker(columns, PERIOD, "switch")
    tracker.restart(home, START)
    settled(tracker, make(columns, ramp(home), START + 1))
    now = START + SECOND // 5
    tracker.accept(make(columns, ramp(home + 0.1 * (np.arange(8) < 7)), now), now, now)
    assert tracker.target(now + 1)[0][:7] == pytest.approx(home[:7] + 0.1, abs=1e-6)


def test_a_fade_between_chunks_that_lie_apart_adds_no_velocity_of_its_own(tracker, columns, home):
    apart = 0.2 * (np.arange(8) < 7)
    for offset, stamp in ((0.0, START + 1), (apart, START + SECOND // 2)):
        tracker.accept(make(columns, ramp(home + offset), stamp), stamp, stamp)
        for now in range(stamp, stamp + SECOND // 5, SECOND // 1000):
            assert np.abs(tracker.target(now)[1][:7]).max() <= 0.02 / STEP_DT + 1e-9


def test_the_first_chunk_is_faded_in_from_the_arms_own_pose(tracker, columns, home):
    """Complaint 3: the first command jumps."""
    far = ramp(home + 0.5 * (np.arange(8) < 7), slope=0.0)
    now = START + SECOND // 5
    tracker.accept(make(columns, far, now - SECOND // 10), now, now)
    assert tracker.target(now)[0] == pytest.approx(home, abs=1e-12)
    assert np.abs(tracker.target(now + SECOND // 100)[0] - home).max() < 0.002


def test_names_in_another_order_are_matched(tracker, columns, home):
    """Complaint 9: joints bound to the wrong name without a word."""
    positions = ramp(home)
    shuffled = np.random.default_rng(0).permutation(8)
    names = [columns.names[i] for i in shuffled]
    settled(tracker, replace(make(columns, positions[:, shuffled], START + 1), names=names))
    assert tracker.target(START + 1 + 3 * STEP)[0] == pytest.approx(positions[3])


def test_targets_slightly_outside_are_clamped(tracker, columns, home):
    positions = ramp(home)
    positions[:, -1] = columns.upper[-1] + 0.005
    settled(tracker, make(columns, positions, START + 1))
    assert tracker.target(START + SECOND // 2)[0][-1] == columns.upper[-1]


def broken(positions, value):
    positions = positions.copy()
    positions[3, 2] = value
    return positions.ravel()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": "nan"}, "not finite.*fr3_joint3"),
        ({"positions": "inf"}, "not finite"),
        ({"positions": "huge"}, "fr3_joint3.*far outside"),
        ({"names": ("a",) * 8}, "missing"),
        ({"names": "swapped"}, "missing"),
        ({"names": "repeated"}, "missing|more than once"),
        ({"names": "extra"}, "not columns"),
        ({"horizon": 15}, r"shape is \[15, 8\]"),
        ({"horizon": 0}, "at least 2 steps"),
        ({"positions": "short"}, "positions"),
        ({"positions": "empty"}, "0 positions"),
        ({"step_dt": 0.0}, "step_dt"),
        ({"step_dt": -0.05}, "step_dt"),
        ({"step_dt": float("nan")}, "step_dt"),
        ({"step_dt": float("inf")}, "step_dt"),
        ({"step_dt": 2.0}, "step_dt"),
        ({"step_dt": 0.001}, "horizon of at least"),
        ({"stamp": START + SECOND}, "in the future"),
    ],
)
def test_refuses_and_names_what_is_wrong(tracker, columns, home, changes, said):
    positions = ramp(home)
    special = {
        "nan": broken(positions, np.nan),
        "inf": broken(positions, np.inf),
        "huge": broken(positions, 1e6),
        "short": positions.ravel()[:-1],
        "empty": np.zeros(0),
        "swapped": ("wrong", *columns.names[1:]),
        "repeated": (*columns.names[:-1], columns.names[0]),
        "extra": (*columns.names, "more"),
    }
    changes = {k: special.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    chunk = replace(make(columns, positions, START + 1), **changes)
    with pytest.raises(Refused, match=said) as refusal:
        tracker.accept(chunk, START + SECOND // 10, START)
    assert not isinstance(refusal.value, Late)
    assert not tracker.has_chunk and np.array_equal(tracker.target(START + SECOND)[0], home)


def test_another_step_dt_within_one_engagement_is_refused(tracker, columns, home):
    settled(tracker, make(columns, ramp(home), START + 1))
    with pytest.raises(Refused, match=r"step_dt 0.1 s, the ones before had 0.05"):
        tracker.accept(make(columns, ramp(home), START + 2, step_dt=0.1), START + 2, START + 2)


@pytest.mark.parametrize(
    ("stamp", "now", "said"),
    [
        (START, START + STEP, "before the policy was given control"),
        (START - SECOND // 10, START + STEP, "before the policy was given control"),
        (START + 1, START + 17 * STEP, "past its own horizon"),
    ],
)
def test_outdated_chunks_are_passed_over(tracker, columns, home, stamp, now, said):
    with pytest.raises(Late, match=said):
        tracker.accept(make(columns, ramp(home), stamp), now, now)
    assert not tracker.has_chunk


def test_an_older_chunk_does_not_replace_a_newer_one(tracker, columns, home):
    settled(tracker, make(columns, ramp(home), START + 10))
    with pytest.raises(Late, match="not newer"):
        tracker.accept(make(columns, ramp(home), START + 9), START + 20, START + 20)


def test_restart_flushes_every_chunk(tracker, columns, home):
    settled(tracker, make(columns, ramp(home), START + 1))
    tracker.restart(home + 0.1, START + SECOND)
    assert not tracker.has_chunk
    assert np.array_equal(tracker.target(START + SECOND)[0], home + 0.1)


def test_cross_fade_weights_are_smooth_and_complete():
    fade = CrossFade()
    fade.restart(Constant(np.zeros(1)))
    fade.add(Constant(np.ones(1)), 0, 100)
    values = [fade.at(t)[0][0] for t in range(0, 120, 10)]
    assert values[0] == 0.0 and values[5] == 0.5 and values[10] == values[11] == 1.0
    assert (np.diff(values) >= 0).all()


def test_steps_before_the_first_one_rest_there():
    steps = Steps(100, 10, np.array([[1.0], [2.0]]))
    position, velocity = steps.at(50)
    assert position[0] == 1.0 and velocity[0] == 0.0


# Another policy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seam", ["blend", "switch", "ensemble"])
@pytest.mark.parametrize("step_dt", [STEP_DT, 0.04])
def test_another_policys_chunk_is_faded_in_and_the_old_ones_are_left(columns, home, seam, step_dt):
    tracker = ChunkTracker(columns, PERIOD, seam)
    tracker.restart(home, START)
    stamp = START + SECOND // 10
    for _ in range(4):
        tracker.accept(replace(make(columns, ramp(home), stamp), bundle="old"), stamp, stamp)
        stamp += SECOND // 5
    before = [tracker.target(now)[0] for now in range(stamp - SECOND // 5, stamp, SECOND // 1000)]
    usual = np.abs(np.diff(before, axis=0)).max()
    other = np.tile(home + 0.2 * (np.arange(8) < 7), (HORIZON, 1))
    tracker.accept(replace(make(columns, other, stamp, step_dt), bundle="new"), stamp, stamp)
    path = np.array([tracker.target(now)[0] for now in range(stamp, stamp + SECOND // 2, SECOND // 1000)])
    assert np.abs(path[0] - before[-1]).max() <= 2 * usual, "the first target goes on from the running one"
    # 0.2 rad in 0.3 s by a smooth step: at most 1.5 times the mean speed.
    assert np.abs(np.diff(path, axis=0)).max() <= usual + 1.5 * 0.2 / 300
    assert path[-1] == pytest.approx(other[0]), "nothing is left of the old policy's chunks"


def test_one_policys_chunks_keep_their_step(tracker, columns, home):
    tracker.accept(replace(make(columns, ramp(home), START + 1), bundle="one"), START + 1, START + 1)
    later = replace(make(columns, ramp(home), START + 2, step_dt=0.04), bundle="one")
    with pytest.raises(Refused, match=r"step_dt 0\.04 s"):
        tracker.accept(later, START + 2, START + 2)
