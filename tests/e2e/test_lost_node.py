"""kill -9 of each node while the policy moves the arm: it holds, the stack says what is missing, and resumes on request.

The policy is a tiny one that keeps pushing every joint, so that the arm moves for as long as it has control.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import JointState

from support.live_node import graph, wait_for
from support.tiny_bundle import write_tiny_bundle
from vigil.bringup import Options
from vigil.node import SENSOR, nanoseconds
from vigil.rig import RigConfig, load_rig
from vigil.run.episodes import engage, new_scene
from vigil.run.node import HUNG_AFTER
from vigil.run.session import Session, derive_rig

HOLD_WITHIN = 0.3  # [s] the bar
PUSH = 0.02  # [rad] ahead of the measured pose at which the tiny policy wants every joint; the gripper stays
NODES = ("camera_wrist", "camera_scene", "policy", "monitor", "teleop", "record", "sim", "arm")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> RigConfig:
    folder: Path = tmp_path_factory.mktemp("rig")
    rig = load_rig("franka_sim")
    bundle = write_tiny_bundle(folder / "bundle", offset=[PUSH] * 7 + [0.0], gain=0.001)
    everywhere = {"tool_speed": 1.5, "inside": {"lower": (-2.0, -2.0, -2.0), "upper": (2.0, 2.0, 2.0)}}
    return derive_rig(
        rig,
        folder,
        arms=[{**rig.arm.model_dump(mode="json", exclude_none=True), "workspace": everywhere}],
        policy={"bundle": str(bundle), "samples": 4},
        record={"directory": str(folder / "recordings")},
        sim={"time_limit": 600.0},
    )


@pytest.fixture(scope="module")
def session(rig, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    with Session(rig, Options(), logs, parameters={"monitor": {"uncalibrated": True}}) as session:
        yield session


@pytest.fixture(scope="module")
def joints(session, rig):
    """Joint states as the hardware publishes them: a list that grows."""
    with graph(rig.namespace) as listener:
        yield listener.collect(JointState, f"{rig.arm.name}/joint_states", SENSOR)


def speed(message: JointState, rig: RigConfig) -> float:
    """Largest speed of an arm joint [rad/s]."""
    by_name = dict(zip(message.name, message.velocity, strict=True))
    return max(abs(by_name[name]) for name in rig.arm.joints)


def set_in_motion(session: Session, joints: list, rig: RigConfig) -> None:
    wait_for(session.all_active, 60, "all nodes are active")
    new_scene(session.client, seed=3)
    engage(session.client)
    joints.clear()

    def moves() -> bool:
        # A restarted process still loads the machine: should a late input hold the arm, it is asked for again.
        if session.client.arm.authority_name == "HOLD":
            engage(session.client)
        return bool(joints) and speed(joints[-1], rig) > 0.02

    wait_for(moves, 20, "the policy moves the arm")


@pytest.mark.parametrize("name", NODES)
def test_the_arm_holds_says_why_and_resumes_on_request(session, joints, rig, name):
    held_after = kill_and_recover(session, joints, rig, name)
    if held_after > HOLD_WITHIN:
        # Six processes start anew beside it on a test machine's two cores: once may be late, twice is a fault.
        print(f"{name}: held after {held_after * 1e3:.0f} ms, tried once more")
        held_after = kill_and_recover(session, joints, rig, name)
    assert held_after <= HOLD_WITHIN, f"held after {held_after * 1e3:.0f} ms: {session.client.arm.reason}"

    set_in_motion(session, joints, rig)
    assert session.client.arm.authority_name == "POLICY"
    session.client.hold()


def test_a_node_that_lives_but_does_not_answer_is_ended_and_started_again(session, joints, rig):
    set_in_motion(session, joints, rig)
    before = session.status("monitor")
    os.kill(before.pid, signal.SIGSTOP)
    session.client.wait_until(lambda c: c.arm.authority_name == "HOLD", 5, "the arm holds")
    assert "monitor" in session.client.arm.reason
    wait_for(
        lambda: session.status("monitor").restarts > before.restarts, HUNG_AFTER + 10, "it is started again"
    )
    assert "did not answer" in session.log("monitor").read_text()
    wait_for(session.all_active, 60, "it is back")
    assert session.client.arm.authority_name == "HOLD", "nothing may resume by itself"


def kill_and_recover(session: Session, joints: list, rig: RigConfig, name: str) -> float:
    """kill -9 of a node while the arm moves, until it is back; gives how long the arm took to hold [s]."""
    set_in_motion(session, joints, rig)
    before = session.status(name)
    killed = time.time_ns()
    os.kill(before.pid, signal.SIGKILL)

    held_after = 0.0
    if name == "arm":
        check_hardware_stops(joints, rig, killed)
    else:
        held_after = check_hold(session, name, killed)
    blocked = BlockedCameras(session, name)

    def again() -> bool:
        blocked.look()
        return session.status(name).restarts > before.restarts and session.all_active()

    wait_for(again, 70, f"{name} is started again and back")
    assert not blocked.found, f"with {name} fell silent: {sorted(blocked.found)}"
    assert session.client.arm.authority_name == "HOLD", "nothing may resume by itself"
    return held_after


class BlockedCameras:
    """Cameras that are silent for a second while another node is away.

    Cameras and policy share memory. Over what a killed one had left there the others blocked each other for two seconds at a
    time, and for longer than the policy was away.
    """

    def __init__(self, session: Session, killed: str) -> None:
        self._client, self._others = session.client, {"camera_wrist", "camera_scene"} - {killed}
        self._since: dict[str, float] = {}
        self.found: set[str] = set()

    def look(self) -> None:
        """To be called again and again."""
        for camera in self._others:
            if f"{camera}: the node died" not in self._client.arm.blocked_by:
                self._since.pop(camera, None)
            elif time.monotonic() - self._since.setdefault(camera, time.monotonic()) > 1.0:
                self.found.add(camera)


def check_hold(session: Session, name: str, killed: int) -> float:
    """The arm holds and says that ``name`` is missing; gives after how long it held [s]."""
    client = session.client
    client.wait_until(lambda c: c.arm.authority_name == "HOLD", 5, "the arm holds")
    took = (nanoseconds(client.arm.transition_stamp) - killed) / 1e9
    known_by = {"sim": ("sim", "joint"), "teleop": ("teleop", "operator")}.get(
        name, (name, name.removeprefix("camera_"))
    )

    def named(c) -> bool:
        # On a busy machine another watchdog may be the first; what is missing is then in `blocked_by`.
        return any(word in c.arm.reason + c.arm.blocked_by for word in known_by)

    client.wait_until(named, 3, f"the arm says that {name} is missing")
    return took


def check_hardware_stops(joints: list[JointState], rig: RigConfig, killed: int) -> None:
    """Without an arm node nobody reports; the controller ends the stop that every command carries."""

    def after(ns: int) -> list[JointState]:
        return [m for m in joints if nanoseconds(m.header.stamp) > killed + ns]

    wait_for(lambda: len(after(round(1.5e9))) > 10, 10, "joint states go on")
    late = after(round(HOLD_WITHIN * 1e9))
    moved = np.ptp(
        [[p for n, p in zip(m.name, m.position, strict=True) if n in rig.arm.joints] for m in late], axis=0
    )
    assert moved.max() < 0.01, (
        f"after {HOLD_WITHIN} s without the arm node a joint still moved by {moved.max():.3f} rad"
    )
