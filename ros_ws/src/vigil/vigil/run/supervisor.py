"""Supervision of processes: start in order, restart with back-off, tear down in reverse, leave no orphans. No ROS here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vigil.errors import VigilError

POLL = 0.05  # [s] how late a death is noticed at most
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 8.0  # [s] before the first restart; doubled at each that follows
HEALTHY_AFTER = 30.0  # [s] of life after which the back-off starts anew
# How long a process may take to follow each signal [s]; the last one it cannot refuse.
ESCALATION = ((signal.SIGINT, 4.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))
LOG_PREFIX = re.compile(r"^(\[[A-Z]+\]\s*)?(\[[\d.]+\]\s*)?(\[[\w./-]+\]:?\s*)?")


@dataclass(frozen=True)
class ProcessSpec:
    """One process.

    Attributes:
        name: its own, and its log's.
        respawn: restarted when it ends.
        env: variables of its own, over those of all.
    """

    name: str
    command: Sequence[str]
    respawn: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessStatus:
    """What is known of one process.

    Attributes:
        running: alive at the last look.
        pid: of the living or last process; None before the first start.
        starts: how many times it was started.
        exit_code: of the last end, negative for a signal; None if it never ended.
        since: monotonic time of the last start or end [s].
    """

    name: str
    running: bool
    pid: int | None
    starts: int
    exit_code: int | None
    since: float

    def ending(self) -> str:
        """How the last process ended, in words."""
        if self.exit_code is None:
            return "has not ended"
        if self.exit_code < 0:
            return f"was killed by {signal.Signals(-self.exit_code).name}"
        return f"ended with exit code {self.exit_code}"


class _Process:
    """One supervised process and its history; touched by the supervising thread only, read by others."""

    def __init__(self, spec: ProcessSpec, folder: Path, env: Mapping[str, str]) -> None:
        self.spec = spec
        self.log = folder / f"{spec.name}.log"
        self._env = {**env, **spec.env}
        self.popen: subprocess.Popen | None = None
        self.starts = 0
        self.exit_code: int | None = None
        self.since = time.monotonic()
        self.backoff = FIRST_BACKOFF

    def start(self) -> None:
        with self.log.open("ab") as log:
            if self.starts:
                log.write(f"--- start {self.starts + 1} ---\n".encode())
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then ends its
            # processes in order. The kernel kills them should the supervisor die without doing so.
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.spec.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        self.starts += 1
        self.since = time.monotonic()

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.returncode is None

    def ended(self) -> bool:
        """True at the first look after the process ended."""
        if not self.running or self.popen.poll() is None:
            return False
        self._note_end()
        return True

    def _note_end(self) -> None:
        now = time.monotonic()
        if now - self.since > HEALTHY_AFTER:
            self.backoff = FIRST_BACKOFF
        self.exit_code = self.popen.returncode
        self.since = now
        self._signal(signal.SIGKILL)  # whatever it started and left behind in its group

    def restart_if_due(self) -> None:
        if self.spec.respawn and time.monotonic() - self.since >= self.backoff:
            self.backoff = min(2.0 * self.backoff, LONGEST_BACKOFF)
            self.start()

    def kill(self, why: str) -> None:
        """End it by force, saying why in its log; from any thread. It is restarted like one that ended by itself."""
        with self.log.open("ab") as log:
            log.write(f"[FATAL] {why}: killed\n".encode())
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        for number, patience in ESCALATION:
            if not self.running:
                return
            self._signal(number)
            try:
                self.popen.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
            self._note_end()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole group is gone
            os.killpg(self.popen.pid, number)


class Supervisor:
    """Runs processes until `stop`; restarts those that end. Use as a context manager.

    Each has a log ``FOLDER/NAME.log``. All are started, restarted and ended by one thread of the supervisor's own,
    because the kernel ties a child's life (PR_SET_PDEATHSIG) to the thread that started it.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        folder: Path,
        env: Mapping[str, str],
        on_exit: Callable[[ProcessStatus], None] = lambda status: None,
    ) -> None:
        """``on_exit`` is called in the supervising thread whenever a process ended by itself.

        Raises:
            VigilError: names repeat, or this system lacks ``setpriv``.
        """
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise VigilError(f"process names {names} repeat: give each its own")
        if shutil.which("setpriv") is None:
            raise VigilError("the program setpriv is missing: sudo apt-get install -y util-linux")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._processes = [_Process(spec, folder, env) for spec in specs]
        self._by_name = {process.spec.name: process for process in self._processes}
        self._on_exit = on_exit
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all processes in order; return when the last one was started."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self.stop()
            raise VigilError(f"cannot start a process: {self._failure}")

    def stop(self) -> None:
        """End all processes in reverse order, by SIGINT, then SIGTERM, then SIGKILL. May be called twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def status(self, name: str) -> ProcessStatus:
        """Status of one process."""
        process = self._by_name[name]
        return ProcessStatus(
            name=name,
            running=process.running,
            pid=process.popen.pid if process.popen else None,
            starts=process.starts,
            exit_code=process.exit_code,
            since=process.since,
        )

    def statuses(self) -> list[ProcessStatus]:
        """Status of every process, in order of start."""
        return [self.status(process.spec.name) for process in self._processes]

    def kill(self, name: str, why: str) -> None:
        """End a process that is of no use any more."""
        self._by_name[name].kill(why)

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self._by_name[name].log

    def _supervise(self) -> None:
        try:
            try:
                for process in self._processes:
                    process.start()
            except OSError as error:
                self._failure = error
                return
            finally:
                self._started.set()
            while not self._stopping.wait(POLL):
                for process in self._processes:
                    if process.ended():
                        self._on_exit(self.status(process.spec.name))
                    elif not process.running:
                        process.restart_if_due()
        finally:
            for process in reversed(self._processes):
                process.stop()


def last_error(log: Path) -> str:
    """The line of a log that says best why its process ended; empty if the log is.

    The last fatal or error line of the last start, else the last line (a traceback ends with its error).
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("--- start "):
            lines = lines[index + 1 :]
            break
    lines = [line.strip() for line in lines if line.strip()]
    for mark in ("[FATAL]", "error:", "[ERROR]"):
        for line in reversed(lines):
            if line.startswith(mark):
                return LOG_PREFIX.sub("", line).removeprefix("error:").strip()
    return lines[-1] if lines else ""
