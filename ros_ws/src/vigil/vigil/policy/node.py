"""The policy node: joins camera frames and joint states, samples K chunks, publishes one and the evidence for it.

Callbacks only store the newest inputs; resizing and inference run in a worker thread. The chunk goes out as soon as it is
chosen among the first few samples; the evidence, with all K, follows: whoever answers to it may rely on the chunk being on
its way.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.task import Future
from sensor_msgs.msg import Image, JointState
from vigil_msgs.msg import ActionChunk, ControlState, PolicyEvidence
from vigil_msgs.srv import LoadPolicy, SwitchTask

from vigil.errors import VigilError
from vigil.inbox.node import Inbox
from vigil.joints import joint_sources
from vigil.node import (
    COMMAND,
    ERROR,
    EVIDENCE,
    LATCHED,
    OK,
    SENSOR,
    WARN,
    Health,
    VigilNode,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.policy.bundle import Bundle, load_bundle
from vigil.policy.chunks import select
from vigil.policy.observation import Observation, ObservationBuffer, Rejected, frame_view, prepare_image
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.schedule import Schedule
from vigil.policy.telemetry import Troubles, Window
from vigil.rig import resolve
from vigil.scheduling import step_forward


@dataclass(frozen=True)
class Job:
    """One tick's work."""

    observation: Observation
    runtime: PolicyRuntime
    complete_at: float  # [s] monotonic: when the set was complete


JOINTS_LATE = 0.003  # [s] after which a joint state that images were faster than is looked for again
DRIVING = (ControlState.POLICY, ControlState.BLENDED)  # the policy moves the arm, by itself or corrected
LATEST = 0.5  # share of a chunk's horizon that may be over when it is published


class PolicyNode(VigilNode):
    """Publishes ``policy/chunk`` and ``policy/evidence``; serves ``policy/load`` and ``policy/switch_task``."""

    def __init__(self) -> None:
        super().__init__("policy")
        self._runtime: PolicyRuntime | None = None
        self._buffer: ObservationBuffer | None = None
        self._joints_awaited = False
        self._images = Inbox(self)
        self._worker: threading.Thread | None = None
        self._wake = threading.Condition()  # guards what follows
        self._job: Job | None = None
        self._stopping = False
        self._not_before = 0  # [ns] observations older than the last transition to POLICY make no chunk
        self._schedule = Schedule(0, 0)
        self._tick = 0
        self._authority = ControlState.HOLD
        self._transitions_seen: int | None = None
        self._rng = np.random.default_rng()
        self._latency, self._inference, self._skew = Window(), Window(), Window()
        self._ages: dict[str, Window] = {}
        self._troubles = Troubles()
        self._ticked_at = 0.0  # [s] monotonic

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        cv2.setNumThreads(1)  # a frame takes under a millisecond: a second thread only takes the other core
        self._runtime = self._open_bundle(self.rig.policy.bundle)
        self._chunks = self.advertise(ActionChunk, "policy/chunk", COMMAND)
        self._evidence = self.advertise(PolicyEvidence, "policy/evidence", EVIDENCE)
        # A group of its own: while its coroutine waits, every other callback goes on.
        alone = MutuallyExclusiveCallbackGroup()
        self.serve(LoadPolicy, "policy/load", self._on_load, callback_group=alone)
        self.serve(SwitchTask, "policy/switch_task", self._on_switch_task)
        # Who has control is read with the images that are due; so are the joints, but in lock step, where every input is waited for.
        self.inbox.listen(ControlState, "arm/state", self._on_control_state, LATCHED)
        listen = self.listen if self.lockstep else self.inbox.listen
        for number, source in enumerate(joint_sources(self.rig)):
            listen(JointState, source.topic, partial(self._on_joints, number), SENSOR)
        self._connect_inputs()

    def start(self) -> None:
        with self._wake:
            self._buffer.clear()
            self._rng = np.random.default_rng(self.rig.policy.seed)
            self._job, self._stopping = None, False
            self._schedule.restart()
            self._tick = 0
        self._ticked_at = time.monotonic()
        # The arm waits for chunks, and inference must not hold up the threads that receive images.
        step_forward(all_threads=True)
        self._worker = threading.Thread(target=self._work, name="inference", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def teardown(self) -> None:
        self._images.close()
        self._runtime = None

    def _open_bundle(self, path: str) -> PolicyRuntime:
        bundle = load_bundle(resolve(path), self.rig.policy.sampler)
        bundle.check_rig(self.rig)
        runtime = PolicyRuntime(bundle, threads=self.rig.policy.threads)
        seconds = runtime.warm_up(self.rig.policy.samples)
        if seconds > self.rig.policy.period:
            self.get_logger().warning(
                f"bundle {bundle.name}: one inference takes {seconds * 1e3:.0f} ms, longer than the policy period of "
                f"{self.rig.policy.period * 1e3:.0f} ms: lower policy.samples in the rig file"
            )
        reasons = f" (not used: {runtime.providers.reasons})" if runtime.providers.reasons else ""
        self.get_logger().info(
            f"bundle {bundle.name} on {runtime.providers.name}{reasons}; K = {self.rig.policy.samples}: {seconds * 1e3:.1f} ms"
        )
        return runtime

    def _connect_inputs(self) -> None:
        """Subscribe to what the bundle in use reads, and to nothing else: every image costs time."""
        spec = self._runtime.bundle.spec
        shapes = {name: (self.rig.camera(name).height, self.rig.camera(name).width) for name in spec.cameras}
        rates = [self.rig.camera(name).rate for name in spec.cameras]
        # In lock step the cameras run at the policy's rate: every new set is a tick.
        period = 0.0 if self.lockstep else self.rig.policy.period
        self._schedule = Schedule(round(period * 1e9), round(0.5e9 / min(rates)))
        self._buffer = ObservationBuffer(
            shapes, spec.state_names, joint_sources(self.rig), self.rig.policy.max_skew
        )
        self._joints_awaited = False
        self._ages = {name: Window() for name in spec.cameras}
        for name in spec.cameras:
            self._images.listen(Image, f"{name}/color/image_raw", partial(self._on_image, name), SENSOR)
        self._images.attend(self._patience, self._on_joints_late)

    # Inputs ---------------------------------------------------------------------------------------------------

    def _on_image(self, camera: str, message: Image) -> None:
        if not self.active:
            return
        stamp = nanoseconds(message.header.stamp)
        self._ages[camera].add((self.now() - stamp) / 1e9)
        try:
            rgb = frame_view(message.encoding, message.height, message.width, message.step, message.data)
            with self._wake:
                self._buffer.add_frame(camera, stamp, rgb)
                due = self._schedule.expects(stamp)
        except Rejected as error:
            self._refuse(f"image {camera}", str(error))
            return
        if due:  # most images are not: the cameras are faster than the policy
            self.inbox.fetch()
            with self._wake:
                self._queue_if_due()
                self._joints_awaited = self._buffer.awaits_joints

    def _on_joints(self, source: int, message: JointState) -> None:
        if not self.active:
            return
        try:
            with self._wake:
                stamp = nanoseconds(message.header.stamp)
                self._buffer.add_joints(stamp, message.name, message.position, source)
                if self.lockstep:
                    self._queue_if_due()
        except Rejected as error:
            self._refuse("joint state", str(error))

    def _patience(self) -> float | None:
        return JOINTS_LATE if self._joints_awaited else None

    def _on_joints_late(self) -> None:
        """Once after a set of images that was faster than the joint state of its instant."""
        self._joints_awaited = False
        self.inbox.fetch()
        with self._wake:
            self._queue_if_due()

    def _on_control_state(self, message: ControlState) -> None:
        with self._wake:
            began = (
                message.transition != self._transitions_seen
                and message.authority in DRIVING
                and self._authority not in DRIVING
            )
            self._authority, self._transitions_seen = message.authority, message.transition
            if began:
                self._not_before = nanoseconds(message.transition_stamp)

    def _queue_if_due(self) -> None:
        """Hand the newest complete set to the worker if a period has passed. The lock is held."""
        observation = self._buffer.newest()
        if observation is None or not self._schedule.due(observation.stamp):
            return
        if self._job is not None:
            self._refuse(
                "waiting observation", "replaced by a newer one: inference is slower than the policy period"
            )
        self._job = Job(observation, self._runtime, time.monotonic())
        self._wake.notify()

    def _refuse(self, kind: str, reason: str) -> None:
        if self._troubles.add(kind, reason):
            self.get_logger().warning(f"{kind} not used: {reason}")

    # Inference ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._job is not None or self._stopping)
                if self._stopping:
                    return
                job, self._job = self._job, None
            try:
                self._infer(job)
            except VigilError as error:
                self._refuse("inference", str(error))

    def _infer(self, job: Job) -> None:
        spec, observation = job.runtime.bundle.spec, job.observation
        images = {name: prepare_image(rgb, spec.image_shape) for name, rgb in observation.images.items()}
        settings, runtime, started = self.rig.policy, job.runtime, time.perf_counter()
        encoded = runtime.encode(images, observation.state)
        # The arm waits for one chunk, the monitor for all of them: the one is chosen among the first few.
        samples = runtime.draw(encoded, min(settings.candidates, settings.samples), self._rng)
        chosen = select(samples, spec.action_std, settings.selection)
        age = (self.now() - observation.stamp) / 1e9
        with self._wake:
            if runtime is not self._runtime:
                return self._refuse("chunk", "its bundle was replaced while it was computed")
            if observation.stamp < self._not_before:
                return self._refuse("chunk", "observed before the policy was given control")
            if age > LATEST * spec.horizon * spec.step_dt:
                return self._refuse("chunk", f"{age * 1e3:.0f} ms old when it was done: half of it is over")
            tick, self._tick = self._tick, self._tick + 1
        self._publish_chunk(job, samples[chosen], tick)
        self._skew.add(observation.skew / 1e9)
        self._latency.add(time.monotonic() - job.complete_at)
        self._ticked_at = time.monotonic()
        if len(samples) < settings.samples:
            others = runtime.draw(encoded, settings.samples - len(samples), self._rng, first=False)
            samples = np.concatenate([samples, others])
        self._inference.add(time.perf_counter() - started)
        self._publish_evidence(job, encoded.embedding, samples, chosen, tick)

    def _publish_chunk(self, job: Job, positions: np.ndarray, tick: int) -> None:
        spec = job.runtime.bundle.spec
        chunk = ActionChunk(
            tick=tick,
            bundle=spec.name,
            names=list(spec.action_names),
            step_dt=spec.step_dt,
            horizon=spec.horizon,
            positions=array("d", positions.astype(np.float64).tobytes()),
        )
        chunk.header.stamp = to_stamp(job.observation.stamp)
        chunk.inference_time = time.monotonic() - job.complete_at
        self._chunks.publish(chunk)

    def _publish_evidence(
        self, job: Job, embedding: np.ndarray, samples: np.ndarray, chosen: int, tick: int
    ) -> None:
        bundle, spec = job.runtime.bundle, job.runtime.bundle.spec
        evidence = PolicyEvidence(
            tick=tick,
            bundle_hash=bundle.content_hash,
            sampler=bundle.sampler_name,
            sampler_steps=bundle.sampler.steps,
            names=list(spec.action_names),
            step_dt=spec.step_dt,
            embedding=array("f", embedding.tobytes()),
            k=len(samples),
            horizon=spec.horizon,
            samples=array("f", samples.tobytes()),
            chosen=chosen,
        )
        evidence.header.stamp = to_stamp(job.observation.stamp)
        self._evidence.publish(evidence)

    # Services -------------------------------------------------------------------------------------------------

    async def _on_load(
        self, request: LoadPolicy.Request, response: LoadPolicy.Response
    ) -> LoadPolicy.Response:
        """Swap the bundle; on any failure the running one stays. It is verified in a thread of its own."""
        try:
            self._refuse_while_in_control("load another policy")
            runtime = await self._in_thread(lambda: self._open_bundle(request.path))
            self._refuse_while_in_control("load another policy")
            if self._runtime is None:
                raise VigilError("the policy node was shut down while the bundle was loaded: start it again")
            self._swap(runtime)
        except VigilError as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(f"policy/load: {error}")
        else:
            response.success = True
            response.message = f"bundle {runtime.bundle.name} ({runtime.bundle.content_hash[:12]}) is in use"
        return response

    def _refuse_while_in_control(self, what: str) -> None:
        self.inbox.fetch()
        if self._authority in DRIVING:
            raise VigilError(f"the policy moves the arm: call arm/hold first, then {what}")

    def _in_thread(self, work: Callable[[], PolicyRuntime]) -> Future:
        executor = self.executor
        future = Future(executor=executor)

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            executor.wake()

        threading.Thread(target=run, name="load", daemon=True).start()
        return future

    def _swap(self, runtime: PolicyRuntime) -> None:
        self._images.close()
        with self._wake:
            self._runtime, self._job = runtime, None
            self._connect_inputs()

    def _on_switch_task(
        self, request: SwitchTask.Request, response: SwitchTask.Response
    ) -> SwitchTask.Response:
        bundle: Bundle = self._runtime.bundle
        response.success = request.task == bundle.spec.task
        response.message = (
            f"task {request.task!r} is set"
            if response.success
            else f"bundle {bundle.name} knows one task, {bundle.spec.task!r}, not {request.task!r}: "
            "load a bundle trained for it with policy/load"
        )
        return response

    # Diagnostics ----------------------------------------------------------------------------------------------

    def diagnose(self) -> Iterable[Health]:
        self.inbox.fetch()
        with self._wake:
            missing = self._buffer.missing()
        fresh = self._troubles.take_fresh()
        silent = time.monotonic() - self._ticked_at
        stalled = not self.lockstep and silent > max(2 * self.rig.policy.period, 0.5)
        runtime = self._runtime
        inputs = {key: why for key, why in fresh.items() if key.startswith(("image", "joint"))}
        results = {key: why for key, why in fresh.items() if key not in inputs}

        ages = {k: v for name, window in self._ages.items() for k, v in window.summary(f"{name}_age").items()}
        problem = "; ".join([*inputs.values(), *([missing] if missing else [])])
        yield Health(
            "observation",
            ERROR if problem and stalled else WARN if problem else OK,
            problem or "ok",
            {**ages, **self._skew.summary("skew")},
        )
        problem = "; ".join(results.values()) or (f"no chunk for {silent:.1f} s" if stalled else "")
        yield Health(
            "inference",
            ERROR if stalled else WARN if problem else OK,
            problem or "ok",
            {
                "bundle": runtime.bundle.name,
                "bundle_hash": runtime.bundle.content_hash,
                "provider": runtime.providers.name,
                "providers_not_used": runtime.providers.reasons or "none",
                "sampler": f"{runtime.bundle.sampler_name} {runtime.sampler.steps}",
                "samples": self.rig.policy.samples,
                "ticks": self._tick,
                **self._latency.summary("observation_to_chunk"),
                **self._inference.summary("inference"),
                **{f"not_used_{kind.replace(' ', '_')}": n for kind, n in self._troubles.counts().items()},
            },
        )


main = partial(spin_node, PolicyNode)

if __name__ == "__main__":
    main()
