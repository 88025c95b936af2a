"""Plans as ros2_control's controllers take them.

JointTrajectoryController: points with positions and velocities, stamped; the last velocity is zero, as the controller
asks for by default, so that the hardware comes to rest inside the limits if the sender dies. Forward position
controller: the next setpoint alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vigil.arm.adapters.plan import Plan
from vigil.rig import ArmConfig


@dataclass(frozen=True)
class TrajectoryPoint:
    """One point; ``ahead`` [ns] after the trajectory's stamp. Arrays are ``array('d')``, which ROS copies whole."""

    ahead: int
    positions: array
    velocities: array


@dataclass(frozen=True)
class Trajectory:
    """A ``trajectory_msgs/JointTrajectory``; ``stamp`` in ns."""

    topic: str
    stamp: int
    joint_names: Sequence[str]
    points: tuple[TrajectoryPoint, ...]


@dataclass(frozen=True)
class Forward:
    """A ``std_msgs/Float64MultiArray``: one value per joint of the controller."""

    topic: str
    data: array


Command = Trajectory | Forward


class Adapter(Protocol):
    """Writes the joint columns of a plan for one kind of controller."""

    topic: str

    def commands(self, plan: Plan) -> Command:
        """The command to send now."""


class JointTrajectory:
    """JointTrajectoryController: the setpoint and the stop after it."""

    def __init__(self, arm: ArmConfig) -> None:
        self.topic = f"{arm.name}/{arm.controller}/joint_trajectory"
        self._names = tuple(arm.joints)

    def commands(self, plan: Plan) -> Command:
        joints = len(self._names)
        points = tuple(
            TrajectoryPoint(
                round(ahead * 1e9), array("d", position.tobytes()), array("d", velocity.tobytes())
            )
            for ahead, position, velocity in zip(
                plan.times.tolist(), plan.positions[:, :joints], plan.velocities[:, :joints], strict=True
            )
        )
        return Trajectory(self.topic, plan.stamp, self._names, points)


class ForwardPosition:
    """Forward position controller: the next setpoint of every joint."""

    def __init__(self, arm: ArmConfig) -> None:
        self.topic = f"{arm.name}/{arm.controller}/commands"
        self._joints = len(arm.joints)

    def commands(self, plan: Plan) -> Command:
        return Forward(self.topic, array("d", plan.positions[0, : self._joints].tobytes()))


class Gripper:
    """Forward position controller of the gripper: its opening width."""

    def __init__(self, arm: ArmConfig) -> None:
        self.topic = f"{arm.name}/{arm.gripper.controller}/commands"

    def commands(self, plan: Plan) -> Command:
        return Forward(self.topic, array("d", plan.positions[0, -1:].tobytes()))


_ADAPTERS = {"joint_trajectory": JointTrajectory, "forward_position": ForwardPosition}


def adapters(arm: ArmConfig) -> tuple[Adapter, ...]:
    """What drives ``arm``: the adapter of its joints' controller, and the gripper's."""
    return (_ADAPTERS[arm.controller_type](arm), Gripper(arm))
