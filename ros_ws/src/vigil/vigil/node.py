"""What every node shares: QoS profiles, stamps, the rig, diagnostics, a life cycle that reports its errors.

A room's ``node.py`` derives from `VigilNode`, overrides `setup`, `start`, `stop`, `teardown` and `diagnose`, and
ends with ``main = partial(spin_node, ThatNode)``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from std_msgs.msg import Empty

from vigil.errors import VigilError
from vigil.rig import RigConfig, load_rig


def _qos(depth: int, *, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


SENSOR = _qos(5, reliable=False)  # cameras, joint states, teleop: a late sample is worth nothing
NEWEST = _qos(1, reliable=False)  # the same, read by a control loop
COMMAND = _qos(1, reliable=True)  # chunks, controller commands: only the newest counts
EVIDENCE = _qos(5, reliable=True)
EVENTS = _qos(10, reliable=True)  # verdicts, diagnostics: none may be lost
LATCHED = _qos(1, reliable=True, latched=True)  # modes and states that a late joiner needs


def heartbeat(lease: float) -> QoSProfile:
    """Liveliness of a process, asserted by the middleware's own threads: a busy interpreter does not stop it.

    Nodes offer `HEARTBEAT_LEASE`; whoever watches them asks for the longer time after which they count as dead.
    """
    profile = _qos(1, reliable=False)
    profile.liveliness = LivelinessPolicy.AUTOMATIC
    profile.liveliness_lease_duration = Duration(seconds=lease)
    return profile


HEARTBEAT_LEASE = 0.09  # [s] asserted at two thirds of it


def nanoseconds(stamp: Time) -> int:
    """A message stamp in ns."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def to_stamp(ns: int) -> Time:
    """A message stamp of ``ns`` nanoseconds."""
    sec, nanosec = divmod(int(ns), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


MOST_AT_ONCE = 64  # messages of one topic that `Inbox.fetch` hands over: a flood must not hold its owner up

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)


@dataclass
class Health:
    """One line of a node's diagnostics (REP-107)."""

    component: str
    level: bytes = OK
    message: str = "ok"
    values: dict[str, object] = field(default_factory=dict)


class _Unwatched(CallbackGroup):
    """What is in it never wakes the executor."""

    def can_execute(self, entity: object) -> bool:
        return False

    def beginning_execution(self, entity: object) -> bool:
        return False

    def ending_execution(self, entity: object) -> None:
        pass


def _raise(error: Exception) -> None:
    raise error


class Inbox:
    """Subscriptions that are read when their owner has use for them, instead of waking it with every message.

    rclpy waits anew, on everything that a node has, after each message: a stream of 100 Hz that is looked at ten times a
    second costs more in wake-ups than in work. The queue (``qos.depth``) keeps what came meanwhile.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._group = _Unwatched()
        self._subscriptions: list[Subscription] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leave = GuardCondition(None, None, context=node.context)
        self._attended = False

    def listen(self, kind: type, topic: str, callback: Callable, qos: QoSProfile, **options: object) -> None:
        """As ``create_subscription``; ``callback`` is called by `fetch`."""
        self._subscriptions.append(
            self._node.create_subscription(kind, topic, callback, qos, callback_group=self._group, **options)
        )

    def fetch(self) -> None:
        """Hand over what has come since the last time, topic by topic in the order of `listen`."""
        with self._lock:
            for subscription in self._subscriptions:
                handle, kind, raw = subscription.handle, subscription.msg_type, subscription.raw
                for _ in range(MOST_AT_ONCE):
                    with handle:
                        taken = handle.take_message(kind, raw)
                    if taken is None:
                        break
                    subscription.callback(taken[0])

    def attend(self, timeout: Callable[[], float | None], on_timeout: Callable[[], None]) -> None:
        """Hand over what comes as it comes, in a thread that waits for these subscriptions and nothing else.

        An executor waits for everything that a node has and begins anew after each message: for images, which are
        large, many and waited for, that takes as long as reading them.

        Args:
            timeout: asked before each wait: [s] after which ``on_timeout`` is called; None waits for messages alone.
        """
        self._attended = True
        self._thread = threading.Thread(
            target=self._attend, args=(timeout, on_timeout), name="inbox", daemon=True
        )
        self._thread.start()

    def _attend(self, timeout: Callable[[], float | None], on_timeout: Callable[[], None]) -> None:
        # As rclpy.wait_for_message does.
        size = len(self._subscriptions)
        waiting = rclpy_implementation.WaitSet(size, 1, 0, 0, 0, 0, self._node.context.handle)
        try:
            while self._attended:
                waiting.clear_entities()
                for subscription in self._subscriptions:
                    waiting.add_subscription(subscription.handle)
                waiting.add_guard_condition(self._leave.handle)
                seconds = timeout()
                waiting.wait(-1 if seconds is None else round(seconds * 1e9))
                if waiting.get_ready_entities("subscription"):
                    self.fetch()
                elif not waiting.get_ready_entities("guard_condition"):
                    on_timeout()
        except Exception as error:
            self._node.executor.create_task(_raise, error)  # as from any callback of the node

    def close(self) -> None:
        """Unsubscribe."""
        if self._thread is not None:
            self._attended = False
            self._leave.trigger()
            self._thread.join()
            self._thread = None
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())


class VigilNode(LifecycleNode):
    """A lifecycle node that reads its rig, publishes diagnostics at 1 Hz, and turns VigilError into a failed transition."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.declare_parameter("rig", "")
        self.rig: RigConfig | None = None
        self.active = False
        self.inbox = Inbox(self)
        self._made: list[tuple[Callable, object]] = []
        self._heartbeat: Publisher | None = None
        self._last_error = ""
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", EVENTS)
        # Diagnostics beat in wall time: they matter most when simulated time stands still.
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # What a room overrides ------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Build everything from ``self.rig``; raise VigilError to refuse. Nothing may move yet."""

    def start(self) -> None:
        """Begin to work (publish, run timers)."""

    def stop(self) -> None:
        """Cease to work; `start` may follow."""

    def teardown(self) -> None:
        """Release what `setup` built, but for what it made by `advertise`, `listen`, `serve` and in the `inbox`.

        Called once for every successful or failed `setup`.
        """

    def diagnose(self) -> Iterable[Health]:
        """The node's health, asked for once a second."""
        return ()

    # What lives from `setup` to `teardown` ----------------------------------------------------------------------

    def advertise(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        """As ``create_publisher``."""
        publisher = self.create_publisher(kind, topic, qos)
        self._made.append((self.destroy_publisher, publisher))
        return publisher

    def listen(self, kind: type, topic: str, callback: Callable, qos: QoSProfile, **options: object) -> None:
        """As ``create_subscription``."""
        subscription = self.create_subscription(kind, topic, callback, qos, **options)
        self._made.append((self.destroy_subscription, subscription))

    def serve(self, kind: type, name: str, callback: Callable, **options: object) -> None:
        """As ``create_service``."""
        self._made.append((self.destroy_service, self.create_service(kind, name, callback, **options)))

    # Time -----------------------------------------------------------------------------------------------------

    @property
    def lockstep(self) -> bool:
        """True when time is simulated: work is then triggered by data and not by timers."""
        return bool(self.get_parameter("use_sim_time").value)

    def now(self) -> int:
        """The node's clock in ns (simulated time if ``use_sim_time``)."""
        return self.get_clock().now().nanoseconds

    # Life cycle -----------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_deactivate(state)
        return self._transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("clean up", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._transition("shut down", self.close)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return TransitionCallbackReturn.SUCCESS  # back to unconfigured: may be tried again

    def close(self) -> None:
        """Stop and release everything, from whatever state."""
        if self.active:
            self._deactivate()
        self._release()

    def _release(self) -> None:
        self.teardown()
        self.inbox.close()
        while self._made:
            destroy, entity = self._made.pop()
            destroy(entity)

    def _configure(self) -> None:
        path = self.get_parameter("rig").value
        if not path:
            raise VigilError("parameter `rig` is empty: pass -p rig:=NAME or -p rig:=FILE")
        self.rig = load_rig(path)
        try:
            self.setup()
        except Exception:
            self._release()
            raise

    def _activate(self) -> None:
        self.start()
        self._heartbeat = self.create_publisher(
            Empty, f"heartbeat/{self.get_name()}", heartbeat(HEARTBEAT_LEASE)
        )
        self.active = True

    def _deactivate(self) -> None:
        self.active = False
        self.destroy_publisher(self._heartbeat)
        self.stop()

    def _transition(self, what: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except VigilError as error:
            self._last_error = f"cannot {what}: {error}"
            self.get_logger().fatal(self._last_error)
            return TransitionCallbackReturn.FAILURE
        except Exception:
            # rclpy would turn this into a failed transition without a word.
            self.get_logger().fatal(f"cannot {what}: {traceback.format_exc()}")
            raise
        self._last_error = ""
        return TransitionCallbackReturn.SUCCESS

    # Diagnostics ----------------------------------------------------------------------------------------------

    def _publish_diagnostics(self) -> None:
        health = [Health("lifecycle", ERROR, self._last_error)] if self._last_error else []
        health += self.diagnose() if self.active else [Health("lifecycle", STALE, "not active")]
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        for item in health:
            message.status.append(
                DiagnosticStatus(
                    level=item.level,
                    name=f"{self.get_name()}: {item.component}",
                    message=item.message,
                    hardware_id=self.get_namespace().strip("/"),
                    values=[KeyValue(key=key, value=str(value)) for key, value in item.values.items()],
                )
            )
        self._diagnostics.publish(message)


def spin_node(node_class: type[VigilNode], executor_class: type[Executor] = SingleThreadedExecutor) -> None:
    """Run one node until SIGINT or SIGTERM; it then closes in order, while it can still publish."""
    # rclpy's own handlers would end the context first, and raise KeyboardInterrupt amid whatever was running.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        executor = executor_class()
        asked_to_stop = _signalled()
        node = node_class()
        executor.add_node(node)
        try:
            executor.spin_until_future_complete(asked_to_stop)
        finally:
            node.close()
            executor.shutdown()
            node.destroy_node()
    except VigilError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        rclpy.try_shutdown()


def _signalled() -> Future:
    """A future that is done once SIGINT or SIGTERM arrived.

    The executor waits outside Python, where no handler of Python runs; a thread that reads the wake-up pipe can.
    """
    future = Future()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)  # the pipe tells

    def watch() -> None:
        os.read(reading, 1)
        future.set_result(None)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    return future
