"""One real node in a process of its own, and a test's own node to talk to it over real DDS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float = 30.0, what: str = "condition") -> T:
    """First true result of ``condition``; fails the test after ``timeout`` [s]."""
    until = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < until, f"{what}: not met within {timeout:g} s"
        time.sleep(0.01)
    return result


class Graph:
    """A test's node, spun in a thread."""

    def __init__(self, namespace: str) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("test", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def collect(self, message: type, topic: str, qos) -> list[Any]:
        """A list to which every message of ``topic`` is appended."""
        received: list[Any] = []
        self.node.create_subscription(message, topic, received.append, qos)
        return received

    def call(self, service: type, name: str, request: Any, timeout: float = 30.0) -> Any:
        """Response of a service."""
        client = self.node.create_client(service, name)
        try:
            assert client.wait_for_service(timeout), f"no service {name}"
            future = client.call_async(request)
            wait_for(future.done, timeout, f"answer of {name}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change_state(self, name: str, transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, f"{name}/change_state", request).success

    def configure(self, name: str) -> bool:
        return self.change_state(name, Transition.TRANSITION_CONFIGURE)

    def activate(self, name: str) -> bool:
        return self.change_state(name, Transition.TRANSITION_ACTIVATE)

    def close(self) -> None:
        self._context.try_shutdown()
        self._thread.join()
        self.node.destroy_node()


@contextmanager
def graph(namespace: str) -> Iterator[Graph]:
    made = Graph(namespace)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def process(
    module: str, name: str, namespace: str, log: Path, **parameters: Any
) -> Iterator[subprocess.Popen]:
    """``python -m module`` as node ``name``; ended with SIGINT, and the test fails if it does not end by itself."""
    arguments = ["--ros-args", "-r", f"__ns:=/{namespace}", "-r", f"__node:={name}"]
    for key, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["-p", f"{key}:={text}"]
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            raise AssertionError(f"{name} did not end within 10 s of SIGINT; see {log}") from None
