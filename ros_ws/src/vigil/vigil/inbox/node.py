"""Subscriptions that are read when their owner has use for them, or by a thread that waits for nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from inspect import signature

from rclpy.callback_groups import CallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

MOST_AT_ONCE = 64  # messages of one topic that `Inbox.fetch` hands over: a flood must not hold its owner up


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
        self._wanted: dict[Subscription, int] = {}  # parameters of each callback
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leave = GuardCondition(None, None, context=node.context)
        self._attended = False

    def listen(self, kind: type, topic: str, callback: Callable, qos: QoSProfile, **options: object) -> None:
        """As ``create_subscription``; ``callback`` is called by `fetch`. One of two parameters also gets what the middleware
        knows of the message, as in rclpy: a dictionary with ``received_timestamp`` [ns, system clock]."""
        subscription = self._node.create_subscription(
            kind, topic, callback, qos, callback_group=self._group, **options
        )
        self._subscriptions.append(subscription)
        self._wanted[subscription] = len(signature(callback).parameters)

    def fetch(self) -> None:
        """Hand over what has come since the last time, topic by topic in the order of `listen`."""
        with self._lock:
            for subscription in self._subscriptions:
                handle, kind, raw = subscription.handle, subscription.msg_type, subscription.raw
                wanted = self._wanted[subscription]
                for _ in range(MOST_AT_ONCE):
                    with handle:
                        taken = handle.take_message(kind, raw)
                    if taken is None:
                        break
                    subscription.callback(*taken[:wanted])

    def attend(self, on_wake: Callable[[], bool], beside: Inbox | None = None) -> None:
        """Hand over what comes as it comes, in a thread that waits for these subscriptions and nothing else.

        An executor waits for everything that a node has and begins anew after each message: for images, which are
        large, many and waited for, that takes as long as reading them.

        Args:
            on_wake: called when messages were handed over, all that were there. As long as it gives True, it is also called
                when something comes in ``beside``, which it has to fetch.
            beside: has all its subscriptions already.
        """
        self._attended = True
        self._thread = threading.Thread(
            target=self._attend, args=(on_wake, beside), name="inbox", daemon=True
        )
        self._thread.start()

    def _attend(self, on_wake: Callable[[], bool], beside: Inbox | None) -> None:
        # As rclpy.wait_for_message does.
        alone = self._subscriptions
        both = alone + beside._subscriptions if beside is not None else alone
        waiting = rclpy_implementation.WaitSet(len(both), 1, 0, 0, 0, 0, self._node.context.handle)
        awaited = alone
        try:
            while self._attended:
                waiting.clear_entities()
                for subscription in awaited:
                    waiting.add_subscription(subscription.handle)
                waiting.add_guard_condition(self._leave.handle)
                waiting.wait(-1)
                if waiting.get_ready_entities("subscription"):
                    self.fetch()
                    awaited = both if on_wake() else alone
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
        self._wanted.clear()
