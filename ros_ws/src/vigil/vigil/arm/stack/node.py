"""Watches the liveliness of the stack's processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Empty

from vigil.node import SpinThread, heartbeat
from vigil.scheduling import ask_for_priority


class StackWatch:
    """Watches the liveliness of the stack's processes in a node and a thread of its own.

    Its many entities seldom have anything to say; in the arm's own node they would be waited on anew with every control
    tick, at a third of its cost.

    Attributes:
        changes: (name, whether it lives, whether it left in order), oldest first; whoever takes them pops them.
    """

    def __init__(self, arm: Node, names: Sequence[str], lease: float, on_change: Callable[[], None]) -> None:
        """``on_change`` is called in the watching thread after `changes` grew; ``lease`` [s]: silence that is death."""
        self.changes: deque[tuple[str, bool, bool]] = deque()
        self._on_change = on_change
        self._node = Node(
            f"{arm.get_name()}_watch",
            namespace=arm.get_namespace(),
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        for name in names:
            self._node.create_subscription(
                Empty,
                f"heartbeat/{name}",
                lambda message: None,
                heartbeat(lease),
                event_callbacks=SubscriptionEventCallbacks(liveliness=partial(self._on_liveliness, name)),
            )
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        self._thread = SpinThread(
            executor, "stack watch", ask_for_priority
        )  # a thread does not have its process's

    def close(self) -> None:
        """Unsubscribe and end the thread."""
        self._thread.close()
        self._node.destroy_node()

    def _on_liveliness(self, name: str, info: QoSLivelinessChangedInfo) -> None:
        alive = info.alive_count > 0
        self.changes.append((name, alive, not alive and info.not_alive_count == 0))
        self._on_change()
