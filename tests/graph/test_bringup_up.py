"""``vigil up`` with the rig's real nodes: comes up, restarts what dies, ends clean on Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from support.tiny_bundle import write_tiny_bundle
from vigil.rig import load_rig

VIGIL = Path(sys.executable).with_name("vigil")
NODES = ("sim", "camera_wrist", "camera_scene", "arm", "policy", "teleop")


@pytest.fixture(scope="module")
def rig_file(tmp_path_factory):
    """The simulated rig with a tiny bundle, which has no calibrated monitor."""
    folder = tmp_path_factory.mktemp("rig")
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    data["policy"]["bundle"] = str(write_tiny_bundle(folder / "bundle"))
    data["monitor"]["level"] = "none"
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


class Up:
    """``vigil up`` in a process of its own; what it says is read as it comes."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [VIGIL, "up", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said += line

    def read_until(self, pattern, timeout=90.0):
        until = time.monotonic() + timeout
        while not re.search(pattern, self.said):
            alive = self.process.poll() is None
            assert alive and time.monotonic() < until, f"{pattern!r} was not said: {self.said}"
            time.sleep(0.05)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60.0)
        self._reader.join(timeout=5.0)


@pytest.fixture
def up(rig_file):
    running = Up(rig_file, "--no-record")
    yield running
    running.process.kill()
    running.process.wait()
    running.process.stdout.close()


def node_pids(rig_file):
    """Process ids of this rig's nodes by name."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(str(rig_file) in word for word in words) and "--ros-args" in words:
                found[next(w for w in words if w.startswith("__node:=")).removeprefix("__node:=")] = int(
                    folder.name
                )
    return found


def test_up_restarts_what_dies_and_ends_clean(up, rig_file):
    up.read_until("is up; logs are in")
    for name in NODES:
        up.read_until(rf"(?m)^{name} is active")
    pids = node_pids(rig_file)
    assert set(pids) == set(NODES)
    os.kill(pids["teleop"], signal.SIGKILL)
    up.read_until("teleop is down: was killed by SIGKILL")
    up.read_until(r"teleop is down[^$]*teleop is active")
    up.interrupt()
    assert up.process.returncode == 0, up.said
    assert "Traceback" not in up.said
    assert not node_pids(rig_file)


def test_up_killed_leaves_no_node(up, rig_file):
    up.read_until("is up; logs are in")
    up.process.kill()
    up.process.wait()
    until = time.monotonic() + 10.0
    while left := node_pids(rig_file):
        assert time.monotonic() < until, left
        time.sleep(0.05)
