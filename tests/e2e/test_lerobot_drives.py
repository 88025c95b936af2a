"""A diffusion policy that `lerobot` made drives the simulated rig: exported, loaded by the real policy node, followed by the arm.

The checkpoint is the frozen one of tests/support/lerobot_policies, with two observations in its history. It was trained for some steps
on invented demonstrations about the home pose: it moves the arm there, and can do nothing. Needs torch (`make test-train`).
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs the extra `train`: run `make test-train`")

from sensor_msgs.msg import JointState  # noqa: E402
from vigil_msgs.msg import ActionChunk  # noqa: E402

from support.lerobot_policies import HOME, REACH, unpack  # noqa: E402
from support.live_node import graph, wait_for  # noqa: E402
from vigil.bringup import Options  # noqa: E402
from vigil.node import COMMAND, SENSOR  # noqa: E402
from vigil.rig import load_rig  # noqa: E402
from vigil.run.episodes import engage, new_scene  # noqa: E402
from vigil.run.session import Session, derive_rig  # noqa: E402
from vigil.train.lerobot.binding import Wishes  # noqa: E402
from vigil.train.lerobot.export import export_lerobot  # noqa: E402

pytestmark = pytest.mark.slow


def test_a_lerobot_checkpoint_moves_the_simulated_arm(tmp_path):
    checkpoint, _ = unpack("diffusion", tmp_path)
    base = load_rig("franka_sim")
    export_lerobot(checkpoint, tmp_path / "bundle", base, Wishes(fps=20))
    rig = derive_rig(
        base,
        tmp_path,
        policy={"bundle": str(tmp_path / "bundle"), "samples": 4},
        record={"directory": str(tmp_path / "recordings")},
        sim={"time_limit": 600.0},
    )
    with (
        Session(rig, Options(), tmp_path / "logs", parameters={"monitor": {"uncalibrated": True}}) as session,
        graph(rig.namespace) as listener,
    ):
        states = listener.collect(JointState, f"{rig.arm.name}/joint_states", SENSOR)
        chunks = listener.collect(ActionChunk, "policy/chunk", COMMAND)
        wait_for(session.all_active, 90, "all nodes are active")
        new_scene(session.client, seed=3)
        wait_for(lambda: len(chunks) >= 3 and states, 20, "chunks of the LeRobot policy")
        before = positions(states[-1], rig)
        engage(session.client)
        travelled = wait_for(
            lambda: (far := np.abs(positions(states[-1], rig) - before).max()) > 0.02 and far,
            20,
            "the arm moves",
        )
        assert session.client.arm.authority_name in ("POLICY", "HOLD")
        session.client.hold()
    made = np.array(chunks[-1].positions).reshape(chunks[-1].horizon, len(rig.columns))
    assert list(chunks[-1].names) == list(rig.columns) and chunks[-1].bundle == "lerobot_diffusion"
    assert (np.abs(made - HOME) <= REACH + 1e-5).all(), "what it wants lies where its demonstrations were"
    assert travelled > 0.02


def positions(message: JointState, rig) -> np.ndarray:
    by_name = dict(zip(message.name, message.position, strict=True))
    return np.array([by_name[name] for name in rig.arm.joints])
