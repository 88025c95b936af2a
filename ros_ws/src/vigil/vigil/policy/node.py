"""The policy node: joins camera frames and joint states, samples K chunks, publishes one and the evidence for it.

Callbacks only store the newest inputs; resizing and inference run in a worker thread (see `vigil.policy.ticker` for what a tick
is). The chunk goes out as soon as it is chosen among the first few samples; the evidence, with all K, follows: whoever answers
to it may rely on the chunk being on its way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

import cv2
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.task import Future
from sensor_msgs.msg import JointState
from vigil_msgs.msg import ActionChunk, ControlState, PolicyEvidence
from vigil_msgs.srv import LoadPolicy, SwitchTask

from vigil.arm.tracking import LOOKAHEAD
from vigil.camera.calibration import load_calibration
from vigil.errors import VigilError
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
)
from vigil.policy.bundle import load_bundle
from vigil.policy.contact import Contact
from vigil.policy.intake.node import Intake, reads
from vigil.policy.observation import Frame, Observation
from vigil.policy.outlet.node import Overlay, chunk_message, evidence_message
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.telemetry import Troubles, Window
from vigil.policy.ticker import Late, Overtaken, Ticker
from vigil.rig import resolve
from vigil.scheduling import settle_memory, step_forward

DRIVING = (ControlState.POLICY, ControlState.BLENDED)  # the policy moves the arm, by itself or corrected
LOOK = 0.02  # [s] between two looks at whether a contact has ended


class PolicyNode(VigilNode):
    """Publishes ``policy/chunk`` and ``policy/evidence``; serves ``policy/load`` and ``policy/switch_task``."""

    def __init__(self) -> None:
        super().__init__("policy")
        self._tickers: dict[str, Ticker] = {}  # by task
        self._task = ""
        self._ticker: Ticker | None = None
        self._intake: Intake | None = None
        self._next: Intake | None = None  # of the policy that is about to be switched to
        self._contact: Contact | None = None
        self._worker: threading.Thread | None = None
        self._ticking = threading.Lock()  # held by the worker from the first to the last act of a tick
        self._wake = threading.Condition()  # guards what follows
        self._waiting: Observation | None = None
        self._early: list[Frame] = []
        self._stopping = False
        self._ticks = 0
        self._authority = ControlState.HOLD
        self._transitions_seen: int | None = None
        self._latency, self._inference, self._skew = Window(), Window(), Window()
        self._troubles = Troubles()
        self._ticked_at = 0.0  # [s] monotonic

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        cv2.setNumThreads(1)  # a frame takes under a millisecond: a second thread only takes the other core
        rig = self.rig
        self._tickers = {task: self._open(str(rig.bundle_path(task)), task) for task in rig.tasks}
        self._task, self._ticker = rig.task, self._tickers[rig.task]
        self._contact = Contact(rig.gripper_columns, rig.policy.contact_margin)
        self._chunks = self.advertise(ActionChunk, "policy/chunk", COMMAND)
        self._evidence = self.advertise(PolicyEvidence, "policy/evidence", EVIDENCE)
        self._overlay = Overlay(self, rig)
        # A group of its own: while a coroutine waits, every other callback goes on.
        alone = MutuallyExclusiveCallbackGroup()
        self.serve(LoadPolicy, "policy/load", self._on_load, callback_group=alone)
        self.serve(SwitchTask, "policy/switch_task", self._on_switch_task, callback_group=alone)
        # Who has control is read with the images that are due; so are the joints, but in lock step, where every input is waited for.
        self.inbox.listen(ControlState, "arm/state", self._on_control_state, LATCHED)
        listen = self.listen if self.lockstep else self.inbox.listen
        for number, source in enumerate(joint_sources(rig)):
            listen(JointState, source.topic, partial(self._on_joints, number), SENSOR)
        self._intake = self._connect(self._ticker)

    def start(self) -> None:
        self._intake.restart()
        self._ticker.seed()
        with self._wake:
            self._waiting, self._early, self._stopping = None, [], False
            self._ticks = 0
        self._ticked_at = time.monotonic()
        # The arm waits for chunks, and inference must not hold up the threads that receive images.
        step_forward(all_threads=True)
        settle_memory()
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
        if self._intake is not None:
            self._intake.close()
        self._intake = self._ticker = None
        self._tickers = {}

    def _open(self, path: str, task: str) -> Ticker:
        """Verify and warm up a bundle for a task; VigilError if it cannot do it on this rig."""
        rig, settings = self.rig, self.rig.policy
        bundle = load_bundle(resolve(path), settings.sampler)
        bundle.check_rig(rig, task)
        for name in bundle.spec.cameras:
            load_calibration(rig.calibration_path(rig.camera(name)), rig.camera(name))
        runtime = PolicyRuntime(
            bundle, threads=settings.threads, provider=settings.provider, samples=settings.samples
        )
        ticker = Ticker(runtime, settings, self._lead(0.0), rig.sim.latency if self.lockstep else None)
        seconds = runtime.warm_up(settings.samples)
        if seconds > settings.period:
            self.get_logger().warning(
                f"bundle {bundle.name}: one inference takes {seconds * 1e3:.0f} ms, longer than the policy period of "
                f"{settings.period * 1e3:.0f} ms: lower policy.samples in the rig file"
            )
        reasons = f" (not used: {runtime.providers.reasons})" if runtime.providers.reasons else ""
        self.get_logger().info(
            f"bundle {bundle.name} on {runtime.providers.name}{reasons}; K = {settings.samples}: {seconds * 1e3:.1f} ms"
        )
        return ticker

    def _connect(self, ticker: Ticker) -> Intake:
        return Intake(self, ticker.runtime.bundle.spec, self._on_due, self._on_early, self._refuse)

    # Inputs ---------------------------------------------------------------------------------------------------

    def _on_joints(self, source: int, message: JointState, info: dict) -> None:
        if self.active:
            for intake in (self._intake, self._next):
                if intake is not None:
                    intake.add_joints(source, message, info["received_timestamp"])

    def _on_due(self, intake: Intake, observation: Observation) -> None:
        """Hand an observation to the worker; of two that wait the newer one counts."""
        with self._wake:
            if not self.active or intake is not self._intake:
                return
            if self._waiting is not None:
                why = "replaced by a newer one: inference is slower than the policy period"
                self._refuse("waiting observation", why)
            self._waiting = observation
            self._wake.notify()

    def _on_early(self, frame: Frame) -> None:
        """Have its picture made while the worker would wait."""
        with self._wake:
            self._early.append(frame)
            self._wake.notify()

    def _on_control_state(self, message: ControlState) -> None:
        stamp, driving = nanoseconds(message.header.stamp), message.authority in DRIVING
        self._contact.update(stamp, message.names, message.commanded, message.measured)
        if self.rig.policy.command_lead == "measured":
            robot = max(message.command_latency, 0.0)
        else:
            robot = self.rig.policy.command_lead
        self._ticker.lead = self._lead(robot)
        with self._wake:
            known, was_driving = self._transitions_seen, self._authority in DRIVING
            self._authority, self._transitions_seen = message.authority, message.transition
        # Only the newest state is read: of two transitions since the last one the first is not known.
        crossed = driving != was_driving or (known is not None and abs(message.transition - known) > 1)
        if message.transition != known and crossed:
            instant = nanoseconds(message.transition_stamp)
            self._ticker.restart(instant)
            if driving:
                self._intake.begin(instant)

    def _lead(self, robot: float) -> float:
        """[s] from a chunk's arrival to the motion that it leads to: the arm's own, and the latency of ``robot``."""
        return LOOKAHEAD + 1.0 / self.rig.control_rate + robot

    @property
    def _driving(self) -> bool:
        return self._authority in DRIVING

    def _refuse(self, kind: str, reason: str) -> None:
        if self._troubles.add(kind, reason):
            self.get_logger().warning(f"{kind} not used: {reason}")

    # Inference ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting is not None or self._early or self._stopping)
                if self._stopping:
                    return
            with self._ticking:
                with self._wake:
                    observation, early = self._waiting, self._early
                    self._waiting, self._early = None, []
                if observation is not None:
                    self._do(observation)
                else:  # or what waited was taken back
                    for frame in early:
                        frame.prepared(self._ticker.runtime.bundle.spec.image_shape)

    def _do(self, observation: Observation) -> None:
        while True:
            try:
                return self._infer(observation, self._ticker)
            except Overtaken:
                continue
            except Late as error:
                return self._refuse("chunk", str(error))
            except VigilError as error:
                return self._refuse("inference", str(error))

    def _infer(self, observation: Observation, ticker: Ticker) -> None:
        started = time.perf_counter()
        tick = ticker.begin(observation, driving=self._driving)
        ticker.sent(tick, (self.now() - tick.stamp) / 1e9)
        number, self._ticks = self._ticks, self._ticks + 1
        spec = ticker.runtime.bundle.spec
        taken = (time.time_ns() - observation.complete) / 1e9
        self._chunks.publish(chunk_message(spec, tick, number, taken))
        self._skew.add(observation.skew / 1e9)
        self._latency.add(taken)
        self._ticked_at = time.monotonic()
        samples = ticker.finish(tick)
        self._inference.add(time.perf_counter() - started)
        self._evidence.publish(evidence_message(ticker.runtime.bundle, tick, number, samples))
        self._overlay.publish(spec, observation, tick, samples)

    # Services -------------------------------------------------------------------------------------------------

    async def _on_load(
        self, request: LoadPolicy.Request, response: LoadPolicy.Response
    ) -> LoadPolicy.Response:
        """Swap the bundle; on any failure the running one stays. It is verified in a thread of its own."""
        try:
            self._refuse_while_in_control("load another policy")
            ticker = await self._in_thread(lambda: self._open(request.path, self._task))
            self._refuse_while_in_control("load another policy")
            if self._ticker is None:
                raise VigilError("the policy node was shut down while the bundle was loaded: start it again")
            self._swap(self._task, ticker)
        except VigilError as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(f"policy/load: {error}")
        else:
            bundle = ticker.runtime.bundle
            response.success = True
            response.message = f"bundle {bundle.name} ({bundle.content_hash[:12]}) is in use"
        return response

    async def _on_switch_task(
        self, request: SwitchTask.Request, response: SwitchTask.Response
    ) -> SwitchTask.Response:
        """Another task of the rig file: at once in free motion, at the end of a contact else; or not at all."""
        task = request.task
        try:
            self.rig.bundle_path(task)
            if not self.active:
                raise VigilError("the policy node is not active")
            if task != self._task:
                await self._in_thread(lambda: self._switch(task))
        except VigilError as error:
            response.success = False
            response.message = f"the task stays {self._task!r}: {error}"
            self.get_logger().warning(f"policy/switch_task: {response.message}")
        else:
            response.success = True
            response.message = (
                f"task {task!r} is set, done by bundle {self._tickers[task].runtime.bundle.name}"
            )
            self.get_logger().info(response.message)
        return response

    def _switch(self, task: str) -> None:
        """Wait for the moment, then switch. While this waits the old policy goes on."""
        ticker = self._tickers[task]
        self._next = None if self._shares_intake(ticker) else self._connect(ticker)
        try:
            until = time.monotonic() + self.rig.policy.switch_timeout
            while obstacle := self._obstacle():
                if time.monotonic() > until or not self.active:
                    raise VigilError(
                        f"{obstacle}; this did not end within policy.switch_timeout of "
                        f"{self.rig.policy.switch_timeout:g} s: let go of what is held, or call arm/hold first"
                    )
                time.sleep(LOOK)
            self._swap(task, ticker)
        finally:
            if self._next is not None:
                self._next.close()
                self._next = None

    def _obstacle(self) -> str:
        """What keeps the task from being switched now, in words; empty if nothing does."""
        self.inbox.fetch()
        if not self._driving:
            return ""
        contact = self._contact.ongoing(self.now())
        if contact:
            return f"the arm is in contact: {contact}"
        missing = self._next.missing() if self._next is not None else ""
        return f"the other policy sees nothing yet: {missing}" if missing else ""

    def _shares_intake(self, ticker: Ticker) -> bool:
        return self._intake.reads == reads(ticker.runtime.bundle.spec)

    def _swap(self, task: str, ticker: Ticker) -> None:
        """Between two ticks: what is carried from tick to tick is left behind."""
        fresh = None if self._shares_intake(ticker) else self._next or self._connect(ticker)
        with self._ticking, self._wake:
            ticker.lead = self._ticker.lead
            self._task, self._ticker, self._tickers[task] = task, ticker, ticker
            ticker.seed()
            if fresh is not None:
                left, self._intake, self._next, self._waiting = self._intake, fresh, None, None
        if fresh is not None:
            left.close()
            fresh.hasten()

    def _refuse_while_in_control(self, what: str) -> None:
        self.inbox.fetch()
        if self._driving:
            raise VigilError(f"the policy moves the arm: call arm/hold first, then {what}")

    def _in_thread(self, work: Callable[[], object]) -> Future:
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

    # Diagnostics ----------------------------------------------------------------------------------------------

    def diagnose(self) -> Iterable[Health]:
        self.inbox.fetch()
        ticker, intake = self._ticker, self._intake
        runtime, missing = ticker.runtime, intake.missing()
        fresh = self._troubles.take_fresh()
        silent = time.monotonic() - self._ticked_at
        stalled = not self.lockstep and silent > max(2 * self.rig.policy.period, 0.5)
        inputs = {key: why for key, why in fresh.items() if key.startswith(("image", "joint"))}
        results = {key: why for key, why in fresh.items() if key not in inputs}

        ages = {
            k: v for name, window in intake.ages.items() for k, v in window.summary(f"{name}_age").items()
        }
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
                "task": self._task,
                "bundle": runtime.bundle.name,
                "bundle_hash": runtime.bundle.content_hash,
                "provider": runtime.providers.name,
                "providers_not_used": runtime.providers.reasons or "none",
                "sampler": f"{runtime.bundle.sampler_name} {runtime.sampler.steps}",
                "samples": self.rig.policy.samples,
                "ticks": self._ticks,
                "delay_ms": f"{ticker.delay * 1e3:.1f}",
                **self._latency.summary("observation_to_chunk"),
                **self._inference.summary("inference"),
                **{f"not_used_{kind.replace(' ', '_')}": n for kind, n in self._troubles.counts().items()},
                **self._overlay.refused,
            },
        )


main = partial(spin_node, PolicyNode)

if __name__ == "__main__":
    main()
