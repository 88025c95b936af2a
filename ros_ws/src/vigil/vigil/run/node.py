"""Brings lifecycle nodes to active in dependency order, and again after each of their restarts.

An active node tells its health once a second. One that has fallen silent lives but does not work (a lock that a killed peer
left behind in shared memory, a driver that does not return): it is reported, to be ended and started anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future

from vigil.bringup import NodeSpec
from vigil.errors import VigilError
from vigil.node import EVENTS, SpinThread
from vigil.run.shared_memory import remove_dead_segments

POLL = 0.05  # [s]
ANSWER_TIMEOUT = (
    1.0  # [s] a request may have gone to the dead predecessor of a restarted node: then ask again
)
RETRY_AFTER_REFUSAL = 2.0  # [s]
HUNG_AFTER = 10.0  # [s] without diagnostics
NEXT = {
    State.PRIMARY_STATE_UNCONFIGURED: (Transition.TRANSITION_CONFIGURE, "configure"),
    State.PRIMARY_STATE_INACTIVE: (Transition.TRANSITION_ACTIVATE, "activate"),
}


class _Gone(Exception):
    """The process that was talked to ended, or the manager is closing."""


class _Tended:
    """One node, tended by a thread of its own until `stop` is set."""

    def __init__(self, manager: LifecycleManager, spec: NodeSpec, query: Client, change: Client) -> None:
        self.spec = spec
        self.state = "starting"
        self.refusal = ""
        self._manager = manager
        self._query = query
        self._change = change
        self._generation = 0
        self._hung = False

    def run(self) -> None:
        while not self._manager.stopping.is_set():
            generation = self._manager.generation(self.spec.name)
            if generation == self._generation:
                self._watch()
                self._manager.stopping.wait(POLL)
                continue
            self._generation, self._hung = generation, False
            self.state, self.refusal = ("starting" if generation else "down"), ""
            if generation:
                try:
                    self._bring_to_active()
                except _Gone:
                    continue

    def _watch(self) -> None:
        if self.state == "active" and not self._hung and self._manager.silence(self.spec.name) > HUNG_AFTER:
            self._hung = True
            self._manager.on_hang(self.spec.name)

    def _bring_to_active(self) -> None:
        while True:
            state = self._ask_state()
            self._manager.heard(self.spec.name)
            self.state = state.label
            if state.id not in NEXT:
                return
            transition, name = NEXT[state.id]
            while not self._manager.active(self.spec.after):
                self._pause(POLL)
            if self._request(transition, state.id) is False:
                self.refusal = name
                self._manager.on_refusal(self.spec.name)
                self._pause(RETRY_AFTER_REFUSAL)

    def _ask_state(self) -> State:
        while True:
            answer = self._wait(self._call(self._query, GetState.Request()), ANSWER_TIMEOUT)
            if answer is not None:
                return answer.current_state

    def _request(self, transition: int, origin: int) -> bool | None:
        """True or False as the node answered; None if the answer is not known and its state has to be asked."""
        request = ChangeState.Request()
        request.transition.id = transition
        answer = self._call(self._change, request)
        while True:
            if (response := self._wait(answer, ANSWER_TIMEOUT)) is not None:
                return response.success
            # A transition may take long, and its node is deaf meanwhile; but a node that answers this question, still
            # in its old state and without the other answer, never got the request.
            state = self._wait(self._call(self._query, GetState.Request()), ANSWER_TIMEOUT)
            if state is not None and (response := self._wait(answer, POLL)) is None:
                return None if state.current_state.id == origin else True

    def _call(self, client: Client, request: Any) -> Future:
        while not client.service_is_ready():
            self._pause(POLL)
        return client.call_async(request)

    def _wait(self, future: Future, timeout: float) -> Any | None:
        until = time.monotonic() + timeout
        while not future.done():
            if time.monotonic() > until:
                return None
            self._pause(POLL / 5)
        return future.result()

    def _pause(self, duration: float) -> None:
        """Sleep; _Gone if there is nobody left to wait for."""
        if (
            self._manager.stopping.wait(duration)
            or self._manager.generation(self.spec.name) != self._generation
        ):
            raise _Gone


class LifecycleManager:
    """Configures and activates nodes, each after those that its spec names. Use as a context manager."""

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        generation: Callable[[str], int],
        on_refusal: Callable[[str], None] = lambda name: None,
        on_hang: Callable[[str], None] = lambda name: None,
    ) -> None:
        """
        Args:
            generation: by node name, how many times its process was started, 0 while it is down.
            on_refusal: called with a node's name, in one of the manager's threads, when it refused a transition.
            on_hang: called in the same way when an active node has not been heard for `HUNG_AFTER` seconds.

        Raises:
            VigilError: DDS does not start.
        """
        self.generation = generation
        self.on_refusal, self.on_hang = on_refusal, on_hang
        self._heard_at: dict[str, float] = {}  # [s] monotonic
        self.stopping = threading.Event()
        remove_dead_segments()
        self._context = rclpy.Context()
        try:
            rclpy.init(context=self._context)
            self._node = rclpy.create_node(
                "lifecycle_manager",
                namespace=specs[0].namespace,
                context=self._context,
                start_parameter_services=False,
            )
        except Exception as error:  # rclpy raises RCLError and RuntimeError here, without a common base
            reason = str(error).strip().splitlines()[0].split(", at ")[0]
            raise VigilError(
                f"ROS 2 communication did not start ({reason}): check ROS_DOMAIN_ID, FASTRTPS_DEFAULT_PROFILES_FILE, "
                "and that /dev/shm has space"
            ) from None
        self._namespace = specs[0].namespace
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, EVENTS)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._tended = {
            spec.name: _Tended(
                self,
                spec,
                self._node.create_client(GetState, f"{spec.path}/get_state"),
                self._node.create_client(ChangeState, f"{spec.path}/change_state"),
            )
            for spec in specs
        }
        self._threads = [
            threading.Thread(target=tended.run, name="lifecycle", daemon=True)
            for tended in self._tended.values()
        ]

    def __enter__(self) -> LifecycleManager:
        self._spinning = SpinThread(self._executor, "lifecycle")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()
        self._spinning.close()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def state(self, name: str) -> str:
        """``down``, ``starting``, ``unconfigured``, ``inactive``, ``active`` or ``finalized``."""
        return self._tended[name].state

    def refusal(self, name: str) -> str:
        """The transition that a node refused last (``configure``, ``activate``); empty once it went on."""
        return self._tended[name].refusal

    def active(self, names: Sequence[str]) -> bool:
        """True when all of ``names`` are active."""
        return all(self._tended[name].state == "active" for name in names)

    def heard(self, name: str) -> None:
        """A sign of life of a node."""
        self._heard_at[name] = time.monotonic()

    def silence(self, name: str) -> float:
        """Since when a node was not heard [s]."""
        return time.monotonic() - self._heard_at[name]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.hardware_id == self._namespace.strip("/"):
                self.heard(status.name.split(":")[0])
