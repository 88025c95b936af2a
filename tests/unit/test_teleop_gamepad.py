"""A gamepad through the real SDL: the pad is a virtual one, which SDL makes; and what all Cartesian devices share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from support.rigs import real_rig
from vigil.errors import VigilError
from vigil.kinematics import CHAINS
from vigil.teleop.device import DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.devices import gamepad
from vigil.teleop.devices.factory import make_device

sdl = gamepad.import_sdl()
PERIOD = 0.02
AXES = {"left_x": 0, "left_y": 1, "right_x": 2, "right_y": 3, "down": 4, "up": 5}
FULL, REST = 32767, 0


class VirtualPad:
    """A pad that SDL takes for plugged in."""

    def __init__(self) -> None:
        self.index = sdl.SDL_JoystickAttachVirtual(sdl.SDL_JOYSTICK_TYPE_GAMECONTROLLER, 6, 21, 0)
        assert self.index >= 0, sdl.SDL_GetError()
        self._joystick = sdl.SDL_JoystickOpen(self.index)

    def tilt(self, **axes: float) -> None:
        for name, value in axes.items():
            assert sdl.SDL_JoystickSetVirtualAxis(self._joystick, AXES[name], int(value * FULL)) == 0

    def press(self, *names: str, down: bool = True) -> None:
        for name in names:
            button = sdl.SDL_GameControllerGetButtonFromString(name.encode())
            assert sdl.SDL_JoystickSetVirtualButton(self._joystick, button, int(down)) == 0

    def unplug(self) -> None:
        sdl.SDL_JoystickClose(self._joystick)
        sdl.SDL_JoystickDetachVirtual(self.index)


@pytest.fixture(autouse=True)
def joysticks() -> Iterator[None]:
    assert sdl.SDL_InitSubSystem(sdl.SDL_INIT_GAMECONTROLLER) == 0
    yield
    sdl.SDL_QuitSubSystem(sdl.SDL_INIT_GAMECONTROLLER)


class Hands:
    """Hold a pad, and poll the device that reads it."""

    def __init__(self, rig) -> None:
        self.rig, self.pad = rig, VirtualPad()
        self.device = make_device(rig, DeviceOptions(period=PERIOD))
        self.now = 1.0
        self.measured = np.array([rig.home[name] for name in rig.columns])
        self.device.open()

    def poll(self, times: int = 1, deadman: bool | None = None) -> Reading:
        for _ in range(times):
            self.now += PERIOD
            reading = self.device.poll(self.now, Surroundings(measured=self.measured, deadman=deadman))
        return reading

    def take_over(self) -> Reading:
        """With a pad at rest."""
        self.poll()
        self.pad.press("rightshoulder")
        return self.poll()

    def tool(self, reading: Reading, arm: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Position and rotation of one arm's tool."""
        config = self.rig.arms[arm]
        joints = reading.positions[8 * arm : 8 * arm + 7]
        return CHAINS[config.kinematics].forward(joints, config.tool_offset)


@contextlib.contextmanager
def held(folder, arms=("franka",), **settings) -> Iterator[Hands]:
    hands = Hands(real_rig(folder, {"device": "gamepad", "rate": 50, **settings}, arms))
    try:
        yield hands
    finally:
        hands.device.close()
        hands.pad.unplug()


@pytest.fixture
def hands(tmp_path):
    with held(tmp_path) as made:
        yield made


def test_the_shoulder_button_is_the_deadman_and_the_arm_stays_at_rest(hands):
    assert hands.poll() == Reading(False, None, Mode.RELATIVE)
    reading = hands.take_over()
    assert (reading.deadman, reading.mode) == (True, Mode.RELATIVE)
    np.testing.assert_array_equal(reading.positions, hands.measured)
    hands.pad.tilt(left_x=0.05, left_y=-0.05)  # a stick that does not quite return to its middle
    np.testing.assert_array_equal(hands.poll(20).positions, hands.measured)
    hands.pad.press("rightshoulder", down=False)
    assert not hands.poll().deadman


@pytest.mark.parametrize(
    "axes, expected",
    [
        ({"left_y": -1}, (1, 0, 0, 0, 0, 0)),
        ({"left_x": 1}, (0, -1, 0, 0, 0, 0)),
        ({"up": 1}, (0, 0, 1, 0, 0, 0)),
        ({"down": 1}, (0, 0, -1, 0, 0, 0)),
        ({"right_x": 1}, (0, 0, 0, 0, 0, -1)),
        ({"right_y": -1}, (0, 0, 0, 0, 1, 0)),
    ],
)
def test_sticks_and_triggers_move_the_tool_along_the_base_axes(hands, axes, expected):
    start, turned = hands.tool(hands.take_over())
    hands.pad.tilt(**axes)
    position, rotation = hands.tool(hands.poll(10))
    settings = hands.rig.teleop
    np.testing.assert_allclose(
        position - start, 10 * PERIOD * settings.speed * np.array(expected[:3]), atol=1e-3
    )
    skew = rotation @ turned.T
    turn = 0.5 * np.array([skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]])
    np.testing.assert_allclose(turn, np.sin(10 * PERIOD * settings.turn) * np.array(expected[3:]), atol=2e-3)


def test_the_left_shoulder_turns_yaw_into_roll(hands):
    _, turned = hands.tool(hands.take_over())
    hands.pad.press("leftshoulder")
    hands.pad.tilt(right_x=1.0)
    _, rotation = hands.tool(hands.poll(10))
    skew = rotation @ turned.T
    assert skew[2, 1] > 0.1
    assert abs(skew[1, 0]) < 2e-3


def test_the_operator_may_look_in_another_direction(tmp_path):
    with held(tmp_path, heading=np.pi / 2) as hands:
        start, _ = hands.tool(hands.take_over())
        hands.pad.tilt(left_y=-1)
        position, _ = hands.tool(hands.poll(10))
        np.testing.assert_allclose((position - start)[:2], [0.0, 0.03], atol=1e-3)


def test_a_late_poll_does_not_catch_up(hands):
    start, _ = hands.tool(hands.take_over())
    hands.pad.tilt(left_y=-1)
    hands.now += 1.0
    position, _ = hands.tool(hands.poll())
    assert np.linalg.norm(position - start) < 2.1 * PERIOD * hands.rig.teleop.speed


def test_buttons_open_close_hand_back_and_end_episodes(hands):
    hands.measured[7] = 0.04
    hands.take_over()
    hands.pad.press("a")
    assert hands.poll(5).positions[7] == pytest.approx(0.04 - 5 * PERIOD * 0.1)
    hands.pad.press("a", down=False)
    hands.pad.press("b")
    assert hands.poll(50).positions[7] == hands.rig.arm.gripper.limits.upper
    hands.pad.press("rightshoulder", down=False)
    hands.pad.press("y", "dpup")
    reading = hands.poll()
    assert (reading.deadman, reading.hand_back, reading.pressed) == (False, True, {"success"})


def test_a_step_that_cannot_be_made_is_made_in_part_or_not_at_all(hands):
    hands.take_over()
    hands.pad.tilt(left_y=-1)
    reading = hands.poll(400)
    assert "end of its reach" in hands.device.state
    limits = list(hands.rig.limits.values())
    assert all(low.lower <= value <= low.upper for low, value in zip(limits, reading.positions, strict=True))
    np.testing.assert_array_equal(hands.poll(5).positions, reading.positions)
    hands.pad.tilt(left_y=1)
    assert not np.allclose(hands.poll(5).positions, reading.positions)  # the way back is free


def test_the_elbow_comes_home_on_the_way(hands):
    """What six numbers leave free of seven joints does not add up over long motion to and fro."""
    hands.measured[0], hands.measured[2] = -0.5, 0.6
    first = hands.take_over().positions
    for _ in range(12):
        for push in (-0.8, 0.8):
            hands.pad.tilt(left_y=push)
            reading = hands.poll(25)
    home = np.array([hands.rig.home[name] for name in hands.rig.columns])
    before, after = (np.linalg.norm(q[:7] - home[:7]) for q in (first, reading.positions))
    assert after < 0.8 * before
    np.testing.assert_allclose(hands.tool(reading)[0], hands.tool(Reading(True, first))[0], atol=0.02)


def test_one_of_two_arms_moves_and_a_button_switches(tmp_path):
    with held(tmp_path, arms=("left", "right")) as hands:
        first = hands.take_over().positions
        hands.pad.tilt(left_y=-1)
        second = hands.poll(5).positions
        assert not np.allclose(second[:7], first[:7])
        np.testing.assert_array_equal(second[8:], first[8:])
        hands.pad.press("x")
        third = hands.poll(5).positions  # held on: one press is one switch
        np.testing.assert_array_equal(third[:8], second[:8])
        assert not np.allclose(third[8:15], second[8:15])
        assert "right" in hands.device.state
        hands.pad.press("x", down=False)
        hands.poll()
        hands.pad.press("x")
        hands.poll()
        assert "left" in hands.device.state


def test_an_unplugged_pad_lets_go_and_another_one_takes_its_place(hands):
    assert hands.take_over().deadman
    hands.pad.unplug()
    assert not hands.poll().deadman
    assert "no gamepad is plugged in" in hands.device.trouble
    hands.pad = VirtualPad()
    hands.pad.press("rightshoulder")
    assert not hands.poll(60).deadman  # it was never seen released
    assert hands.device.trouble == ""
    hands.pad.press("rightshoulder", down=False)
    assert hands.take_over().deadman


def test_a_pedal_in_place_of_the_shoulder_button(tmp_path):
    with held(tmp_path, buttons={"deadman": {"topic": "pedal"}}) as hands:
        hands.poll(deadman=False)
        hands.pad.press("rightshoulder")
        assert not hands.poll(deadman=False).deadman
        assert hands.poll(deadman=True).deadman
        assert not hands.poll(deadman=None).deadman


def test_no_pad_and_no_sdl_say_what_to_do(tmp_path, monkeypatch):
    device = make_device(real_rig(tmp_path, {"device": "gamepad"}), DeviceOptions(period=PERIOD))
    with pytest.raises(VigilError, match="plug one in, or pair it"):
        device.open()
    device.close()
    monkeypatch.setitem(sys.modules, "sdl2", None)
    with pytest.raises(VigilError, match=r"pip install -e '.\[gamepad\]'"):
        device.open()


LISTING = """I: Bus=0003 Vendor=045e Product=028e Version=0114
N: Name="Microsoft X-Box 360 pad"
H: Handlers=event17 js0
B: KEY=7cdb0000 0 0 0 0

I: Bus=0011 Vendor=0001 Product=0001 Version=ab41
N: Name="AT Translated Set 2 keyboard"
H: Handlers=sysrq kbd event0 leds
"""


def test_a_pad_that_may_not_be_read_is_told_from_none():
    assert gamepad.forbidden(LISTING, lambda path: False) == ["Microsoft X-Box 360 pad"]
    assert gamepad.forbidden(LISTING, lambda path: path == "/dev/input/event17") == []
    assert gamepad.forbidden("", lambda path: False) == []


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"bindings": {"a": "close"}}, "no button is the deadman"),
        ({"bindings": {"a": "jump"}}, "teleop.bindings.a: Input should be 'deadman'"),
        ({"bindings": {"trigger": "close"}}, "teleop.bindings.trigger"),
        ({"speed": 0}, "teleop.speed: Input should be greater than 0"),
    ],
)
def test_what_a_rig_file_may_not_say(tmp_path, settings, told):
    with pytest.raises(VigilError, match=told):
        real_rig(tmp_path, {"device": "gamepad", **settings})
