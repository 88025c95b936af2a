"""What the recorder of a rig listens to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vigil.joints import joint_sources
from vigil.rig import ArmConfig, RigConfig

BURST = 4 << 20  # [bytes] what launch/dds asks the kernel for: four raw pictures
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
        stream: what its messages are called, where they ought to be steady; holes are then noted.
    """

    name: str
    type_name: str
    delivery: Delivery = "sensor"
    stamped: bool = True
    keep: bool = False
    shared: bool = False
    image: bool = False
    stream: str = ""


def sources(rig: RigConfig) -> list[Source]:
    """Every topic of ``rig`` that belongs to an episode."""
    found = [
        *(
            Source(source.topic, "sensor_msgs/msg/JointState", stream=f"joint states {source.topic}")
            for source in joint_sources(rig)
        ),
        *(command for arm in rig.arms for command in _commands(arm)),
        Source("arm/state", "vigil_msgs/msg/ControlState", "reliable", stream="arm state"),
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
        stream = f"camera {camera.name}"
        told = stream if rig.record.images == "none" else ""
        found.append(Source(f"{colour}/camera_info", "sensor_msgs/msg/CameraInfo", stream=told))
        found.append(
            Source(f"{camera.name}/extrinsics", "geometry_msgs/msg/TransformStamped", "latched", keep=True)
        )
        if rig.record.images == "jpeg":
            topic, kind = f"{colour}/image_raw/compressed", "sensor_msgs/msg/CompressedImage"
            found.append(Source(topic, kind, image=True, stream=stream))
        elif rig.record.images == "raw":
            topic, kind = f"{colour}/image_raw", "sensor_msgs/msg/Image"
            found.append(Source(topic, kind, image=True, stream=stream))
        if camera.depth and rig.record.images != "none":
            topic, kind = f"{camera.name}/aligned_depth_to_color/image_raw", "sensor_msgs/msg/Image"
            found.append(Source(topic, kind, image=True, stream=f"depth {camera.name}"))
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


def advice_on_buffers(limit: Path = Path("/proc/sys/net/core/rmem_max")) -> str:
    """What to do about a kernel that gives a socket less than a burst of raw pictures takes; empty if it gives enough."""
    try:
        given = int(limit.read_text())
    except (OSError, ValueError):  # not Linux
        return ""
    if given >= BURST:
        return ""
    return (
        f"raw pictures will be lost: the kernel gives a socket at most {given} bytes (net.core.rmem_max), a burst of them "
        f"takes {BURST}: sudo sysctl -w net.core.rmem_max={BURST}, for good in /etc/sysctl.d/"
    )


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
