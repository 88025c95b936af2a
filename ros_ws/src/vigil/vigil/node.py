"""What every node shares: QoS profiles, stamps, the rig, diagnostics, a life cycle that reports its errors.

A room's ``node.py`` derives from `VigilNode`, overrides `setup`, `start`, `stop`, `teardown` and `diagnose`, and
ends with ``main = partial(spin_node, ThatNode)``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import Empty

from vigil.errors import VigilError
from vigil.inbox.node import Inbox
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


def interfaces(package: str, kind: str, needed_by: str) -> ModuleType:
    """A module of a message package that not every machine has, as ``msg``; VigilError with the remedy if it is missing."""
    try:
        return importlib.import_module(f"{package}.{kind}")
    except ImportError as error:
        raise VigilError(
            f"{needed_by} needs the ROS package {package}, which cannot be imported ({error}): install it "
            f"(sudo apt-get install ros-$ROS_DISTRO-{package.replace('_', '-')}), or build it in the workspace and source that"
        ) from None


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
        if self.active:
            health += [
                Health("lifecycle", OK, "active"),
                *self.diagnose(),
            ]  # heard even if there is nothing to tell
        else:
            health.append(Health("lifecycle", STALE, "not active"))
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


class SpinThread:
    """An executor run in a thread of its own, and ended in order.

    ``Executor.shutdown`` takes from a spinning thread what it is using; so the thread ends first.
    """

    def __init__(self, executor: Executor, name: str, begin: Callable[[], object] = lambda: None) -> None:
        """``begin`` is called first in the new thread."""
        self._executor, self._begin, self._asked_to_stop = executor, begin, Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return when no callback runs any more; the executor is shut down."""
        self._asked_to_stop.set_result(None)
        self._thread.join()
        self._executor.shutdown()

    def _run(self) -> None:
        self._begin()
        with contextlib.suppress(ExternalShutdownException, ShutdownException):  # the context ended before
            self._executor.spin_until_future_complete(self._asked_to_stop)


class Bystander:
    """A plain node in a context of its own, for what looks at a rig from outside.

    Attributes:
        node: to make publishers, subscriptions and clients with, before `spin`.
    """

    def __init__(self, name: str, namespace: str) -> None:
        """VigilError if ROS 2 does not start."""
        self._name, self._context = name, rclpy.Context()
        try:
            rclpy.init(context=self._context)
            self.node = rclpy.create_node(name, namespace=namespace, context=self._context)
        except Exception as error:  # rclpy raises RCLError and RuntimeError here, without a common base
            raise VigilError(f"ROS 2 communication did not start: {error}") from None
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread: SpinThread | None = None

    def spin(self, begin: Callable[[], object] = lambda: None) -> None:
        """Begin to call back, in a thread of its own, in which ``begin`` is called first."""
        self._thread = SpinThread(self._executor, self._name, begin)

    def close(self) -> None:
        """Return when no callback runs any more. May be called twice."""
        if not self._context.ok():
            return
        if self._thread is not None:
            self._thread.close()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


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
