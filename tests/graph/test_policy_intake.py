"""What the policy reads and when, over real DDS: joints as they come before a tick, and with the pictures otherwise."""

from __future__ import annotations

import time
from array import array

import pytest
from sensor_msgs.msg import Image, JointState

from support.live_node import graph, wait_for
from support.tiny_bundle import COLUMNS, write_tiny_bundle
from vigil.inbox.node import Inbox
from vigil.node import SENSOR, to_stamp
from vigil.policy.bundle import load_bundle
from vigil.policy.intake.node import Intake
from vigil.rig import load_rig

MS = 1_000_000
CAMERAS = ("wrist", "scene")


@pytest.fixture
def live():
    with graph("intake_test") as test:
        yield test


def test_shortly_before_a_tick_joints_are_read_as_they_come(live, tmp_path):
    node, read, due, refused = live.node, [], [], []
    node.rig, node.lockstep, node.active, node.now = load_rig("franka_sim"), False, True, time.time_ns
    node.inbox = Inbox(node)

    def on_joints(message: JointState, info: dict) -> None:
        read.append(message.header.stamp)
        intake.add_joints(0, message, info["received_timestamp"])

    node.inbox.listen(JointState, "franka/joint_states", on_joints, SENSOR)
    spec = load_bundle(write_tiny_bundle(tmp_path / "tiny"), None).spec
    intake = Intake(
        node,
        spec,
        lambda _, observation: due.append(observation),
        lambda frame: None,
        lambda *why: refused.append(why),
    )
    images = {name: node.create_publisher(Image, f"{name}/color/image_raw", SENSOR) for name in CAMERAS}
    joints = node.create_publisher(JointState, "franka/joint_states", SENSOR)
    wait_for(
        lambda: all(topic.get_subscription_count() for topic in (*images.values(), joints)), what="discovery"
    )
    began = time.time_ns()

    def tell_joints(after: int) -> None:
        message = JointState(name=list(COLUMNS), position=[0.0] * len(COLUMNS))
        message.header.stamp = to_stamp(began + after * MS)
        joints.publish(message)

    def tell_frames(after: int) -> None:
        for camera, topic in images.items():
            config = node.rig.camera(camera)
            message = Image(encoding="rgb8", width=config.width, height=config.height, step=3 * config.width)
            message.data = array("B", bytes(message.step * config.height))
            message.header.stamp = to_stamp(began + after * MS)
            topic.publish(message)
        newest = began + after * MS
        wait_for(
            lambda: all(frames and frames[-1][0] == newest for frames in intake._buffer._frames.values()),
            what=f"the frames of {after} ms",
        )

    tell_joints(0)
    tell_frames(0)
    wait_for(lambda: len(due) == 1, what="the first tick")
    assert due[0].complete > began
    tell_frames(33)  # the next tick is due at 200 ms
    witness = live.collect(JointState, "franka/joint_states", SENSOR)
    wait_for(lambda: joints.get_subscription_count() == 2, what="discovery of the witness")
    tell_joints(40)
    wait_for(lambda: len(witness) == 1, what="a joint state of which nobody is woken")
    assert len(read) == 1
    tell_frames(167)  # the next frames start a tick
    wait_for(lambda: len(read) == 2, what="the joint state that waited")
    tell_joints(170)
    wait_for(lambda: len(read) == 3, what="the joint state that came by itself")
    assert len(due) == 1 and not refused
    intake.close()
    node.inbox.close()
