"""Roll-outs on disk: whole or not at all, and refused with a name for what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from support.monitor_rollouts import make_rollout
from vigil.errors import VigilError
from vigil.record.rollout import (
    ARRAYS_FILE,
    EPISODE_FILE,
    HOLD,
    POLICY,
    Rollout,
    find_rollouts,
    load_rollout,
    load_rollouts,
    save_rollout,
)


@pytest.fixture
def rollout() -> Rollout:
    made = make_rollout(np.random.default_rng(0))
    images = {"wrist": np.arange(len(made) * 4 * 4 * 3, dtype=np.uint8).reshape(len(made), 4, 4, 3)}
    scores = np.ones((len(made), 2))
    return replace(
        made, images=images, score_names=("rnd", "ace"), scores=scores, windowed=scores, thresholds=2 * scores
    )


def test_what_is_written_is_read(rollout, tmp_path):
    save_rollout(tmp_path / "episode_0000", rollout)
    read = load_rollout(tmp_path / "episode_0000", images=True)
    for name in ("stamps", "tick", "embedding", "samples", "authority", "scores", "thresholds", "verdict"):
        np.testing.assert_array_equal(getattr(read, name), getattr(rollout, name))
    np.testing.assert_array_equal(read.images["wrist"], rollout.images["wrist"])
    assert (read.names, read.step_dt, read.score_names) == (
        rollout.names,
        rollout.step_dt,
        rollout.score_names,
    )
    assert read.episode == rollout.episode
    assert not load_rollout(tmp_path / "episode_0000").images
    assert sorted(p.name for p in (tmp_path / "episode_0000").iterdir()) == [EPISODE_FILE, ARRAYS_FILE]


def test_selection_by_outcome_and_perturbation(tmp_path):
    rng = np.random.default_rng(0)
    for i, failing in enumerate((False, True, False)):
        save_rollout(tmp_path / f"episode_{i:04d}", make_rollout(rng, failing=failing))
    assert len(load_rollouts(tmp_path)) == 3
    assert len(load_rollouts(tmp_path, outcomes=["success"])) == 2
    assert len(load_rollouts([tmp_path], perturbations=["object_swapped"])) == 1
    assert [p.name for p in find_rollouts(tmp_path)] == ["episode_0000", "episode_0001", "episode_0002"]


def test_segments_are_what_the_policy_controlled(rollout):
    rollout.authority[:] = HOLD
    rollout.authority[2:5] = rollout.authority[9:] = POLICY
    assert rollout.segments() == [slice(2, 5), slice(9, len(rollout))]
    rollout.authority[:] = HOLD
    assert rollout.segments() == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("samples", np.zeros((3, 4, 5, 4)), "samples has shape [3, 4, 5, 4]"),
        ("embedding", np.zeros(5), "embedding has shape [5]"),
        ("authority", np.array(["POLICY"]), "authority holds <U6"),
        ("step_dt", 0.0, "step_dt is 0.0"),
        ("images", {"wrist": np.zeros((1, 2, 2, 3))}, "images_wrist is float64"),
    ],
)
def test_columns_that_do_not_fit_are_named(rollout, column, value, said):
    with pytest.raises(VigilError) as error:
        replace(rollout, **{column: value})
    assert said in str(error.value)


def test_damage_is_named(rollout, tmp_path):
    with pytest.raises(VigilError, match="does not exist"):
        find_rollouts(tmp_path / "nowhere")
    with pytest.raises(VigilError, match="no roll-outs"):
        find_rollouts(tmp_path)
    folder = tmp_path / "episode_0000"
    save_rollout(folder, rollout)
    whole = (folder / ARRAYS_FILE).read_bytes()
    (folder / ARRAYS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VigilError, match="cannot read"):
        load_rollout(folder)
    (folder / ARRAYS_FILE).unlink()
    with pytest.raises(VigilError, match=f"no {ARRAYS_FILE}"):
        load_rollout(folder)
    (folder / EPISODE_FILE).write_text(json.dumps({"outcome": "brilliant", "duration_s": 1}))
    with pytest.raises(VigilError, match=r"outcome.*brilliant"):
        load_rollout(folder)
    (folder / EPISODE_FILE).write_text("{")
    with pytest.raises(VigilError, match="cannot read"):
        load_rollout(folder)


def test_a_pickle_in_the_arrays_is_refused(rollout, tmp_path):
    save_rollout(tmp_path, rollout)
    np.savez(tmp_path / ARRAYS_FILE, stamps=np.array([{}], dtype=object))
    with pytest.raises(VigilError):
        load_rollout(tmp_path)
