"""What `lerobot` itself makes of our data sets. Runs where that package is installed; nothing of ours needs it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from support.lerobot import dataset_class
from support.recordings import SECOND, START, Script, joint_values, number_picture, number_shown, record
from vigil.record.dataset import files
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.resample import Grid

pytest.importorskip("lerobot", reason="the package lerobot is not installed (pip install lerobot)")
torch = pytest.importorskip("torch", reason="lerobot needs torch")
FPS = 30


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    takeover = Script(authority=((0.2, "HOLD"), (1.0, "POLICY"), (9, "OPERATOR")), alarm_at=0.9)
    return [record(folder / "a.mcap", takeover), record(folder / "b.mcap", Script(task="open the drawer"))]


def run(recordings: list[Path], root: Path, codec: str = "h264") -> None:
    export(recordings, root, Wanted(Grid(FPS)), Encoding(codec), ("rnd", "ace"))


def load(root: Path, **options):
    return dataset_class()("local/test", root=root, video_backend="pyav", **options)


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_it_loads_and_gives_what_was_recorded(recordings, tmp_path, codec):
    run(recordings, tmp_path / "set", codec)
    ahead = 4
    dataset = load(tmp_path / "set", delta_timestamps={"action": [i / FPS for i in range(ahead)]})
    assert (dataset.fps, dataset.num_episodes) == (FPS, 2)
    assert len(dataset) == sum(dataset.meta.episodes["length"])
    difference = 0.0
    for index in range(0, len(dataset), 7):
        sample = dataset[index]
        row = dataset.meta.episodes[int(sample["episode_index"])]
        at = (row["x_start_ns"] - START) / SECOND + float(sample["timestamp"])
        assert sample["task"] == row["tasks"][0]
        assert sample["observation.state"].numpy() == pytest.approx(joint_values(at), abs=0.02)
        due = np.minimum(
            at + np.arange(ahead) / FPS, (row["x_start_ns"] - START) / SECOND + (row["length"] - 1) / FPS
        )
        assert sample["action"].numpy() == pytest.approx(joint_values(due) + 10.0, abs=0.02)
        for camera in ("scene", "wrist"):
            rgb = (sample[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255).round()
            number = number_shown(rgb)
            assert number == round(at * 30)
            difference += float(np.abs(rgb - number_picture(number)).mean())
    assert difference / (2 * len(range(0, len(dataset), 7))) < 6.0  # of 255, sharp edges and two lossy codecs


def test_intervention_and_outcome_come_through(recordings, tmp_path):
    run(recordings, tmp_path / "set")
    dataset = load(tmp_path / "set")
    row = dataset.meta.episodes[0]
    assert row["x_outcome"] == "success"
    flags = [bool(dataset[i]["intervention"]) for i in range(row["length"])]
    assert sum(flags) == row["x_intervention_frames"] > 20
    assert dataset[row["length"] - 1]["control_source"] == "operator"
    assert dataset.meta.stats["action"]["mean"].shape == (3,)


def test_a_batch_loader_goes_through_it(recordings, tmp_path):
    run(recordings, tmp_path / "set")
    dataset = load(tmp_path / "set")
    seen = sum(len(batch["index"]) for batch in torch.utils.data.DataLoader(dataset, batch_size=16))
    assert seen == len(dataset)


class _Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(7))
def test_an_interrupted_export_loads(recordings, tmp_path, monkeypatch, step):
    """The second episode's writing ends before each of its renames in turn: lerobot sees the first, whole."""
    root, real, left = tmp_path / "set", os.replace, [step]
    run(recordings[:1], root)

    def replace(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise _Crash
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(_Crash):
        run(recordings, root)
    dataset = load(root)
    assert dataset.num_episodes == 1
    seen = [int(dataset[i]["index"]) for i in range(len(dataset))]
    assert seen == list(range(len(seen)))
    assert len(seen) == dataset.meta.episodes[0]["length"]
