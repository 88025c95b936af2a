"""The operator's commands as targets: no jump at takeover, none on the way."""

from dataclasses import replace

import numpy as np
import pytest

from vigil.arm.clutch import Clutch, Mode, OperatorCommand
from vigil.arm.columns import Columns, Refused
from vigil.arm.curves import SECOND
from vigil.rig import load_rig

LOOKAHEAD = 0.05
AHEAD = int(LOOKAHEAD * SECOND)
START = 1_000 * SECOND


@pytest.fixture(scope="module")
def columns():
    return Columns.of(load_rig("franka_sim"))


@pytest.fixture
def pose(columns):
    return 0.5 * (columns.lower + columns.upper)


@pytest.fixture
def clutch(columns, pose):
    made = Clutch(columns, LOOKAHEAD)
    made.engage(pose)
    return made


def command(columns, positions, stamp, mode=Mode.RELATIVE, **changes):
    values = {"stamp": stamp, "deadman": True, "mode": mode, "names": columns.names, "positions": positions}
    return OperatorCommand(**{**values, **changes})


def drive(clutch, columns, device, seconds, mode, rate=20):
    """Targets [T, N] at 100 Hz while the device follows ``device(t)``."""
    path = []
    for tick in range(int(seconds * 100)):
        now = START + tick * SECOND // 100
        if tick % (100 // rate) == 0:
            clutch.accept(command(columns, device(tick / 100), now, mode), now)
        path.append(clutch.target(now + AHEAD)[0])
    return np.array(path)


@pytest.mark.parametrize("mode", Mode)
def test_the_first_target_is_the_arms_own_pose(clutch, columns, pose, mode):
    """Complaint 3: a takeover jumps."""
    clutch.accept(command(columns, pose + 0.3, START, mode), START)
    bled = 0.0 if mode is Mode.RELATIVE else columns.velocity * 0.1 * LOOKAHEAD
    assert (np.abs(clutch.target(START + AHEAD)[0] - pose) <= bled + 1e-12)[:7].all()


def test_relative_keeps_the_offset(clutch, columns, pose):
    away = 0.3 * (np.arange(8) < 7)
    path = drive(clutch, columns, lambda t: pose + away + 0.1 * t * (np.arange(8) < 7), 3.0, Mode.RELATIVE)
    moved = path[-1] - pose
    assert moved[:7] == pytest.approx(0.1 * (2.99 + LOOKAHEAD - 0.05), abs=0.002), (
        "as far as the device, one command period later"
    )


def test_absolute_bleeds_the_offset_off_at_a_limited_rate(clutch, columns, pose):
    device = pose + 0.2 * (np.arange(8) < 7)
    path = drive(clutch, columns, lambda t: device, 3.0, Mode.ABSOLUTE)
    assert np.abs(np.diff(path, axis=0)).max() / 0.01 <= 0.25 + 1e-9
    assert path[-1] == pytest.approx(device, abs=1e-9)


def test_relative_reaches_both_ends_of_a_range(clutch, columns, pose):
    """The gripper: taken over half open by a device that is fully open; the device must still be able to close it."""
    opening = columns.upper[-1]

    def device(t):
        position = pose.copy()
        position[-1] = opening * (1 - min(t, 1.0)) if t < 1.5 else opening * min(t - 1.5, 1.0)
        return position

    path = drive(clutch, columns, device, 3.0, Mode.RELATIVE)
    assert path[:, -1].min() == pytest.approx(0.0, abs=1e-3)
    assert path[-1, -1] == pytest.approx(opening, abs=1e-3)


@pytest.mark.parametrize("rate", [20, 50])
def test_a_smooth_device_makes_a_smooth_target_one_command_later(clutch, columns, pose, rate):
    def device(t):
        return pose + 0.2 * np.sin(3 * t) * (np.arange(8) < 7)

    path = drive(clutch, columns, device, 4.0, Mode.RELATIVE, rate)
    wanted = np.array([device(t / 100 + LOOKAHEAD - 1 / rate) for t in range(400)])
    assert np.abs(path - wanted)[50:].max() < 0.005
    assert np.abs(np.diff(path, 2, axis=0))[50:].max() / 1e-4 < 10.0, "inside the joints' acceleration limit"


def test_a_silent_device_stops_the_target(clutch, columns, pose):
    drive(clutch, columns, lambda t: pose + 0.2 * t * (np.arange(8) < 7), 1.0, Mode.RELATIVE)
    late = START + 2 * SECOND
    position, velocity = clutch.target(late)
    assert not velocity.any() and np.array_equal(position, clutch.target(late + SECOND)[0])
    assert (position - pose)[0] < 0.2 * 1.2


def test_changing_the_mode_on_the_way_does_not_jump(clutch, columns, pose):
    device = pose + 0.3 * (np.arange(8) < 7)
    before = drive(clutch, columns, lambda t: device, 1.0, Mode.RELATIVE)[-1]
    now = START + SECOND
    clutch.accept(command(columns, device, now, Mode.ABSOLUTE), now)
    assert clutch.target(now + AHEAD)[0] == pytest.approx(before, abs=0.0126), (
        "but for what is bled off meanwhile"
    )


def test_a_command_without_positions_keeps_the_target(clutch, columns, pose):
    clutch.accept(command(columns, np.zeros(0), START, names=()), START)
    assert np.array_equal(clutch.target(START + AHEAD)[0], pose)


def test_an_older_command_changes_nothing(clutch, columns, pose):
    clutch.accept(command(columns, pose, START), START)
    clutch.accept(command(columns, pose + 1.0, START - 1), START)
    assert clutch.target(START + SECOND)[0] == pytest.approx(pose)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": np.full(8, np.nan)}, "not finite"),
        ({"positions": np.zeros(7)}, "7 positions for 8 names"),
        ({"names": ("a",) * 8}, "missing"),
        ({"mode": 7}, "mode 7"),
    ],
)
def test_refuses_and_names_what_is_wrong(clutch, columns, pose, changes, said):
    broken = replace(command(columns, pose, START), **changes)
    with pytest.raises(Refused, match=said):
        clutch.accept(broken, START)
    assert np.array_equal(clutch.target(START + SECOND)[0], pose)
