"""What stands around the policy node while it is measured: cameras, joint states, and an ear for what it publishes.

    python -m vigil.bench.node --rig RIG --part CAMERA --log FILE     # or --part joints

runs one source as a process of its own, as cameras and drivers do, and notes when it handed each message to the middleware.
Like those of the simulated rig, frames are exposed at instants at which a joint state is taken too.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from vigil_msgs.msg import ActionChunk, PolicyEvidence

from vigil.bench.policy import JOINTS
from vigil.bench.ticks import Tick, Ticks
from vigil.camera.wire import WireImage
from vigil.joints import joint_sources
from vigil.node import COMMAND, EVIDENCE, SENSOR, Bystander, nanoseconds, to_stamp
from vigil.rig import RigConfig, load_rig
from vigil.scheduling import step_forward

JOINT_PERIOD = 10_000_000  # [ns]
FRAMES = 8  # different ones, that take turns


class Ear:
    """Hears chunks and evidence, and when each was handed to the middleware. Use as a context manager."""

    def __init__(self, rig: RigConfig) -> None:
        self.ticks = Ticks()
        self._side = Bystander("bench", rig.namespace)
        node = self._side.node
        node.create_subscription(ActionChunk, "policy/chunk", self._on_chunk, COMMAND)
        node.create_subscription(PolicyEvidence, "policy/evidence", self._on_evidence, EVIDENCE)
        self._side.spin()

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self._side.close()

    # Two parameters: rclpy then passes on what the middleware knows of the message.
    def _on_chunk(self, message: ActionChunk, info: dict) -> None:
        stamp = nanoseconds(message.header.stamp)
        self.ticks.add(Tick(message.tick, stamp, info["source_timestamp"], message.inference_time))

    def _on_evidence(self, message: PolicyEvidence, info: dict) -> None:
        self.ticks.complete(message.tick, info["source_timestamp"])


Publish = Callable[[int], int]
"""Publishes what was taken at an instant, and gives when the middleware got it; both in ns of the system clock."""


def _camera(node: Node, rig: RigConfig, name: str) -> tuple[int, Publish]:
    """Period [ns], and what publishes a frame; as `vigil.camera.node` does it."""
    camera = rig.camera(name)
    shape = (camera.height, camera.width, 3)
    topic = node.create_publisher(Image, f"{name}/color/image_raw", SENSOR)
    image = Image(encoding="rgb8", height=shape[0], width=shape[1], step=3 * shape[1])
    image.data = array("B", bytes(np.prod(shape)))
    wire = WireImage(serialize_message(image), len(image.data))
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *shape), np.uint8)

    def publish(stamp: int) -> int:
        message = wire.message(stamp, frames[(stamp // JOINT_PERIOD) % FRAMES])
        handed_over = time.time_ns()
        topic.publish(message)
        return handed_over

    return round(1e9 / camera.rate), publish


def _joints(node: Node, rig: RigConfig) -> tuple[int, Publish]:
    """The same of the joint states: every arm at home."""
    told = []
    for source in joint_sources(rig):
        scaled = zip(source.columns, source.scale, strict=True)
        at_home = [(rig.home[column] - offset) / factor for column, (factor, offset) in scaled]
        message = JointState(name=list(source.joints), position=at_home)
        told.append((node.create_publisher(JointState, source.topic, SENSOR), message))

    def publish(stamp: int) -> int:
        handed_over = time.time_ns()
        for topic, message in told:
            message.header.stamp = to_stamp(stamp)
            topic.publish(message)
        return handed_over

    return JOINT_PERIOD, publish


def main() -> None:
    """Publish one source until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rig", required=True)
    parser.add_argument("--part", required=True)
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    rig = load_rig(args.rig)
    rclpy.init()
    node = rclpy.create_node(f"bench_{args.part}", namespace=rig.namespace)
    period, publish = _joints(node, rig) if args.part == JOINTS else _camera(node, rig, args.part)
    step_forward(all_threads=True)  # as cameras do; hardware has a processor of its own
    number = time.time_ns() // period + 1
    with args.log.open("w", buffering=1) as log, contextlib.suppress(KeyboardInterrupt):
        while True:
            stamp = round(number * period / JOINT_PERIOD) * JOINT_PERIOD
            time.sleep(max(0, stamp - time.time_ns()) / 1e9)
            log.write(f"{stamp} {publish(stamp)}\n")
            number += 1
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
