"""Leader arms: joints by name, the trigger as gripper and deadman, and what a rig file may say about them."""

from __future__ import annotations

import numpy as np
import pytest

from support.rigs import real_rig
from vigil.errors import VigilError
from vigil.rig import load_rig
from vigil.teleop.device import BadInput, DeviceOptions, Joints, Mode, Reading, Surroundings
from vigil.teleop.devices.factory import make_device

OPTIONS = DeviceOptions(period=0.02)
GRIPPER = {"name": "trigger", "closed": 0.8, "open": -0.2}
JOINTS = [f"fr3_joint{i}" for i in range(1, 8)]
NAMES = [*JOINTS, "trigger"]
POSE = np.array([0.1, -0.3, 0.2, -2.0, 0.4, 1.9, 0.5])
OPEN, HALF, SQUEEZED = -0.2, 0.4, 0.8  # what the trigger says


def teleop(**changes) -> dict:
    leader = {"topic": "leader/joint_states", "gripper": GRIPPER, **changes.pop("leader", {})}
    return {"device": "leader", "rate": 50, "squeeze": 0.2, "leaders": [leader], **changes}


class Hand:
    """Tells the device of a leader, and polls it."""

    def __init__(self, rig, names=NAMES) -> None:
        self.rig, self.names = rig, list(names)
        self.device = make_device(rig, OPTIONS)
        self.now = 10.0
        self.measured = np.zeros(len(rig.columns))

    def tell(self, trigger: float, pose=POSE, topic="leader/joint_states") -> None:
        self.device.feed(topic, Joints(self.names, [*pose, trigger]), self.now)

    def poll(self, deadman=None, after=0.02) -> Reading:
        self.now += after
        return self.device.poll(self.now, Surroundings(measured=self.measured, deadman=deadman))

    def follow(self, trigger: float, **how) -> Reading:
        self.tell(trigger, **how)
        return self.poll()


@pytest.fixture
def hand(tmp_path):
    return Hand(real_rig(tmp_path, teleop()))


def test_the_arm_is_where_the_leader_is_while_the_trigger_is_squeezed(hand):
    assert hand.follow(OPEN) == Reading(False, None, Mode.ABSOLUTE)
    reading = hand.follow(HALF)
    assert (reading.deadman, reading.mode) == (True, Mode.ABSOLUTE)
    np.testing.assert_allclose(reading.positions[:7], POSE)
    # 60 % of the way: the first 20 % hold the deadman, the other 80 % close the gripper.
    assert reading.positions[7] == pytest.approx(0.08 * (1.0 - 0.4 / 0.8))
    assert hand.follow(SQUEEZED).positions[7] == 0.0
    assert not hand.follow(OPEN).deadman


def test_the_edge_of_the_squeeze_does_not_chatter(hand):
    hand.follow(OPEN)
    assert not hand.follow(-0.02).deadman  # 18 %
    assert hand.follow(0.01).deadman  # 21 %
    assert hand.follow(-0.02).deadman
    assert not hand.follow(-0.07).deadman  # 13 %


def test_a_trigger_that_was_never_released_is_no_deadman(hand):
    assert not hand.follow(SQUEEZED).deadman
    hand.follow(OPEN)
    assert hand.follow(SQUEEZED).deadman


def test_a_silent_leader_lets_go_until_the_trigger_was_released(hand):
    hand.follow(OPEN)
    assert hand.follow(SQUEEZED).deadman
    assert hand.poll(after=0.05).deadman
    assert not hand.poll(after=0.1).deadman
    assert "leader/joint_states" in hand.device.trouble
    assert not hand.follow(SQUEEZED).deadman
    assert hand.device.trouble == ""
    hand.follow(OPEN)
    assert hand.follow(SQUEEZED).deadman


def test_without_the_arms_own_joint_states_nobody_drives(hand):
    hand.follow(OPEN)
    hand.measured = None
    assert not hand.follow(SQUEEZED).deadman


def test_names_signs_scales_and_offsets(tmp_path):
    mapped = {name: {"name": f"j{i}"} for i, name in enumerate(JOINTS)}
    mapped["fr3_joint2"] |= {"sign": -1, "scale": 0.5, "offset": 0.25}
    rig = real_rig(tmp_path, teleop(leader={"joints": mapped}))
    hand = Hand(rig, ["extra", "trigger", *(f"j{i}" for i in reversed(range(7)))])

    def follow(trigger):
        hand.device.feed("leader/joint_states", Joints(hand.names, [9.9, trigger, *POSE[::-1]]), hand.now)
        return hand.poll()

    follow(OPEN)
    expected = POSE.copy()
    expected[1] = -0.5 * POSE[1] + 0.25
    np.testing.assert_allclose(follow(HALF).positions[:7], expected)


@pytest.mark.parametrize(
    "names, positions, told",
    [
        ([*NAMES[:3], "fr3_joint9", *NAMES[4:]], [0.0] * 8, r"\['fr3_joint4'\] are missing"),
        ([*NAMES, "fr3_joint1"], [0.0] * 9, r"\['fr3_joint1'\] are given more than once"),
        (NAMES, [0.0] * 7, "8 names and 7 positions"),
        (NAMES, [0.0, np.nan, *[0.0] * 5, np.inf], r"\['fr3_joint2', 'trigger'\] are not finite"),
    ],
)
def test_a_bad_joint_state_is_refused_by_name_and_counts_as_silence(hand, names, positions, told):
    hand.follow(OPEN)
    assert hand.follow(SQUEEZED).deadman
    for _ in range(6):
        with pytest.raises(BadInput, match=told):
            hand.device.feed("leader/joint_states", Joints(names, positions), hand.now)
        reading = hand.poll()
    assert not reading.deadman


def test_a_pedal_in_place_of_the_trigger(tmp_path):
    rig = real_rig(tmp_path, teleop(squeeze=None, buttons={"deadman": {"topic": "pedal"}}))
    hand = Hand(rig)
    for pressed, held in (
        (False, False),
        (True, True),
        (None, False),
        (True, False),
        (False, False),
        (True, True),
    ):
        hand.tell(SQUEEZED)
        assert hand.poll(deadman=pressed).deadman is held
    hand.tell(HALF)
    assert hand.poll(deadman=True).positions[7] == pytest.approx(
        0.08 * 0.4
    )  # the whole way closes the gripper


def test_two_leaders_drive_two_arms_and_both_hands_have_to_be_there(tmp_path):
    leaders = [
        {"arm": name, "topic": f"leader_{name}/joint_states", "gripper": GRIPPER}
        for name in ("right", "left")
    ]
    hand = Hand(real_rig(tmp_path, teleop(leaders=leaders), arms=("left", "right")))
    left, right = "leader_left/joint_states", "leader_right/joint_states"

    def both(one: float, other: float) -> Reading:
        hand.tell(one, POSE, left)
        hand.tell(other, -POSE, right)
        return hand.poll()

    both(OPEN, OPEN)
    assert not both(SQUEEZED, OPEN).deadman
    reading = both(SQUEEZED, HALF)
    np.testing.assert_allclose(reading.positions, [*POSE, 0.0, *-POSE, 0.04])
    hand.tell(SQUEEZED, POSE, left)
    assert not hand.poll(after=0.11).deadman
    assert right in hand.device.trouble


def test_the_template_of_aloha_follows_its_leaders():
    """Joint states as Interbotix' driver publishes them for a leader: six joints, the handle and two fingers."""
    rig = load_rig("aloha")
    device = make_device(rig, OPTIONS)
    joints = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
    names = [*joints, "gripper", "left_finger", "right_finger"]
    pose = np.array([0.1, -0.9, 1.1, 0.2, -0.3, 0.4])

    def poll(now: float, handle: float) -> Reading:
        for side, sign in (("left", 1), ("right", -1)):
            told = Joints(names, [*sign * pose, handle, 0.03, -0.03])
            device.feed(f"/leader_{side}/joint_states", told, now)
        return device.poll(now, Surroundings(measured=np.zeros(14)))

    assert not poll(1.0, 0.8298).deadman
    reading = poll(1.02, -0.0552)
    assert reading.deadman
    np.testing.assert_allclose(reading.positions, [*pose, 0.0, *-pose, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    "section, told",
    [
        (teleop(squeeze=None), "either `squeeze`, or a button in buttons.deadman"),
        (teleop(buttons={"deadman": {"topic": "pedal"}}), "needs one deadman"),
        (teleop(squeeze=1.5), r"rig.yaml:\d+: teleop.squeeze: Input should be less than 0.9"),
        (teleop(leader={"joints": {"fr3_joint1": {}, "waist": {}}}), r"'fr3_joint7'\] are missing, \['waist'\]"),
        (teleop(leader={"arm": "left"}), r"name arms \['left'\], the rig has \['franka'\]"),
        (teleop(leader={"gripper": {"name": "g", "closed": 1, "open": 1}}), "closed and open are both 1.0"),
        (teleop(leader={"gripper": {**GRIPPER, "oepn": 1}}), "teleop.leaders.0.gripper.oepn is not a setting"),
        (teleop(leader={"joints": {"fr3_joint1": {"sign": 0}}}), "sign: Input should be -1 or 1"),
        (teleop(leader={"topic": "a b"}), "teleop.leaders.0.topic: String should match"),
        ({"device": "leader", "squeeze": 0.1}, "teleop.leaders is missing: add it"),
        ({"device": "joystick"}, "'joystick' found using 'device' does not match any of the expected tags: 'scripted'"),
        ({"device": "keyboard", "squeeze": 0.1}, "teleop.squeeze is not a setting"),
        ({"device": "keyboard", "buttons": {"deadman": {"topic": "p"}}}, "deadman of its own"),
        ({"device": "keyboard", "buttons": {"start": {"topic": "p", "code": 3}}}, "either a `topic`"),
    ],
)  # fmt: skip
def test_what_a_rig_file_may_not_say(tmp_path, section, told):
    with pytest.raises(VigilError, match=told):
        real_rig(tmp_path, section)


def test_an_error_names_the_line_within_the_section(tmp_path):
    with pytest.raises(VigilError) as caught:
        real_rig(tmp_path, teleop(leader={"gripper": {**GRIPPER, "oepn": 1}}))
    lines = (tmp_path / "rig.yaml").read_text().splitlines()
    number = int(str(caught.value).split(":")[1])
    assert "oepn" in lines[number - 1]
