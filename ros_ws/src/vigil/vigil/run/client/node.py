"""`RigClient`: calls the services of a running rig and remembers what its nodes last said.

It spins in a thread of its own, so that plain sequential code (evaluate, collect, demo) can wait for conditions.
Nothing that is measured comes from here: reports read the recorded stamps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from std_srvs.srv import SetBool, Trigger
from vigil_msgs.msg import ActionChunk, ControlState, EpisodeState, FailureStatus, TaskState
from vigil_msgs.srv import EndEpisode, ResetSim, StartEpisode, SwitchTask

from vigil.errors import VigilError
from vigil.inbox.node import Inbox
from vigil.node import COMMAND, EVENTS, LATCHED, Bystander
from vigil.rig import RigConfig
from vigil.scheduling import stand_back

SERVICES: dict[str, type] = {
    "arm/engage": Trigger,
    "arm/hold": Trigger,
    "arm/hand_back": Trigger,
    "arm/estop": Trigger,
    "arm/reset": Trigger,
    "record/start": StartEpisode,
    "record/end": EndEpisode,
    "sim/reset": ResetSim,
    "teleop/set_active": SetBool,
    "monitor/reset": Trigger,
    "policy/switch_task": SwitchTask,
}
LOOK_EVERY = 0.02  # [s]
# A server gives an answer up when it has not discovered the asker within 0.1 s, as one that was just restarted may not
# have. What does no more if it is asked twice is asked again; of the others the arm's state tells whether they were done.
REPEATABLE = ("arm/hold", "arm/estop", "arm/reset", "sim/reset", "teleop/set_active", "monitor/reset")
ENGAGING = ("arm/engage", "arm/hand_back")
LOST_AFTER = 3.0  # [s] without an answer
# What is subscribed, under which attribute the newest message appears, how many are kept.
TOPICS: dict[str, tuple[str, type, Any, int]] = {
    "arm": ("arm/state", ControlState, LATCHED, 1),
    "monitor": ("monitor/status", FailureStatus, EVENTS, 1024),
    "task": ("sim/task", TaskState, EVENTS, 1),
    "episode": ("record/episode", EpisodeState, LATCHED, 1),
    "chunk": ("policy/chunk", ActionChunk, COMMAND, 64),
}


class RigClient:
    """A running rig, seen from outside. Use as a context manager.

    Attributes:
        arm, monitor, task, episode, chunk: the newest message of that topic, None before the first.
        transitions: arm states at which the authority changed, oldest first (at most 64).
    """

    def __init__(self, rig: RigConfig) -> None:
        self.rig = rig
        self._transitions: deque[ControlState] = deque(maxlen=64)
        self._history: dict[str, deque] = {
            name: deque(maxlen=keep) for name, (_, _, _, keep) in TOPICS.items()
        }
        self._received: dict[str, float] = {}
        self._news = threading.Condition()
        self._side = Bystander("rig_client", rig.namespace)
        self._node = self._side.node
        self._callers = {name: self._node.create_client(kind, name) for name, kind in SERVICES.items()}
        self._inbox = Inbox(self._node)
        for name, (topic, kind, qos, _) in TOPICS.items():
            self._inbox.listen(kind, topic, partial(self._receive, name), qos)
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._node.create_timer(LOOK_EVERY, self._inbox.fetch, clock=clock)
        self._side.spin(stand_back)

    def __enter__(self) -> RigClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the graph."""
        self._side.close()

    # What the rig said ----------------------------------------------------------------------------------------

    @property
    def arm(self) -> ControlState | None:
        return self._newest("arm")

    @property
    def monitor(self) -> FailureStatus | None:
        return self._newest("monitor")

    @property
    def task(self) -> TaskState | None:
        return self._newest("task")

    @property
    def episode(self) -> EpisodeState | None:
        return self._newest("episode")

    @property
    def chunk(self) -> ActionChunk | None:
        return self._newest("chunk")

    @property
    def transitions(self) -> list[ControlState]:
        with self._news:
            return list(self._transitions)

    def verdicts(self) -> list[FailureStatus]:
        """Verdicts since the last `forget`, oldest first."""
        with self._news:
            return list(self._history["monitor"])

    def age(self, name: str) -> float:
        """Wall time since the newest message of ``name`` arrived [s]; inf before the first."""
        received = self._received.get(name)
        return float("inf") if received is None else time.monotonic() - received

    def forget(self) -> None:
        """Drop what was kept of the topics that belong to one episode (verdicts, chunks, task, transitions)."""
        with self._news:
            for name in ("monitor", "chunk", "task"):
                self._history[name].clear()
            self._transitions.clear()

    def wait_until(self, predicate: Callable[[RigClient], Any], timeout: float, what: str) -> Any:
        """Wait until ``predicate(self)`` is truthy and return what it gave.

        Args:
            timeout: longest wait [s], wall time.
            what: what is waited for, for the error.

        Raises:
            VigilError: it did not happen in time; names the nodes that were silent meanwhile.
        """
        end = time.monotonic() + timeout
        while True:
            if found := predicate(self):
                return found
            left = end - time.monotonic()
            if left <= 0:
                raise VigilError(f"{what}: not within {timeout:g} s{self._silence()}")
            with self._news:
                self._news.wait(min(left, 0.25))

    # Services -------------------------------------------------------------------------------------------------

    def engage(self) -> None:
        """Give control to the policy."""
        self.call("arm/engage", Trigger.Request())

    def hold(self) -> None:
        """Hold the arm where it is."""
        self.call("arm/hold", Trigger.Request())

    def hand_back(self) -> None:
        """Give control back to the policy after an operator had it."""
        self.call("arm/hand_back", Trigger.Request())

    def estop(self) -> None:
        """Latch the emergency stop."""
        self.call("arm/estop", Trigger.Request())

    def reset_arm(self) -> None:
        """Leave a latched emergency stop."""
        self.call("arm/reset", Trigger.Request())

    def reset_monitor(self) -> None:
        """Clear the latched alarm and the windows."""
        self.call("monitor/reset", Trigger.Request())

    def reset_sim(self, seed: int, perturbation: str = "none", disturbance: float = 0.0) -> int:
        """A new scene; gives its number. ``disturbance`` [m] is the amplitude of the noise on commands."""
        request = ResetSim.Request(seed=seed, perturbation=perturbation, disturbance=disturbance)
        return self.call("sim/reset", request, timeout=30.0).scene

    def start_episode(self, episode_id: str, operator_id: str = "") -> str:
        """Begin to record; gives the path of the file."""
        request = StartEpisode.Request(episode_id=episode_id, task=self.rig.task, operator_id=operator_id)
        return self.call("record/start", request).path

    def end_episode(self, outcome: str, termination_reason: str) -> str:
        """End the recording with its outcome; gives the path of the finished file.

        Raises:
            VigilError: it does not hold the whole episode, since the disk was full; it is kept.
        """
        request = EndEpisode.Request(outcome=outcome, termination_reason=termination_reason)
        response = self.call("record/end", request, timeout=30.0)
        if response.message:
            raise VigilError(f"{response.path} is not whole: {response.message}")
        return response.path

    def end_quietly(self) -> None:
        """End the recording of an episode that broke off; the error that is under way says more than one from here."""
        with contextlib.suppress(VigilError):
            self.end_episode("discarded", "interrupted")

    def set_operator(self, active: bool) -> None:
        """Let the scripted operator take over, or release."""
        self.call("teleop/set_active", SetBool.Request(data=active))

    def switch_task(self, task: str) -> None:
        """Let the policy do another task of the rig file; VigilError if the arm stays in contact until the rig's patience ends."""
        patience = self.rig.policy.switch_timeout + 10.0
        self.call("policy/switch_task", SwitchTask.Request(task=task), timeout=patience)

    def call(self, name: str, request: Any, timeout: float = 10.0) -> Any:
        """Call a service of the rig and return its response.

        Raises:
            VigilError: the node is not there, does not answer in ``timeout`` [s] (wall), or refuses.
        """
        caller = self._callers[name]
        full = f"/{self.rig.namespace}/{name}"
        owner = name.split("/")[0]
        if not caller.wait_for_service(timeout):
            raise VigilError(
                f"no service {full} after {timeout:g} s: node {owner} does not run or is not configured; its log says why"
            )
        until = time.monotonic() + timeout
        while True:
            left = until - time.monotonic()
            patience = min(left, LOST_AFTER) if name in REPEATABLE + ENGAGING else left
            response = self._answer(caller, request, patience)
            if response is None and name in ENGAGING and self.arm and self.arm.authority_name == "POLICY":
                return Trigger.Response(success=True, message="engaged; the answer was lost")
            if response is not None:
                break
            if time.monotonic() >= until:
                raise VigilError(
                    f"{full} gave no answer in {timeout:g} s: node {owner} hangs or died; its log says why"
                )
        if not response.success:
            raise VigilError(f"{full} refused: {response.message}")
        return response

    # Inside ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _answer(caller: Client, request: Any, patience: float) -> Any | None:
        """The response, or None if none came within ``patience`` [s]."""
        future = caller.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if done.wait(max(patience, 0.0)):
            return future.result()
        caller.remove_pending_request(future)
        return None

    def _receive(self, name: str, message: Any) -> None:
        with self._news:
            if name == "arm":
                previous = self._newest("arm")
                if previous is not None and previous.transition != message.transition:
                    self._transitions.append(message)
            self._history[name].append(message)
            self._received[name] = time.monotonic()
            self._news.notify_all()

    def _newest(self, name: str) -> Any:
        history = self._history[name]
        return history[-1] if history else None

    def _silence(self) -> str:
        silent = [f"{TOPICS[name][0]} ({_ago(self.age(name))})" for name in TOPICS if self.age(name) > 2.0]
        return f"; silent: {', '.join(silent)}" if silent else ""


def _ago(age: float) -> str:
    return "never heard" if age == float("inf") else f"for {age:.0f} s"
