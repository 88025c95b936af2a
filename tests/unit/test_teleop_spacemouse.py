"""A SpaceMouse: pyspacemouse's own reader is given the bytes of a SpaceMouse Compact's reports."""

from __future__ import annotations

import ctypes.util
import struct
import sys
from collections import deque

import numpy as np
import pyspacemouse
import pytest
from pyspacemouse.config_helpers import apply_axis_convention
from pyspacemouse.device import SpaceMouseDevice as Mouse

from support.rigs import real_rig
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.teleop.device import DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.devices import spacemouse
from vigil.teleop.devices.factory import make_device

PERIOD = 0.02
FULL = 350  # what the cap says at full deflection


class Wire:
    """Where the HID library would be: reports wait to be read, oldest first."""

    def __init__(self) -> None:
        self.reports: deque[bytes] = deque()
        self.broken = False

    def read(self, size: int) -> bytes:
        if self.broken:
            raise OSError("Failed to read from HID device: -1")
        return self.reports.popleft() if self.reports else b""

    def close(self) -> None:
        pass

    def cap(self, x=0, y=0, z=0, pitch=0, roll=0, yaw=0) -> None:
        """Report 1 is where the cap is pushed to (right, towards the hand, down), report 2 how it is turned about these axes."""
        self.reports.append(struct.pack("<Bhhh", 1, x, y, z))
        self.reports.append(struct.pack("<Bhhh", 2, pitch, roll, yaw))

    def buttons(self, bits: int) -> None:
        self.reports.append(bytes([3, bits, 0]))


class Hand:
    """Holds the cap, and polls the device that reads it."""

    def __init__(self, rig) -> None:
        self.rig, self.wire = rig, Wire()
        self.device = make_device(rig, DeviceOptions(period=PERIOD))
        self.plug_in()
        self.now = 1.0
        self.measured = np.array([rig.home[name] for name in rig.columns])

    def plug_in(self) -> None:
        specification = pyspacemouse.get_device_specs()["SpaceMouseCompact"]
        convention = pyspacemouse.AxisConvention.ROS  # as `open_mouse` asks for
        self.device.use(Mouse(apply_axis_convention(specification, convention), self.wire))

    def poll(self, times: int = 1) -> Reading:
        for _ in range(times):
            self.now += PERIOD
            reading = self.device.poll(self.now, Surroundings(measured=self.measured))
        return reading

    def tool(self, reading: Reading):
        return FRANKA.forward(reading.positions[:7], self.rig.arm.tool_offset)


@pytest.fixture
def hand(tmp_path):
    return Hand(real_rig(tmp_path, {"device": "spacemouse", "rate": 50}))


def test_moving_the_cap_holds_the_deadman_and_resting_lets_go(hand):
    assert hand.poll() == Reading(False, None, Mode.RELATIVE)
    hand.wire.cap(y=-100)
    reading = hand.poll()
    assert reading.deadman
    np.testing.assert_array_equal(reading.positions, hand.measured)
    hand.wire.cap()
    assert hand.poll(10).deadman  # between two pushes
    assert not hand.poll(20).deadman


@pytest.mark.parametrize(
    "push, expected",
    [
        ({"y": -FULL}, (1, 0, 0, 0, 0, 0)),  # away from the hand
        ({"x": -FULL}, (0, 1, 0, 0, 0, 0)),
        ({"z": -FULL}, (0, 0, 1, 0, 0, 0)),  # lifted
        ({"yaw": -FULL}, (0, 0, 0, 0, 0, 1)),
        (
            {"pitch": -FULL},
            (0, 0, 0, 0, 1, 0),
        ),  # tipped away: report's first angle is about the axis to the right
        ({"roll": -FULL}, (0, 0, 0, 1, 0, 0)),
    ],
)
def test_the_tool_follows_the_cap(hand, push, expected):
    hand.poll()
    hand.wire.cap(**push)
    start, turned = hand.tool(hand.poll())
    position, rotation = hand.tool(hand.poll(10))
    settings = hand.rig.teleop
    np.testing.assert_allclose(
        position - start, 10 * PERIOD * settings.speed * np.array(expected[:3]), atol=1e-3
    )
    skew = rotation @ turned.T
    turn = 0.5 * np.array([skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]])
    np.testing.assert_allclose(turn, np.sin(10 * PERIOD * settings.turn) * np.array(expected[3:]), atol=2e-3)


def test_reports_that_came_since_the_last_poll_are_all_read(hand):
    hand.poll()
    for push in range(10):
        hand.wire.cap(y=-30 * push)
    hand.poll()
    assert not hand.wire.reports


def test_buttons_move_the_gripper_and_hold_the_deadman(hand):
    hand.measured[7] = 0.04
    hand.poll()
    hand.wire.buttons(0b01)
    assert hand.poll().deadman
    assert hand.poll(5).positions[7] == pytest.approx(0.04 - 5 * PERIOD * 0.1)
    hand.wire.buttons(0b10)
    assert hand.poll(5).positions[7] == pytest.approx(0.04)


def test_a_button_as_deadman_takes_the_cap_out_of_it(tmp_path):
    hand = Hand(real_rig(tmp_path, {"device": "spacemouse", "bindings": {0: "deadman", 1: "success"}}))
    hand.poll()
    hand.wire.cap(y=-FULL)
    assert not hand.poll().deadman
    hand.wire.buttons(0b01)
    assert hand.poll().deadman
    hand.wire.buttons(0b10)
    reading = hand.poll()
    assert (reading.deadman, reading.pressed) == (False, {"success"})


def test_a_lost_mouse_lets_go_and_is_looked_for(hand):
    hand.poll()
    hand.wire.cap(y=-FULL)
    assert hand.poll().deadman
    hand.wire.broken = True
    assert not hand.poll().deadman
    assert "was lost" in hand.device.trouble
    hand.wire = Wire()
    hand.plug_in()
    assert hand.device.trouble == ""
    hand.wire.cap(y=-FULL)
    assert not hand.poll().deadman  # it came back pushed
    hand.wire.cap()
    hand.poll(30)
    hand.wire.cap(y=-FULL)
    assert hand.poll().deadman


def test_what_is_missing_is_told_with_what_to_do(tmp_path, monkeypatch):
    device = make_device(real_rig(tmp_path, {"device": "spacemouse"}), DeviceOptions(period=PERIOD))
    missing = (
        "plug one in" if ctypes.util.find_library("hidapi-hidraw") else "apt-get install -y libhidapi-hidraw0"
    )
    if not _plugged_in():
        with pytest.raises(VigilError, match=missing):
            device.open()
    monkeypatch.setitem(sys.modules, "pyspacemouse", None)
    with pytest.raises(VigilError, match=r"pip install -e '.\[spacemouse\]'"):
        device.open()


def test_one_that_may_not_be_read_is_told_with_its_udev_rule(monkeypatch):
    def refuse(**_):
        raise RuntimeError("Failed to open device")

    monkeypatch.setattr(pyspacemouse, "get_connected_devices", lambda: ["SpaceMouseCompact"])
    monkeypatch.setattr(pyspacemouse, "open", refuse)
    with pytest.raises(VigilError, match=r"udev/rules.d/70-spacemouse.rules"):
        spacemouse.open_mouse("")
    with pytest.raises(
        VigilError, match=r"no SpaceMouse SpacePilot is plugged in, but \['SpaceMouseCompact'\]"
    ):
        spacemouse.open_mouse("SpacePilot")


def _plugged_in() -> bool:
    try:
        return bool(pyspacemouse.get_connected_devices())
    except RuntimeError:
        return False
