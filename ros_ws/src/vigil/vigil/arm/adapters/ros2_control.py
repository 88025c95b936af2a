"""Plans as ros2_control's controllers take them.

JointTrajectoryController: points with positions and velocities, stamped; the last velocity is zero, as the controller
asks for by default, so that the hardware comes to rest inside the limits if the sender dies. Forward position
controller: the next setpoint alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from vigil.arm.adapters.plan import Plan
from vigil.joints import raw_width
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


class JointTrajectory:
    """JointTrajectoryController: the setpoint and the stop after it.

    Args:
        arm: the arm.
        columns: where its columns are in a plan, the gripper last.
    """

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.topic = f"{arm.name}/{arm.controller}/joint_trajectory"
        self._names = tuple(arm.joints)
        self._joints = slice(columns.start, columns.stop - 1)

    def commands(self, plan: Plan) -> Trajectory:
        """The command to send now."""
        points = tuple(
            TrajectoryPoint(
                round(ahead * 1e9), array("d", position.tobytes()), array("d", velocity.tobytes())
            )
            for ahead, position, velocity in zip(
                plan.times.tolist(),
                plan.positions[:, self._joints],
                plan.velocities[:, self._joints],
                strict=True,
            )
        )
        return Trajectory(self.topic, plan.stamp, self._names, points)


class ForwardPosition:
    """Forward position controller: the next setpoint of every joint. Arguments as `JointTrajectory`."""

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.topic = f"{arm.name}/{arm.controller}/commands"
        self._joints = slice(columns.start, columns.stop - 1)

    def commands(self, plan: Plan) -> Forward:
        """The command to send now."""
        return Forward(self.topic, array("d", plan.positions[0, self._joints].tobytes()))


class ForwardGripper:
    """Forward position controller of a gripper: its opening width, or what its joint says there."""

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.topic = f"{arm.name}/{arm.gripper.controller}/commands"
        self._gripper, self._column = arm.gripper, columns.stop - 1

    def commands(self, plan: Plan) -> Forward:
        """The command to send now."""
        return Forward(
            self.topic, array("d", [raw_width(self._gripper, float(plan.positions[0, self._column]))])
        )
