"""A policy that reads a history drives the simulated rig in lock step: the frames between its ticks are drawn and waited for."""

from __future__ import annotations

import numpy as np
import pytest
from vigil_msgs.msg import ControlState

from support.tiny_bundle import write_tiny_bundle
from vigil.bringup import Options
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import load_rig
from vigil.run.episodes import engage, new_scene
from vigil.run.session import Session, derive_rig


@pytest.mark.slow
def test_a_history_in_lock_step(tmp_path):
    # Little noise: the hand stands near its limit, and a chunk that led it far outside would rightly be refused.
    bundle = write_tiny_bundle(tmp_path / "tiny", history=3, history_dt=0.05, memory=True, gain=1e-4)
    rig = derive_rig(
        load_rig("franka_sim"),
        tmp_path,
        policy={"bundle": str(bundle), "samples": 4, "candidates": 2},
        record={"directory": str(tmp_path / "episodes"), "images": "none"},
        monitor={"hold_on": []},
    )
    parameters = {"monitor": {"uncalibrated": True}}
    with Session(rig, Options(lockstep=True), tmp_path / "log", parameters=parameters) as session:
        new_scene(session.client, 1)
        session.client.start_episode("history")
        engage(session.client)
        elapsed = session.client.task.elapsed
        session.client.wait_until(lambda c: c.task.elapsed > elapsed + 4.0, 60.0, "4 s of simulated time")
        session.client.end_episode("success", "test")
        session.check()
    (path,) = (tmp_path / "episodes").rglob("*.mcap")
    evidence = [message for _, message in EpisodeReader(path).messages("policy/evidence")]
    stamps = np.array([stamp_ns(message.header.stamp) for message in evidence])
    last = list(EpisodeReader(path).messages("arm/state"))[-1][1]
    assert last.authority == ControlState.POLICY, last.reason
    assert len(stamps) >= 20 and (np.diff(stamps) == 200_000_000).all(), "no tick is missing"
    calls = [message.embedding[-1] for message in evidence]
    begun = calls.index(0.0)
    assert calls[begun:] == list(range(len(calls) - begun)), "memory counts the ticks since the engagement"
