"""A small real sweep of the shipped bundle in lock step: stopped with Ctrl-C, and finished by the same command."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vigil.rig import root

VIGIL = Path(sys.executable).with_name("vigil")
BUNDLE = root() / "models" / "franka_pick_place"

pytestmark = pytest.mark.slow


def test_a_sweep_is_stopped_and_goes_on(tmp_path):
    out = tmp_path / "sweep"
    command = [
        VIGIL,
        "policy",
        "sweep",
        BUNDLE,
        "--samplers",
        "ddim",
        "--demonstrations",
        "1",
        "--rounds",
        "5",
        "--seed",
        "70",
    ]
    command += ["--budget", "5000", "--out", out, "--episodes"]
    ledgers = lambda: sorted(out.glob("*/episodes.jsonl"))  # noqa: E731
    finished = lambda: [p for p in ledgers() if p.parent.name != "demonstrations" and p.stat().st_size]  # noqa: E731
    stopped = subprocess.Popen([*command, "5"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until = time.monotonic() + 200
        while not finished():
            assert stopped.poll() is None and time.monotonic() < until, stopped.communicate()[0]
            time.sleep(0.1)
    finally:
        stopped.send_signal(signal.SIGINT)
        said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "goes on" in said and "Traceback" not in said, said
    (ledger,) = finished()
    before = ledger.read_text().splitlines()
    demonstrations = {p: p.stat().st_mtime_ns for p in (out / "demonstrations").glob("*.mcap")}
    assert len(demonstrations) == 1 and 1 <= len(before) < 5
    assert not json.loads((out / "sweep.json").read_text())["finished"]

    wanted = len(before) + 1
    done = subprocess.run([*command, str(wanted)], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = ledger.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == wanted, "finished episodes are not repeated"
    assert [json.loads(line)["seed"] for line in after] == list(range(70, 70 + wanted))
    assert {p: p.stat().st_mtime_ns for p in (out / "demonstrations").glob("*.mcap")} == demonstrations
    found = json.loads((out / "sweep.json").read_text())
    (row,) = found["samplers"]
    assert found["finished"] and found["recommendation"]["name"] == row["name"] == "ddim"
    assert "too few episodes" in found["recommendation"]["caveats"][0]
    assert row["episodes"] == wanted and row["success_low"] <= row["success_rate"] <= row["success_high"]
    assert 0 < row["error"] < 1 and row["error_observations"] > 10
    with (out / "sweep.csv").open() as file:
        assert next(csv.DictReader(file))["successes"] == str(row["successes"])
    assert (out / "sweep.png").stat().st_size > 10_000
