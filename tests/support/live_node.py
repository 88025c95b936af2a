"""One real node in a process of its own, and a test's own node to talk to it over real DDS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from support.wait import wait_for
from vigil.bringup import dds_environment

ANSWER_TIMEOUT = 5.0  # [s] after which an answer counts as lost
REACHED = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
}


class Graph:
    """A test's node, spun in a thread."""

    def __init__(self, namespace: str) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("test", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._clients: dict[str, Client] = {}
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
        client = self._client(service, name, timeout)
        future = client.call_async(request)
        wait_for(future.done, timeout, f"answer of {name}")
        return future.result()

    def change_state(self, name: str, transition: int, timeout: float = 30.0) -> bool:
        """Whether node ``name`` made the transition.

        A server gives an answer up when it has not discovered the asker's reader within 0.1 s, which happens on a busy
        machine just after both appeared. So the answer may be lost, and the node is then asked what became of it.
        """
        request = ChangeState.Request(transition=Transition(id=transition))
        change = self._client(ChangeState, f"{name}/change_state", timeout)
        query = self._client(GetState, f"{name}/get_state", timeout)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if (answer := self._answer(change, request)) is not None:
                return answer.success
            if (state := self._answer(query, GetState.Request())) is not None and (
                state.current_state.id == REACHED[transition]
            ):
                return True
        raise AssertionError(f"{name} did not answer within {timeout:g} s")

    def _client(self, service: type, name: str, timeout: float) -> Client:
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service, name)
        assert self._clients[name].wait_for_service(timeout), f"no service {name}"
        return self._clients[name]

    @staticmethod
    def _answer(client: Client, request: Any) -> Any | None:
        """The response, or None if it did not come."""
        future = client.call_async(request)
        until = time.monotonic() + ANSWER_TIMEOUT
        while not future.done():
            if time.monotonic() > until:
                client.remove_pending_request(future)
                return None
            time.sleep(0.01)
        return future.result()

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
    module: str,
    name: str,
    namespace: str,
    log: Path,
    surroundings: Mapping[str, str] | None = None,
    **parameters: Any,
) -> Iterator[subprocess.Popen]:
    """``python -m module`` as node ``name``; ended with SIGINT, and the test fails if it does not end by itself.

    ``surroundings``: environment variables that it has beside the test's own.
    """
    arguments = ["--ros-args", "-r", f"__ns:=/{namespace}", "-r", f"__node:={name}"]
    for key, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["-p", f"{key}:={text}"]
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                **dds_environment({}, local=True, room=module.split(".")[1]),
                "PYTHONUNBUFFERED": "1",
                **(surroundings or {}),
            },
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
