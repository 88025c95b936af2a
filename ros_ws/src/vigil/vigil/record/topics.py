"""What the recorder of a rig listens to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vigil.joints import joint_sources
from vigil.rig import ArmConfig, RigConfig

Delivery = Literal["sensor", "reliable", "latched"]


@dataclass(frozen=True)
class Source:
    """One topic to record.

    Attributes:
        name: relative to the rig's namespace, or absolute.
        type_name: package/msg/Name.
        delivery: quality of service asked for; each is compatible with what design.md has the publisher offer.
        stamped: the message begins with a ``std_msgs/Header``.
        keep: published once and true for ever, thus written into every episode.
        shared: has several publishers, whose sequence numbers mix: losses cannot be told.
        image: costs its publisher work, thus subscribed only while an episode is open.
    """

    name: str
    type_name: str
    delivery: Delivery = "sensor"
    stamped: bool = True
    keep: bool = False
    shared: bool = False
    image: bool = False


def sources(rig: RigConfig) -> list[Source]:
    """Every topic of ``rig`` that belongs to an episode."""
    found = [
        *(Source(source.topic, "sensor_msgs/msg/JointState") for source in joint_sources(rig)),
        *(command for arm in rig.arms for command in _commands(arm)),
        Source("arm/state", "vigil_msgs/msg/ControlState", "reliable"),
        Source("teleop/command", "vigil_msgs/msg/TeleopCommand"),
        Source("policy/chunk", "vigil_msgs/msg/ActionChunk", "reliable"),
        Source("policy/evidence", "vigil_msgs/msg/PolicyEvidence", "reliable"),
        Source("monitor/status", "vigil_msgs/msg/FailureStatus", "reliable"),
        Source("record/marks", "vigil_msgs/msg/EpisodeMark", "reliable", shared=True),
        Source("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", "reliable", shared=True),
    ]
    if rig.sim is not None:
        found.append(Source("sim/state", "vigil_msgs/msg/SimState"))
        found.append(Source("sim/task", "vigil_msgs/msg/TaskState", "reliable"))
    for camera in rig.cameras:
        colour = f"{camera.name}/color"
        found.append(Source(f"{colour}/camera_info", "sensor_msgs/msg/CameraInfo"))
        found.append(
            Source(f"{camera.name}/extrinsics", "geometry_msgs/msg/TransformStamped", "latched", keep=True)
        )
        if rig.record.images == "jpeg":
            found.append(
                Source(f"{colour}/image_raw/compressed", "sensor_msgs/msg/CompressedImage", image=True)
            )
        elif rig.record.images == "raw":
            found.append(Source(f"{colour}/image_raw", "sensor_msgs/msg/Image", image=True))
    return found


def _commands(arm: ArmConfig) -> list[Source]:
    """What drives an arm and its gripper; actions are not topics, and their widths are in ``arm/state``."""
    found = []
    if arm.controller_type == "joint_trajectory":
        topic = f"{arm.name}/{arm.controller}/joint_trajectory"
        found.append(Source(topic, "trajectory_msgs/msg/JointTrajectory", "reliable"))
    elif arm.controller_type == "forward_position":
        found.append(_forward(f"{arm.name}/{arm.controller}/commands"))
    else:
        topic, kind = f"{arm.name}/commands/joint_group", "interbotix_xs_msgs/msg/JointGroupCommand"
        found.append(Source(topic, kind, "reliable", stamped=False))
    if arm.gripper.controller_type == "forward_position":
        found.append(_forward(f"{arm.name}/{arm.gripper.controller}/commands"))
    elif arm.gripper.controller_type == "interbotix":
        topic, kind = f"{arm.name}/commands/joint_single", "interbotix_xs_msgs/msg/JointSingleCommand"
        found.append(Source(topic, kind, "reliable", stamped=False))
    return found


def _forward(topic: str) -> Source:
    return Source(topic, "std_msgs/msg/Float64MultiArray", "reliable", stamped=False)


def qos_yaml(source: Source) -> str:
    """Quality of service as rosbag2 stores it with a topic, so that ``ros2 bag play`` offers the same."""
    reliability = "best_effort" if source.delivery == "sensor" else "reliable"
    durability = "transient_local" if source.delivery == "latched" else "volatile"
    forever = "\n    sec: 9223372036\n    nsec: 854775807"
    return (
        f"- history: keep_last\n  depth: 10\n  reliability: {reliability}\n  durability: {durability}\n"
        f"  deadline:{forever}\n  lifespan:{forever}\n"
        f"  liveliness: automatic\n  liveliness_lease_duration:{forever}\n"
        "  avoid_ros_namespace_conventions: false\n"
    )
