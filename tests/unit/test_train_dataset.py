"""Training on a data set of recordings: no simulator's labels, and weighted rows. Needs torch (`make test-train`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from support.recordings import Script, record  # noqa: E402
from vigil.errors import VigilError  # noqa: E402
from vigil.record.dataset.export import Encoding, export  # noqa: E402
from vigil.record.dataset.prepare import Wanted  # noqa: E402
from vigil.record.dataset.resample import Grid  # noqa: E402
from vigil.rig import load_rig  # noqa: E402
from vigil.train.config import TrainConfig  # noqa: E402
from vigil.train.demonstrations import load_demonstrations  # noqa: E402
from vigil.train.trainer import Trainer  # noqa: E402

RIG = load_rig("franka_sim")
SMALL = TrainConfig(
    image_size=48, crop=44, embedding=32, denoiser_width=64, denoiser_blocks=2, batch=8, warmup=5, steps=20,
    checkpoint_every=10, validation_episodes=1, sampler_steps=4, intervention_weight=5.0, pre_intervention=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    takeover = ((0.2, "HOLD"), (0.8, "POLICY"), (1.0, "HOLD"), (9, "OPERATOR"))
    columns = (*(f"fr3_joint{i}" for i in range(1, 8)), "gripper")
    recordings = [
        record(folder / f"{i}.mcap", Script(seconds=1.6, authority=takeover, columns=columns, task=RIG.task))
        for i in range(3)
    ]
    export(recordings, folder / "set", Wanted(Grid(30)), Encoding(), ("rnd", "ace"))
    return folder / "set"


def test_a_policy_is_trained_on_it(root, tmp_path):
    data = load_demonstrations(root, RIG, SMALL, tmp_path / "cache.npz")
    assert data.labels.shape == (len(data.states), 0)
    trainer = Trainer(SMALL, data, tmp_path / "run")
    trainer.run()
    losses = [row["loss"] for row in trainer.log]
    assert losses and np.isfinite(losses).all()
    again = load_demonstrations(root, RIG, SMALL, tmp_path / "cache.npz")
    assert again.facts() == data.facts()
    np.testing.assert_array_equal(again.weights, data.weights)


def test_rows_are_drawn_by_their_weights(root, tmp_path):
    data = load_demonstrations(root, RIG, SMALL)
    assert set(data.weights) == {0.0, 1.0, 5.0}
    trainer = Trainer(SMALL, data, tmp_path / "run")
    drawn = data.weights[trainer.rng.choice(trainer.train_rows, 20_000, p=trainer.shares)]
    assert not (drawn == 0).any()
    of_training = data.weights[trainer.train_rows]
    share = 5 * (of_training == 5).sum() / of_training.sum()
    assert (drawn == 5).mean() == pytest.approx(share, abs=0.02)


def test_weights_that_leave_nothing_are_refused(root, tmp_path):
    none = SMALL.model_copy(update={"intervention_weight": 0.0, "pre_intervention": 9.0})
    with pytest.raises(VigilError, match="every row has the weight 0"):
        load_demonstrations(root, RIG, none)


def test_a_changed_data_set_is_read_anew(root, tmp_path):
    cache = tmp_path / "cache.npz"
    load_demonstrations(root, RIG, SMALL, cache)
    with np.load(cache) as stored:
        assert str(stored["task"]) == RIG.task
        before = str(stored["key"])
    load_demonstrations(root, RIG, SMALL.model_copy(update={"step_dt": 0.1}), cache)
    with np.load(cache) as stored:
        assert str(stored["key"]) != before
