"""The failure monitor's node: one verdict per policy tick, within the callback that brings the evidence."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from std_srvs.srv import Trigger
from vigil_msgs.msg import ControlState, FailureStatus, PolicyEvidence

from vigil.errors import VigilError
from vigil.monitor.calibration import (
    Calibration,
    binding_of,
    calibration_folder,
    check_arm,
    check_binding,
    check_level,
    geometry_of,
    load_calibration,
    load_detector,
)
from vigil.monitor.detector import UNCALIBRATED, Channel, Detector, Status
from vigil.monitor.entropy import Spread
from vigil.monitor.features import Evidence, Kinematics
from vigil.node import (
    ERROR,
    EVENTS,
    EVIDENCE,
    LATCHED,
    OK,
    WARN,
    Health,
    VigilNode,
    nanoseconds,
    spin_node,
    to_stamp,
)
from vigil.policy.bundle import bundle_of
from vigil.scheduling import ALARMING, ask_for_priority, step_forward

LATE_CHECK = 0.1  # s between two looks at whether evidence is late


@dataclass(frozen=True)
class Judge:
    """What judges one policy's evidence."""

    detector: Detector
    calibration: Calibration | None
    why_uncalibrated: str  # empty: thresholds are in force


class MonitorNode(VigilNode):
    """Publishes ``monitor/status`` for every ``policy/evidence``; serves ``monitor/reset``.

    Parameter ``uncalibrated``: publish UNCALIBRATED verdicts with raw scores, for collecting the roll-outs that a
    calibration is made of. Without it a missing or foreign calibration fails the configuration.
    """

    def __init__(self) -> None:
        super().__init__("monitor")
        self.declare_parameter("uncalibrated", False)
        self._judges: dict[str, Judge] = {}  # by the identity of the policy
        self._detector: Detector | None = None
        self._calibration: Calibration | None = None
        self._why_uncalibrated = ""
        self._authority: int | None = None
        self._control_count: int | None = None
        self._heard = 0.0  # s, monotonic: when the last evidence came
        self._tick = 0
        self._mismatch = ""
        self._was_latched = False
        self._verdicts: Counter[str] = Counter()
        self._costs: deque[float] = deque(maxlen=500)
        self._last: Status | None = None

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._load()
        self._status = self.advertise(FailureStatus, "monitor/status", EVENTS)
        self.serve(Trigger, "monitor/reset", self._on_reset)
        self.listen(PolicyEvidence, "policy/evidence", self._on_evidence, EVIDENCE)
        # Who has control is read when there is something to judge.
        self.inbox.listen(ControlState, "arm/state", self._on_control_state, LATCHED)

    def start(self) -> None:
        self._heard = time.monotonic()
        self._forget()
        if not self.lockstep:
            step_forward(all_threads=True)  # where the following is not allowed
            ask_for_priority(ALARMING, all_threads=True)  # its verdict may stop the arm
            self._timer = self.create_timer(LATE_CHECK, self._check_late)

    def stop(self) -> None:
        if not self.lockstep:
            self.destroy_timer(self._timer)

    def teardown(self) -> None:
        self._judges = {}
        self._detector = None
        self._calibration = None

    def _load(self) -> None:
        """A detector for each task of the rig; the own task's has to be calibrated, unless asked otherwise."""
        uncalibrated = self.get_parameter("uncalibrated").value or self.rig.monitor.level == "none"
        self._judges = {}
        for task in self.rig.tasks:
            identity, judge = self._make_judge(task, uncalibrated)
            self._judges[identity] = judge
            if task == self.rig.task:
                self._use(judge)

    def _make_judge(self, task: str, uncalibrated: bool) -> tuple[str, Judge]:
        """(the policy's identity, its judge) for one task."""
        rig, identity = self.rig, task
        try:
            bundle = bundle_of(rig, task)
            identity = bundle.content_hash
            folder = calibration_folder(bundle, rig.monitor.level)
            calibration = load_calibration(folder)
            check_binding(calibration, binding_of(bundle, rig), folder)
            check_arm(calibration, rig)
            check_level(calibration, rig.monitor.level)
            why = "asked to run uncalibrated" if uncalibrated else ""
            judge = Judge(load_detector(folder, calibration), calibration, why)
        except VigilError as error:
            if not uncalibrated and task == rig.task:
                raise
            kinematics = Kinematics(geometry_of(rig))
            unlimited = Channel(Spread(), window=1, threshold=np.array([np.inf]), single=np.inf)
            judge = Judge(Detector([unlimited], (("spread",),), kinematics), None, str(error))
        if judge.why_uncalibrated:
            for channel in judge.detector.channels:
                channel.threshold, channel.single = np.array([np.inf]), np.inf
            of_task = f" on task {task!r}" if len(rig.tasks) > 1 else ""
            self.get_logger().warning(
                f"runs uncalibrated{of_task}, raises no alarm: {judge.why_uncalibrated}"
            )
        return identity, judge

    def _use(self, judge: Judge) -> None:
        self._detector, self._calibration = judge.detector, judge.calibration
        self._why_uncalibrated = judge.why_uncalibrated
        self._forget()

    def _follow(self, identity: str) -> None:
        """The policy's task was switched: its evidence is judged by what was calibrated on the policy that does it."""
        judge = self._judges.get(identity)
        if judge is not None and judge.detector is not self._detector:
            self.get_logger().info("the task was switched: judges by the other policy's calibration")
            self._use(judge)

    # Inputs ---------------------------------------------------------------------------------------------------

    def _on_evidence(self, message: PolicyEvidence) -> None:
        if not self.active:
            return
        self.inbox.fetch()
        started = time.perf_counter()
        self._heard, self._tick = time.monotonic(), message.tick
        evidence = Evidence(
            stamp=nanoseconds(message.header.stamp) / 1e9,
            tick=message.tick,
            bundle_hash=message.bundle_hash,
            sampler=message.sampler,
            sampler_steps=message.sampler_steps,
            names=tuple(message.names),
            step_dt=message.step_dt,
            embedding=np.asarray(message.embedding, np.float32),
            k=message.k,
            horizon=message.horizon,
            samples=np.asarray(message.samples, np.float32),
        )
        self._follow(evidence.bundle_hash)
        status = self._judge(evidence)
        self._publish(status, nanoseconds(message.header.stamp), time.perf_counter() - started)
        self._costs.append(time.perf_counter() - started)

    def _judge(self, evidence: Evidence) -> Status:
        flaw = evidence.flaw()
        if flaw:
            return self._detector.stale(evidence.stamp, evidence.tick, flaw)
        if mismatch := self._foreign(evidence):
            return self._detector.stale(evidence.stamp, evidence.tick, mismatch, UNCALIBRATED)
        # In HOLD or under the operator nobody acts on the policy's chunks: there is nothing to remember.
        in_control = self._authority in (None, ControlState.POLICY, ControlState.BLENDED)
        status = self._detector.update(evidence, latch=in_control and not self._why_uncalibrated)
        if self._why_uncalibrated and np.isfinite(status.scores).all():
            return Status(
                status.stamp,
                status.tick,
                UNCALIBRATED,
                False,
                self._why_uncalibrated,
                status.scores,
                status.windowed,
                status.thresholds,
            )
        return status

    def _foreign(self, evidence: Evidence) -> str:
        """In words, how this evidence comes from another policy than the calibrated one; empty if it does not."""
        differences = []
        if self._calibration is not None:
            differences = self._calibration.binding.differences(
                {
                    "bundle_hash": evidence.bundle_hash,
                    "sampler": evidence.sampler,
                    "sampler_steps": evidence.sampler_steps,
                    "k": evidence.k,
                    "horizon": evidence.horizon,
                    "step_dt": evidence.step_dt,
                    "names": evidence.names,
                    "embedding_dim": len(evidence.embedding),
                }
            )
        mismatch = f"evidence of another policy: {'; '.join(differences)}" if differences else ""
        if mismatch and mismatch != self._mismatch:
            self.get_logger().error(mismatch)
        self._mismatch = mismatch
        return mismatch

    def _on_control_state(self, message: ControlState) -> None:
        changed = self._control_count is not None and message.transition != self._control_count
        self._authority, self._control_count = message.authority, message.transition
        # A new stretch of control is judged afresh, and clears the alarm that ended the last one.
        if changed and message.authority in (ControlState.POLICY, ControlState.OPERATOR):
            self._forget()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._forget()
        response.success, response.message = True, "windows and alarm are reset"
        return response

    def _forget(self) -> None:
        self._detector.reset()
        self._was_latched = False

    def _check_late(self) -> None:
        silent = time.monotonic() - self._heard
        if self.active and silent > self.rig.watchdogs.monitor:
            now = self.now()
            why = f"no evidence from the policy for {silent:.1f} s"
            self._publish(self._detector.stale(now / 1e9, self._tick, why), now, 0.0)

    # Output ---------------------------------------------------------------------------------------------------

    def _publish(self, status: Status, stamp: int, seconds: float) -> None:
        detector = self._detector
        message = FailureStatus(
            tick=status.tick,
            verdict=status.verdict,
            verdict_name=status.name,
            alarm=status.alarm,
            reason=status.reason,
            score_names=list(detector.names),
            score_kinds=list(detector.kinds),
            scores=status.scores.tolist(),
            windowed=status.windowed.tolist(),
            thresholds=status.thresholds.tolist(),
            computation_time=seconds,
        )
        message.header.stamp = to_stamp(stamp)
        self._status.publish(message)
        self._verdicts[status.name] += 1
        if status.alarm and not self._was_latched:
            self.get_logger().warning(f"alarm at tick {status.tick}: {status.reason}")
        self._was_latched = status.alarm
        self._last = status

    def diagnose(self) -> Iterable[Health]:
        binding = self._calibration.binding if self._calibration else None
        problem = self._mismatch or self._why_uncalibrated
        yield Health(
            "calibration",
            ERROR if self._mismatch else WARN if problem else OK,
            problem or "matches the policy",
            {
                "level": self.rig.monitor.level,
                "scores": ", ".join(self._detector.names),
                "delta": self._calibration.delta if self._calibration else "none",
                "bundle_hash": binding.bundle_hash if binding else "none",
                "bound": self._calibration.bound if self._calibration else "none",
            },
        )
        silent = time.monotonic() - self._heard
        late = not self.lockstep and silent > self.rig.watchdogs.monitor
        costs = np.array(self._costs) * 1e3
        yield Health(
            "evidence",
            ERROR if late else OK,
            f"none for {silent:.1f} s" if late else "ok",
            {
                "last_verdict": f"{self._last.name}: {self._last.reason}" if self._last else "none",
                "alarm": self._detector.latched,
                "tick_ms_median": round(float(np.median(costs)), 3) if len(costs) else "none",
                "tick_ms_p99": round(float(np.percentile(costs, 99)), 3) if len(costs) else "none",
                **{f"n_{name}": n for name, n in sorted(self._verdicts.items())},
            },
        )


main = partial(spin_node, MonitorNode)

if __name__ == "__main__":
    main()
