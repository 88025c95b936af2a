"""The promise, with the shipped policy in real time: it works alone, and when it fails it is caught and saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vigil.record.reader import EpisodeReader

VIGIL = Path(sys.executable).with_name("vigil")
ASKED = {"name", "perturbation", "outcome", "alarms", "first_alarm_s", "alarm_to_hold_ms"}
ASKED |= {"takeover_joint_step_rad", "handed_back"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    out = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [VIGIL, "demo", "--out", out],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ,
    )
    return done, out


def test_all_four_stories_are_told(demo):
    done, _ = demo
    assert done.returncode == 0, done.stdout + done.stderr


def test_report_has_every_figure(demo):
    _, out = demo
    nominal, benign, *failing = json.loads((out / "report.json").read_text())["episodes"]
    assert all(set(e) >= ASKED for e in (nominal, benign, *failing))
    assert nominal["outcome"] == benign["outcome"] == "success" and nominal["alarms"] == 0
    for episode in failing:
        assert episode["outcome"] == "intervened_success" and episode["handed_back"]
        assert episode["alarm_to_hold_ms"] <= 20.0
        assert episode["takeover_joint_step_rad"] <= 0.01
    assert (out / "report.html").read_text().count("data:image/jpeg") == 4 * 2 * 8


def test_recordings_lie_beside_the_report(demo):
    _, out = demo
    assert len(list(out.glob("*.mcap"))) == 4


def test_evaluation_writes_roll_outs_and_resumes(tmp_path):
    command = [VIGIL, "evaluate", "franka_sim", "--seed", "40", "--out", tmp_path / "run", "--episodes"]
    for episodes in ("1", "2"):
        done = subprocess.run([*command, episodes], capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n"] == 2 and summary["wilson_low"] <= summary["success_rate"] <= summary["wilson_high"]
    assert set(summary["per_perturbation"]["none"]) >= {"alarm_rate_on_success", "alarm_rate_on_failure"}
    lines = (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [40, 41]
    for folder in sorted((tmp_path / "run").glob("episode_*")):
        assert {p.name for p in folder.iterdir()} >= {"episode.mcap", "rollout.npz", "episode.json"}


def test_chunks_can_be_held_back_in_lock_step(tmp_path):
    command = [
        VIGIL,
        "evaluate",
        "franka_sim",
        "--episodes",
        "1",
        "--seed",
        "40",
        "--latency",
        "0.1",
        "--no-images",
    ]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recording = EpisodeReader(tmp_path / "episode_0000" / "episode.mcap")
    state = recording.columns("arm/state", ["header.stamp", "authority_name", "first_command_stamp"])
    began = state["header.stamp"][np.asarray(state["authority_name"]) == "POLICY"][0]
    chunks = recording.columns("policy/chunk", ["header.stamp"])["header.stamp"]
    observed = chunks[chunks > began][0]
    commands = state["first_command_stamp"]
    assert 0.1 <= (commands[commands > began][0] - observed) / 1e9 <= 0.13
