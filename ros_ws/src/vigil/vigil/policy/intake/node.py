"""What one bundle reads: its cameras' images and the joint states, joined to observations at the policy's rate."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sensor_msgs.msg import Image, JointState

from vigil.errors import VigilError
from vigil.inbox.node import Inbox
from vigil.joints import joint_sources
from vigil.node import SENSOR, VigilNode, nanoseconds
from vigil.policy.observation import Frame, Observation, ObservationBuffer, Rejected, frame_view
from vigil.policy.schedule import Aligned, Schedule
from vigil.policy.spec import BundleSpec
from vigil.policy.telemetry import Window
from vigil.record.cdr import MessageType
from vigil.record.definitions import full_definition

IMAGE = "sensor_msgs/msg/Image"


class Intake:
    """Subscribes to the images that a bundle reads, and to nothing else: every image costs time.

    Args:
        node: its ``inbox`` is asked when a set may be complete, and has to hand over the joint states that came (`add_joints`).
        on_due: called with an observation when a period has passed.
        on_early: called with a frame of the next observation before it is known whether all its inputs are there.
        on_refused: called with what was not used, and why.
    """

    def __init__(
        self,
        node: VigilNode,
        spec: BundleSpec,
        on_due: Callable[[Intake, Observation], None],
        on_early: Callable[[Frame], None],
        on_refused: Callable[[str, str], None],
    ) -> None:
        rig = node.rig
        self.reads = reads(spec)
        self._node, self._on_due, self._on_early, self._on_refused = node, on_due, on_early, on_refused
        self._size = spec.image_shape
        self._lockstep = node.lockstep
        cameras = [rig.camera(name) for name in spec.cameras]
        self._lock = threading.Lock()  # guards the next two
        self._buffer = ObservationBuffer(
            {camera.name: (camera.height, camera.width) for camera in cameras},
            spec.state_names,
            joint_sources(rig),
            rig.policy.max_skew,
            spec.observation_steps,
            spec.observation_dt or spec.step_dt,
        )
        period = round(rig.policy.period * 1e9)
        self._interval = round(1e9 / min(camera.rate for camera in cameras))
        tolerance = self._interval // 2
        self._schedule = Aligned(period) if self._lockstep else Schedule(period, tolerance)
        self._expected: list[Frame] = []  # that came since the last wake, and may start a tick
        self._joints_awaited = False
        self._seen = 0  # stamp of the newest frame [ns]
        self.ages = {name: Window() for name in spec.cameras}
        self._decode = MessageType(IMAGE, full_definition(IMAGE)).decode
        self._images = Inbox(node)
        for name in spec.cameras:
            self._images.listen(Image, f"{name}/color/image_raw", self._listener(name), SENSOR, raw=True)
        self._images.attend(self._on_wake, beside=node.inbox)

    def restart(self) -> None:
        """Forget every input; the next complete set is due."""
        with self._lock:
            self._buffer.clear()
            self._schedule.restart()

    def hasten(self) -> None:
        """The newest complete set is due now."""
        with self._lock:
            self._schedule.restart()
        self._offer()

    def begin(self, instant: int) -> None:
        """An episode begins at ``instant`` [ns]: nothing that is older belongs to its history."""
        with self._lock:
            self._buffer.begin(instant)

    def missing(self) -> str:
        """What keeps the newest set from being complete, in words; empty if it is."""
        with self._lock:
            return self._buffer.missing()

    def close(self) -> None:
        """Unsubscribe; not from within a callback of an image."""
        self._images.close()

    def add_joints(self, source: int, message: JointState, received: int) -> None:
        """A joint state of one of the rig's sources, ``received`` [ns, system clock]."""
        try:
            with self._lock:
                stamp = nanoseconds(message.header.stamp)
                self._buffer.add_joints(stamp, message.name, message.position, source, received)
        except Rejected as error:
            self._on_refused("joint state", str(error))
            return
        if self._lockstep:
            self._offer()

    def _offer(self) -> bool:
        """Hand the newest complete set over if it is due."""
        with self._lock:
            observation = self._buffer.newest()
            due = observation is not None and self._schedule.due(observation.stamp)
        if due:
            self._on_due(self, observation)
        return due

    def _listener(self, camera: str) -> Callable[[bytes, dict], None]:
        # Serialised, since rclpy takes more than a millisecond to make a message of a picture, and we only look at its bytes.
        def on_image(data: bytes, info: dict) -> None:
            if not self._node.active:
                return
            try:
                message = self._decode(data)
                stamp = nanoseconds(message.header.stamp)
                self.ages[camera].add((self._node.now() - stamp) / 1e9)
                rgb = frame_view(message.encoding, message.height, message.width, message.step, message.data)
                with self._lock:
                    frame = self._buffer.add_frame(camera, stamp, rgb, info["received_timestamp"])
                    expected = self._schedule.expects(stamp)
                    self._seen = stamp
            except VigilError as error:
                self._on_refused(f"image {camera}", str(error))
                return
            if expected:  # most images are not: the cameras are faster than the policy
                self._expected.append(frame)

        return on_image

    def _on_wake(self) -> bool:
        """All pictures that were there have been read, or something came in the node's inbox meanwhile.

        Returns:
            Whether to be woken by that inbox, too: by joints that images were faster than; and by all that comes before the
            frames that may start a tick, so that there is nothing but pictures left to be read when they are there.
        """
        if not self._node.active:
            return False
        frames, self._expected = self._expected, []
        # Resizing takes longer than anything else here: the worker begins with it while this thread reads the joints.
        for frame in frames:
            self._on_early(frame)
        self._node.inbox.fetch()  # with every picture, so that few are left when one is due
        if not frames and not self._joints_awaited:
            return self._before_a_tick
        if self._offer():
            for frame in reversed(frames):  # from both ends
                frame.prepared(self._size)
        with self._lock:
            self._joints_awaited = self._buffer.awaits_joints
        return self._joints_awaited or self._before_a_tick

    @property
    def _before_a_tick(self) -> bool:
        """Whether the next frames may start one."""
        return not self._lockstep and self._schedule.expects(self._seen + self._interval)


def reads(spec: BundleSpec) -> tuple:
    """What a policy reads: bundles with the same can share an `Intake`."""
    return spec.cameras, spec.state_names, spec.observation_steps, spec.observation_dt or spec.step_dt
