"""The keyboard through a real pseudo-terminal."""

from __future__ import annotations

import os
import termios
from dataclasses import dataclass

import numpy as np
import pytest

from support.rigs import real_rig
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.rig import load_rig
from vigil.teleop.device import DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.devices.keyboard import GRIPPER_STEP, JOINT_STEP, TOOL_STEP, KeyboardDevice
from vigil.teleop.jog import JogTarget

RIG = load_rig("franka_sim")
HOME = np.array([RIG.arm.home[name] for name in RIG.arm.columns])


@dataclass
class Hands:
    """Types into the terminal."""

    device: KeyboardDevice
    master: int
    now: float = 10.0
    measured: np.ndarray | None = None

    def press(self, keys: str = "", after: float = 0.05) -> Reading:
        self.now += after
        if keys:
            os.write(self.master, keys.encode())
        return self.device.poll(
            self.now, Surroundings(measured=HOME if self.measured is None else self.measured)
        )

    def shown(self) -> str:
        return os.read(self.master, 4096).decode()


@pytest.fixture
def hands():
    master, slave = os.openpty()
    device = KeyboardDevice(RIG, DeviceOptions(period=0.05, tty=os.ttyname(slave)))
    device.open()
    yield Hands(device, master)
    device.close()
    os.close(master)
    os.close(slave)


def test_nothing_is_commanded_without_a_key(hands):
    assert hands.press() == Reading(False, None, Mode.RELATIVE)
    assert "hold a key to hold the deadman" in hands.shown()


def test_space_holds_the_deadman_at_the_measured_pose(hands):
    reading = hands.press(" ")
    assert reading.deadman
    np.testing.assert_array_equal(reading.positions, HOME)
    for _ in range(13):  # until the terminal begins to repeat
        assert hands.press().deadman
    for _ in range(40):  # repeats
        assert hands.press(" ", after=0.033).deadman
    readings = [hands.press() for _ in range(10)]
    assert readings[3].deadman
    assert not readings[7].deadman
    assert readings[7].positions is None


def test_escape_lets_go_at_once_and_arrows_do_nothing(hands):
    assert hands.press(" ").deadman
    assert not hands.press("\x1b").deadman
    assert not hands.press("\x1b[A\x1b[D\x1bOC").deadman
    assert not hands.press("9?Q").deadman  # not bound in tool mode


def test_tool_steps_move_the_tool_along_the_base_axes(hands):
    start, orientation = FRANKA.forward(HOME[:7], RIG.arm.tool_offset)
    for keys, expected in (("w", (1, 0, 0)), ("d", (0, -1, 0)), ("rr", (0, 0, 2))):
        hands.press("\x1b")
        reading = hands.press(keys)
        position, turned = FRANKA.forward(reading.positions[:7], RIG.arm.tool_offset)
        np.testing.assert_allclose(position - start, TOOL_STEP * np.array(expected), atol=1e-4)
        np.testing.assert_allclose(turned, orientation, atol=1e-3)


def test_joint_mode_and_gripper(hands):
    reading = hands.press("mez")
    expected = HOME.copy()
    expected[2] += JOINT_STEP
    expected[7] -= GRIPPER_STEP
    np.testing.assert_allclose(reading.positions, expected)
    assert hands.press("d").positions[2] == pytest.approx(HOME[2])


def test_the_target_starts_anew_at_every_takeover(hands):
    hands.press("wwww")
    hands.press("\x1b")
    hands.measured = HOME + 0.1
    np.testing.assert_array_equal(hands.press(" ").positions, HOME + 0.1)


def test_hand_back_is_a_short_press_without_the_deadman(hands):
    hands.press(" ")
    reading = hands.press("b")
    assert (reading.deadman, reading.hand_back) == (False, True)
    assert not hands.press(after=0.3).hand_back


def test_without_joint_states_there_is_no_deadman(hands):
    os.write(hands.master, b"w")
    assert hands.device.poll(11.0, Surroundings(measured=None)) == Reading(False, None, Mode.RELATIVE)


def test_episode_keys_count_once_and_hold_nothing(hands):
    assert hands.press("n").pressed == {"start"}
    reading = hands.press()
    assert (reading.deadman, reading.pressed) == (False, frozenset())
    assert hands.press("13").pressed == {"success", "discard"}
    assert hands.press("2").pressed == {"failure"}


def test_tab_goes_to_the_next_arm(tmp_path):
    rig = real_rig(tmp_path, {"device": "keyboard"}, arms=("left", "right"))
    home = np.array([rig.home[name] for name in rig.columns])
    master, slave = os.openpty()
    device = KeyboardDevice(rig, DeviceOptions(period=0.05, tty=os.ttyname(slave)))
    device.open()
    hands = Hands(device, master, measured=home)
    first = hands.press("w").positions
    second = hands.press("\tw").positions
    device.close()
    os.close(master)
    os.close(slave)
    assert not np.allclose(first[:7], home[:7])
    np.testing.assert_array_equal(first[8:], home[8:])
    np.testing.assert_array_equal(second[:8], first[:8])
    np.testing.assert_allclose(second[8:], first[:8], atol=1e-9)


def test_a_closed_terminal_lets_go():
    master, slave = os.openpty()
    device = KeyboardDevice(RIG, DeviceOptions(period=0.05, tty=os.ttyname(slave)))
    device.open()
    os.write(master, b" ")
    assert device.poll(1.0, Surroundings(measured=HOME)).deadman
    os.close(slave)
    os.close(master)
    assert not device.poll(1.05, Surroundings(measured=HOME)).deadman
    assert "was closed" in device.state
    device.close()


def test_the_terminal_is_restored():
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    device = KeyboardDevice(RIG, DeviceOptions(period=0.05, tty=os.ttyname(slave)))
    device.open()
    assert termios.tcgetattr(slave) != before
    device.close()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/nothing"])
def test_no_terminal_says_what_to_do(path):
    device = KeyboardDevice(RIG, DeviceOptions(period=0.05, tty=path))
    with pytest.raises(VigilError, match="needs a terminal"):
        device.open()


def test_steps_end_at_limits_and_where_the_arm_cannot_reach():
    target = JogTarget(RIG.arm)
    target.restart(HOME)
    assert not target.step_gripper(0.01)  # open already
    while target.step_column(0, 0.1):
        pass
    assert target.positions[0] == RIG.arm.joints["fr3_joint1"].upper
    target.restart(HOME)
    for _ in range(1000):
        before = target.positions
        if not target.step_tool(np.array([0.01, 0.0, 0.0]), np.zeros(3), 0.05):
            break
    else:
        raise AssertionError("walked out of reach")
    np.testing.assert_array_equal(target.positions, before)
