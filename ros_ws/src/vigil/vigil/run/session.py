"""A rig brought up for the time of a ``with`` block: its processes, their life cycle, and a client of it.

What ``vigil up``, collect, evaluate, demo and the tests of the whole rig run in.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape

from vigil.bringup import NodeSpec, Options, dds_environment, environment, node_specs
from vigil.errors import VigilError
from vigil.rig import RigConfig, load_rig
from vigil.run.report import replace_text
from vigil.run.supervisor import ProcessSpec, Supervisor, last_error

if TYPE_CHECKING:
    from vigil.run.client.node import RigClient
    from vigil.run.node import LifecycleManager

START_TIMEOUT = 120.0  # [s] from the first process to the last node active, on a loaded machine
Parameters = Mapping[str, Mapping[str, bool | str | float | list[str]]]


@dataclass(frozen=True)
class NodeStatus:
    """One node as a person sees it.

    Attributes:
        state: of its life cycle, or ``down``, ``starting``.
        restarts: how many times its process was started again.
        note: what is wrong; empty if nothing is.
    """

    name: str
    state: str
    pid: int | None
    restarts: int
    note: str


class Session:
    """A running rig. On whatever way the block is left (Ctrl-C and SIGTERM included), no process stays behind.

    Sets this process's environment too (DDS profile, log folders), until the block is left.

    Attributes:
        rig, specs: what runs.
        logs: the folder with one log per node.
    """

    def __init__(
        self,
        rig: RigConfig,
        options: Options,
        logs: Path,
        console: Console | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        """
        Args:
            console: where a start is shown; none: nowhere.
            parameters: beside those of the specs, by node name.

        Raises:
            VigilError: the options ask for what the rig does not have.
        """
        extra = parameters or {}
        self.rig = rig
        self.logs = logs
        self.specs = [
            dataclasses.replace(spec, parameters={**spec.parameters, **extra.get(spec.name, {})})
            for spec in node_specs(rig, options)
        ]
        self._console = console or Console(quiet=True)
        self._resources = ExitStack()
        self._client: RigClient | None = None

    def __enter__(self) -> Session:
        """Raises VigilError, with everything taken down again, if a node does not become active."""
        handler = _terminate_like_ctrl_c()
        try:
            self._start()
        except BaseException:
            handler()
            raise
        self._restore_handler = handler
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._resources.close()
        finally:
            self._restore_handler()

    def recover(self, error: Exception) -> None:
        """After ``error``: bring the whole rig up anew, so that nothing half dead stays.

        Raises:
            VigilError: it does not come up.
        """
        lost = [f"{s.name} {s.note}" for s in self.statuses() if s.note]
        lost += [f"{s.name} was restarted" for s in self.statuses() if s.restarts and not s.note]
        what = escape(f"{'; '.join([*lost, str(error)])}: starting the rig anew")
        self._console.print(f"[yellow]{what}[/]")
        self._resources.close()
        self.logs = self.logs.with_name(f"{self.logs.name}-{time.strftime('%H%M%S')}")  # keep what was said
        self._start()

    # While it runs --------------------------------------------------------------------------------------------

    @property
    def client(self) -> RigClient:
        """Services and topics of the rig; joins the graph when it is first asked for."""
        if self._client is None:
            from vigil.run.client.node import RigClient

            self._client = self._resources.enter_context(RigClient(self.rig))
            self._resources.callback(self._forget_client)
        return self._client

    def statuses(self) -> list[NodeStatus]:
        """Every node, in order of start."""
        result = []
        for process in self._supervisor.statuses():
            note = ""
            if not process.running and process.exit_code is not None:
                note = f"{process.ending()}: {last_error(self._supervisor.log(process.name))}"
            elif self._lifecycle.refusal(process.name):
                note = last_error(self._supervisor.log(process.name))
            result.append(
                NodeStatus(
                    name=process.name,
                    state=self._lifecycle.state(process.name) if process.running else "down",
                    pid=process.pid if process.running else None,
                    restarts=max(0, process.starts - 1),
                    note=note,
                )
            )
        return result

    def status(self, name: str) -> NodeStatus:
        """One node."""
        return next(s for s in self.statuses() if s.name == name)

    def log(self, name: str) -> Path:
        """The log of one node."""
        return self._supervisor.log(name)

    def check(self) -> None:
        """VigilError if a node has died since the rig was last brought up, or is down: what was measured is worthless."""
        for status in self.statuses():
            process = self._supervisor.status(status.name)
            if process.exit_code is not None:
                raise VigilError(f"node {status.name} {status.note or process.ending()}")

    def all_active(self) -> bool:
        """True when no node is missing."""
        return self._lifecycle.active([spec.name for spec in self.specs])

    # Inside ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        with ExitStack() as resources:
            self._set_environment(resources)
            # Imported here: DDS reads its settings when it is loaded.
            from vigil.run.node import LifecycleManager

            processes = [
                ProcessSpec(
                    spec.name,
                    command(spec),
                    spec.respawn,
                    env=dds_environment(os.environ, local=self.rig.sim is not None, room=spec.room),
                )
                for spec in self.specs
            ]
            self._supervisor = Supervisor(processes, self.logs, os.environ)
            # Entered before the processes start, so that a DDS that does not work is told once, and here.
            self._lifecycle: LifecycleManager = resources.enter_context(
                LifecycleManager(self.specs, self._generation, on_hang=self._end_hung)
            )
            resources.enter_context(self._supervisor)
            self._wait_until_active()
            self._resources = resources.pop_all()

    def _set_environment(self, resources: ExitStack) -> None:
        env = environment(self.rig, os.environ)
        env["ROS_LOG_DIR"] = str(self.logs / "ros")
        resources.callback(_restore, {name: os.environ.get(name) for name in env})
        os.environ.update(env)

    def _wait_until_active(self) -> None:
        until = time.monotonic() + START_TIMEOUT
        with self._console.status("starting the rig") as shown:
            while not self.all_active():
                self._raise_if_broken()
                waiting = [s for s in self.statuses() if s.state != "active"]
                states = ", ".join(f"{s.name} {s.state}" for s in waiting)
                shown.update(f"starting the rig: {escape(states)}")
                if time.monotonic() > until:
                    raise VigilError(
                        f"not active after {START_TIMEOUT:.0f} s: {states}; see the logs in {self.logs}, and whether "
                        "other work slows this machine down"
                    )
                time.sleep(0.1)

    def _raise_if_broken(self) -> None:
        for spec in self.specs:
            process, refused = self._supervisor.status(spec.name), self._lifecycle.refusal(spec.name)
            if process.exit_code is None and not refused:
                continue
            log = self._supervisor.log(spec.name)
            why = last_error(log) or "it said nothing"
            what = "" if refused else f"{process.ending()} at start: "
            raise VigilError(f"node {spec.name}: {what}{why} (log: {log})")

    def _generation(self, name: str) -> int:
        status = self._supervisor.status(name)
        return status.starts if status.running else 0

    def _end_hung(self, name: str) -> None:
        self._supervisor.kill(name, "the node did not answer")

    def _forget_client(self) -> None:
        self._client = None


def command(spec: NodeSpec) -> list[str]:
    """Command line of a node's process."""
    return [sys.executable, "-m", spec.module, *spec.ros_arguments()]


def derive_rig(rig: RigConfig, folder: Path, **changes: Any) -> RigConfig:
    """``rig`` with some settings otherwise, as a file ``rig.yaml`` in ``folder`` that the nodes can read.

    Args:
        changes: by section (``record``, ``monitor``, ...) the settings that differ; what is no section is replaced.

    Raises:
        VigilError: the result is no valid rig, or cannot be written.
    """
    data = rig.model_dump(mode="json", exclude_none=True)
    for section, settings in changes.items():
        whole = not isinstance(settings, Mapping)
        data[section] = settings if whole else {**data.get(section, {}), **settings}
    path = folder / "rig.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, f"# Made from {rig.path.name}.\n" + yaml.safe_dump(data, sort_keys=False))
    except OSError as error:
        raise VigilError(f"cannot write {path}: {error}") from None
    return load_rig(path)


def _restore(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _terminate_like_ctrl_c() -> Callable[[], None]:
    """Let SIGTERM end the block in order, too; gives what restores the former handler."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    return lambda: signal.signal(signal.SIGTERM, former)
