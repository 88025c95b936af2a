"""How often cameras draw in lock step."""

import pytest

from support.tiny_bundle import write_tiny_bundle
from vigil.bringup import Options, node_specs
from vigil.errors import VigilError
from vigil.policy.pace import frame_period, read_spec
from vigil.rig import load_rig
from vigil.run.session import derive_rig

OTHER = "fold the towel"


@pytest.fixture
def rig(tmp_path):
    def made(tasks=(), **bundle):
        folder = write_tiny_bundle(tmp_path / "tiny", **bundle)
        other = (
            {OTHER: str(write_tiny_bundle(tmp_path / "other", task=OTHER, **dict(tasks)))} if tasks else {}
        )
        return derive_rig(load_rig("franka_sim"), tmp_path, policy={"bundle": str(folder), "tasks": other})

    return made


def test_without_histories_frames_come_with_the_policys_ticks(rig):
    assert frame_period(rig()) == 0.2


@pytest.mark.parametrize(("dt", "period"), [(None, 0.05), (0.1, 0.1), (0.15, 0.05), (0.4, 0.2)])
def test_every_observation_of_a_history_has_its_frame(rig, dt, period):
    made = rig(history=2, history_dt=dt)
    assert frame_period(made) == pytest.approx(period)
    rates = {s.parameters["rate"] for s in node_specs(made, Options(lockstep=True)) if s.room == "camera"}
    assert list(rates) == [pytest.approx(1 / period)]
    rates = {s.parameters["rate"] for s in node_specs(made) if s.room == "camera"}
    assert rates == {30.0}, "in real time cameras run as the rig says"


def test_other_tasks_policies_count_too(rig):
    assert frame_period(rig(tasks=[("history", 2), ("history_dt", 0.1)])) == pytest.approx(0.1)


def test_a_bundle_that_is_not_there_is_left_to_the_policy_node(tmp_path):
    nowhere = {"bundle": str(tmp_path / "nowhere")}
    assert frame_period(derive_rig(load_rig("franka_sim"), tmp_path, policy=nowhere)) == 0.2
    with pytest.raises(VigilError, match="nowhere"):
        read_spec(tmp_path / "nowhere")
