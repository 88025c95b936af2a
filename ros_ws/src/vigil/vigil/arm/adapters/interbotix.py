"""Plans as Interbotix' X-series driver takes them (ALOHA's followers): the next setpoint of a group, and of one joint.

The driver holds the last position it was given, so a sender that dies leaves the arm where it is.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from vigil.arm.adapters.plan import Plan
from vigil.joints import gripper_joint, raw_width
from vigil.rig import ArmConfig


@dataclass(frozen=True)
class Group:
    """An ``interbotix_xs_msgs/JointGroupCommand``: rad, in the order of the group's joints."""

    topic: str
    name: str
    values: array


@dataclass(frozen=True)
class Single:
    """An ``interbotix_xs_msgs/JointSingleCommand``: rad."""

    topic: str
    name: str
    value: float


class JointGroup:
    """The arm's joints, in the order of the rig file, which has to be the driver's.

    Args:
        arm: the arm; its controller is the name of the group.
        columns: where its columns are in a plan, the gripper last.
    """

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.topic = f"{arm.name}/commands/joint_group"
        self._name, self._joints = arm.controller, slice(columns.start, columns.stop - 1)

    def commands(self, plan: Plan) -> Group:
        """The command to send now."""
        return Group(
            self.topic, self._name, array("f", plan.positions[0, self._joints].astype("f").tobytes())
        )


class JointSingle:
    """The gripper's joint. Arguments as `JointGroup`."""

    def __init__(self, arm: ArmConfig, columns: slice) -> None:
        self.topic = f"{arm.name}/commands/joint_single"
        self._name, self._gripper, self._column = gripper_joint(arm), arm.gripper, columns.stop - 1

    def commands(self, plan: Plan) -> Single:
        """The command to send now."""
        return Single(
            self.topic, self._name, raw_width(self._gripper, float(plan.positions[0, self._column]))
        )
