"""Buttons beside the device: over topics, and keys of an input device whose events the kernel wrote; and rates."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from vigil.errors import VigilError
from vigil.teleop.buttons import Buttons, EpisodeButtons
from vigil.teleop.device import BadInput, Deadman
from vigil.teleop.keys import KeyFile
from vigil.teleop.rate import Rate
from vigil.teleop.settings import ButtonConfig

KEY_A, KEY_B = 30, 48
# A press and a release of a foot switch that is a keyboard to the kernel, byte by byte after linux/input.h, not recorded: for
# each a scan code (type 4), the key (type 1) and the report's end (type 0).
PRESS_B = bytes.fromhex(
    "a1b2c36600000000d204030000000000 0400 0400 05000700"
    "a1b2c36600000000d204030000000000 0100 3000 01000000"
    "a1b2c36600000000d204030000000000 0000 0000 00000000".replace(" ", "")
)
RELEASE_B = bytes.fromhex(
    "a1b2c36600000000a209050000000000 0400 0400 05000700"
    "a1b2c36600000000a209050000000000 0100 3000 00000000"
    "a1b2c36600000000a209050000000000 0000 0000 00000000".replace(" ", "")
)


def event(kind: int, code: int, value: int) -> bytes:
    return struct.pack("@llHHi", 1, 2, kind, code, value)


class Pedal:
    """A pipe in place of the file under /dev/input."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "event5"
        os.mkfifo(self.path)
        self.end: int | None = None

    def plug_in(self) -> None:
        self.end = os.open(self.path, os.O_RDWR)

    def send(self, data: bytes) -> None:
        os.write(self.end, data)

    def unplug(self) -> None:
        os.close(self.end)
        self.end = None


@pytest.fixture
def pedal(tmp_path):
    made = Pedal(tmp_path)
    made.plug_in()
    yield made
    if made.end is not None:
        made.unplug()


@pytest.fixture
def keys(pedal):
    file = KeyFile(str(pedal.path))
    file.open()
    yield file
    file.close()


def test_a_key_is_down_from_its_press_to_its_release(pedal, keys):
    keys.poll(1.0)
    assert keys.pressed(KEY_B) is False
    pedal.send(PRESS_B)
    keys.poll(1.1)
    assert (keys.pressed(KEY_B), keys.pressed(KEY_A)) == (True, False)
    pedal.send(event(1, KEY_B, 2) + event(0, 0, 0))  # held: the kernel repeats it
    keys.poll(1.2)
    assert keys.pressed(KEY_B)
    pedal.send(RELEASE_B)
    keys.poll(1.3)
    assert keys.pressed(KEY_B) is False


def test_events_may_come_in_pieces(pedal, keys):
    for piece in range(0, len(PRESS_B), 7):
        pedal.send(PRESS_B[piece : piece + 7])
        keys.poll(1.0)
    assert keys.pressed(KEY_B)


def test_after_lost_events_no_key_counts_as_down_unless_the_kernel_says_so(pedal, keys):
    pedal.send(PRESS_B)
    keys.poll(1.0)
    pedal.send(event(0, 3, 0) + event(1, KEY_A, 1) + event(0, 0, 0))
    keys.poll(1.1)
    assert (keys.pressed(KEY_A), keys.pressed(KEY_B)) == (False, False)
    pedal.send(PRESS_B)
    keys.poll(1.2)
    assert keys.pressed(KEY_B)


def test_a_pedal_that_is_unplugged_is_unknown_until_it_is_back(pedal, keys):
    pedal.send(PRESS_B)
    keys.poll(1.0)
    pedal.unplug()
    keys.poll(1.1)
    assert keys.pressed(KEY_B) is None
    assert "was lost" in keys.trouble
    pedal.plug_in()
    keys.poll(1.2)  # it is looked for once a second
    assert keys.pressed(KEY_B) is None
    keys.poll(2.2)
    assert keys.pressed(KEY_B) is False
    assert keys.trouble == ""


def test_a_missing_pedal_says_what_to_do(tmp_path):
    with pytest.raises(VigilError, match="plug it in"):
        KeyFile(str(tmp_path / "none")).open()


def test_a_pedal_that_may_not_be_read_says_what_to_do(tmp_path):
    forbidden = tmp_path / "event0"
    forbidden.touch(mode=0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # root may read everything, nobody may not
    try:
        with pytest.raises(VigilError, match=r"sudo usermod -aG input \$USER"):
            KeyFile(str(forbidden)).open()
    finally:
        os.seteuid(me)


def test_buttons_by_topic_have_to_be_told_again_and_again(pedal):
    buttons = Buttons(
        {
            "deadman": ButtonConfig(topic="pedal/left"),
            "start": ButtonConfig(topic="pedal/left"),
            "success": ButtonConfig(input=str(pedal.path), code=KEY_B),
        }
    )
    buttons.open()
    assert [source.topic for source in buttons.inputs] == ["pedal/left"]
    assert buttons.poll(1.0) == {"deadman": None, "start": None, "success": False}
    buttons.feed("pedal/left", True, 1.0)
    pedal.send(PRESS_B)
    assert buttons.poll(1.2) == {"deadman": True, "start": True, "success": True}
    assert buttons.poll(1.3) == {"deadman": None, "start": None, "success": True}
    with pytest.raises(BadInput, match="told by a Bool"):
        buttons.feed("pedal/left", 1.0, 1.4)
    pedal.unplug()
    assert buttons.poll(1.5)["success"] is None
    assert "was lost" in buttons.trouble
    buttons.close()


def test_a_deadman_counts_once_it_was_seen_released():
    deadman = Deadman()
    pressed = [True, None, True, False, True, True, None, True, False, False, True]
    assert [deadman.step(p) for p in pressed] == [False] * 4 + [True, True] + [False] * 4 + [True]


def test_episode_buttons_count_when_pressed_and_not_while_held():
    buttons = EpisodeButtons()
    assert buttons.pressed({"start"}) == []  # held since before we looked
    assert buttons.pressed(set()) == []
    assert buttons.pressed({"start", "deadman"}) == ["start"]
    assert buttons.pressed({"start"}) == []
    assert buttons.pressed({"start", "failure", "success"}) == ["success", "failure"]


def test_a_success_that_an_operator_and_the_policy_share_is_an_intervened_one():
    buttons = EpisodeButtons()
    assert buttons.outcome("success") == "success"
    for authority in ("HOLD", "OPERATOR"):
        buttons.note("one", authority)
    assert buttons.outcome("success") == "success"  # a demonstration
    buttons.note("one", "POLICY")
    assert [buttons.outcome(role) for role in ("success", "failure", "discard")] == [
        "intervened_success",
        "failure",
        "discarded",
    ]
    buttons.note("two", "POLICY")
    assert buttons.outcome("success") == "success"
    buttons.note("two", "BLENDED")
    assert buttons.outcome("success") == "intervened_success"


def test_rate_and_jitter_are_those_of_the_last_seconds():
    rate = Rate()
    assert rate.measure(0.0) == (0.0, 0.0)
    instants = np.cumsum(np.tile([0.009, 0.011], 200))
    for instant in instants:
        rate.note(instant)
    hertz, jitter = rate.measure(instants[-1])
    assert hertz == pytest.approx(100.0, rel=0.01)
    assert jitter == pytest.approx(0.001, rel=0.01)
    for instant in instants[-1] + 0.05 * np.arange(1, 50):
        rate.note(instant)
    assert rate.measure(instant)[0] == pytest.approx(20.0, rel=0.01)
    assert rate.measure(instant + 2.1) == (0.0, 0.0)  # it does not come any more
    rate.note(1.0)  # the clock was set back
    assert rate.measure(1.0) == (0.0, 0.0)
