"""Two tasks over the simulated arm: switched in free motion while it moves, and not while it holds something."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.record.reader import EpisodeReader, stamp_ns
from vigil.rig import RigConfig, load_rig
from vigil.run.client.node import RigClient
from vigil.run.episodes import engage, new_scene, wait_for_end
from vigil.run.session import Session, derive_rig

OTHER = "the same, told otherwise"


def another_task(folder: Path, shipped: Path) -> Path:
    """The shipped policy under another name, for another task."""
    made = shutil.copytree(shipped, folder / "other")
    spec = yaml.safe_load((made / "bundle.yaml").read_text())
    (made / "bundle.yaml").write_text(yaml.safe_dump({**spec, "name": "other", "task": OTHER}))
    return made


def holds(client: RigClient) -> bool:
    """The gripper was told to close, and something keeps it from it."""
    width, told = client.arm.measured[-1], client.arm.commanded[-1]
    return client.arm.names[-1] == "gripper" and width - told > 2 * client.rig.policy.contact_margin


def steps(states: list, rig: RigConfig) -> tuple[np.ndarray, np.ndarray]:
    """When each command was sent [ns], and the largest joint step from the one before it [rad]."""
    joints = [state.commanded[: len(rig.arm.joints)] for state in states]
    return np.array([stamp_ns(state.header.stamp) for state in states])[1:], np.abs(
        np.diff(joints, axis=0)
    ).max(axis=1)


@pytest.mark.slow
def test_a_task_is_switched_in_free_motion_without_a_jump_and_not_in_contact(tmp_path):
    shipped = load_rig("franka_sim")
    rig = derive_rig(
        shipped,
        tmp_path,
        policy={"tasks": {OTHER: str(another_task(tmp_path, shipped.bundle_path()))}, "switch_timeout": 0.2},
        record={"directory": str(tmp_path / "episodes"), "images": "none"},
        monitor={"level": "none"},
    )
    with Session(rig, Options(lockstep=True), tmp_path / "log") as session:
        client = session.client
        new_scene(client, 70_000)
        client.start_episode("switched")
        engage(client)
        began = client.task.elapsed
        client.wait_until(lambda c: c.task.elapsed > began + 1.0, 60.0, "a second of motion")
        client.switch_task(OTHER)
        client.wait_until(lambda c: c.chunk.bundle == "other", 60.0, "a chunk of the other policy")

        client.wait_until(holds, 60.0, "the cube is held")
        with pytest.raises(
            VigilError,
            match=r"the task stays 'the same, told otherwise': the arm is in contact: gripper is \d+ mm wide",
        ):
            client.switch_task(rig.task)
        assert wait_for_end(client) == ("success", "task_success")
        client.end_episode("success", "task_success")
        session.check()

    (path,) = (tmp_path / "episodes").rglob("*.mcap")
    bundles = [chunk.bundle for _, chunk in EpisodeReader(path).messages("policy/chunk")]
    assert sorted(bundles, key=["franka_pick_place", "other"].index) == bundles, "switched once, and not back"
    states = [
        state for _, state in EpisodeReader(path).messages("arm/state") if state.authority_name == "POLICY"
    ]
    assert len({state.transition for state in states}) == 1, "the switch takes control from nobody"
    stamps, step = steps(states, rig)
    first = next(
        stamp_ns(chunk.header.stamp)
        for _, chunk in EpisodeReader(path).messages("policy/chunk")
        if chunk.bundle == "other"
    )
    # From its observation on to when the fade to its first chunk has ended.
    switching = (stamps >= first) & (stamps <= first + 600_000_000)
    assert switching.sum() >= 50
    assert step[switching].max() <= np.percentile(step[~switching], 99)
