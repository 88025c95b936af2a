"""The HDF5 file in robomimic's layout."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from support.recordings import (
    COLUMNS,
    HEIGHT,
    SECOND,
    START,
    WIDTH,
    Script,
    joint_values,
    number_shown,
    record,
    silent,
)
from vigil.cli import build_app
from vigil.errors import VigilError
from vigil.record.dataset import hdf5
from vigil.record.dataset.hdf5 import export_hdf5
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.resample import Grid

WANTED = Wanted(Grid(30))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    takeover = ((0.2, "HOLD"), (0.6, "POLICY"), (9, "OPERATOR"))
    return [
        record(folder / "a.mcap", Script(seconds=1.2, authority=takeover, outcome="intervened_success")),
        record(folder / "b.mcap", Script(seconds=0.8, outcome="failure", faults={"wrist": silent(0.4, 0.7)})),
    ]


def run(recordings, out: Path, wanted: Wanted = WANTED):
    return export_hdf5(recordings, out, wanted, ("rnd", "kernel", "ace"))


def content(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}

    def visit(name: str, item) -> None:
        found[name] = {k: str(v) for k, v in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            found[name + "="] = str(item[()].tolist())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_the_layout_is_robomimics(recordings, tmp_path):
    out = tmp_path / "demos.hdf5"
    result = run(recordings, out)
    assert (result.episodes, result.skipped) == (2, {})
    with h5py.File(out, "r") as file:
        data = file["data"]
        assert sorted(data) == ["demo_0", "demo_1"]
        assert (
            data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values()) == result.frames
        )
        json.loads(data.attrs["env_args"])
        demo = data["demo_0"]
        length = demo.attrs["num_samples"]
        at = (demo.attrs["x_start_ns"] - START) / SECOND + np.arange(length) / 30
        assert demo["actions"][()] == pytest.approx(joint_values(at) + 10.0, abs=0.02)
        assert demo["obs/joint_positions"][()] == pytest.approx(joint_values(at), abs=0.02)
        assert json.loads(demo.attrs["columns"]) == list(COLUMNS)
        pictures = demo["obs/wrist_image"]
        assert (pictures.shape, pictures.dtype) == ((length, HEIGHT, WIDTH, 3), np.uint8)
        assert [number_shown(rgb) for rgb in pictures] == [round(t * 30) for t in at]
        assert demo["dones"][()].tolist() == [0] * (length - 1) + [1]
        assert demo["rewards"][-1] == 1.0
        assert data["demo_1/rewards"][()].sum() == 0.0
        sources = demo["vigil/control_source"].asstr()[()].tolist()
        assert demo["vigil/intervention"][()].tolist() == [s == "operator" for s in sources]
        assert demo.attrs["x_outcome"] == "intervened_success"
        assert any("camera wrist: silent" in label for label in json.loads(data["demo_1"].attrs["x_labels"]))
        assert data["demo_1/vigil/gap"][()].any()
        assert file["mask/intervened_success"][()].tolist() == [b"demo_0"]
        assert file["mask/all"][()].tolist() == [b"demo_0", b"demo_1"]
    assert list(tmp_path.iterdir()) == [out]


def test_runs_are_added_and_none_twice(recordings, tmp_path):
    whole, grown = tmp_path / "whole.hdf5", tmp_path / "grown.hdf5"
    run(recordings, whole)
    run(recordings[:1], grown)
    result = run(recordings, grown)
    assert (len(result.added), result.present, result.episodes) == (1, 1, 2)
    assert content(grown) == content(whole)


class _Crash(BaseException):
    """The process ends here."""


def test_an_interrupted_export_goes_on(recordings, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.hdf5", tmp_path / "out.hdf5"
    run(recordings, whole)
    real = hdf5.publish
    for step in range(3):  # two parts, and the file
        calls = []

        def publish(partial, target, calls=calls, step=step):
            calls.append(target)
            if len(calls) > (step == 1):
                raise _Crash
            real(partial, target)

        with monkeypatch.context() as patched:
            patched.setattr(hdf5, "publish", publish)
            with pytest.raises(_Crash):
                run(recordings, out)
        assert not out.exists()
    assert len(list((tmp_path / ".out.hdf5.parts").glob("*.hdf5"))) >= 1
    run(recordings, out)
    assert content(out) == content(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.hdf5", "whole.hdf5"]


def test_what_does_not_fit_is_refused(recordings, tmp_path):
    out = tmp_path / "out.hdf5"
    other = record(tmp_path / "other.mcap", Script(columns=("a", "b", "c")))
    result = run([recordings[1], other], out)
    assert result.episodes == 1
    assert "does not fit the file" in result.skipped[str(other)]
    with pytest.raises(VigilError, match=r"exported with fps 30 \(now 10\)"):
        run(recordings, out, Wanted(Grid(10)))
    out.write_text("not HDF5")
    with pytest.raises(VigilError, match="is no HDF5 file"):
        run(recordings, out)
    assert out.read_text() == "not HDF5"
    assert not list(tmp_path.glob(".*"))


def test_nothing_exported_leaves_no_file(tmp_path):
    out = tmp_path / "out.hdf5"
    empty = record(tmp_path / "empty.mcap", Script(authority=((99, "HOLD"),)))
    result = run([empty], out)
    assert (result.episodes, list(result.skipped.values())) == (0, ["nobody ever had control"])
    assert not out.exists()


def test_the_command_writes_it(recordings, tmp_path):
    out = tmp_path / "out.hdf5"
    arguments = ["dataset", "export", str(recordings[0]), str(out), "--format", "hdf5", "--image-size", "24"]
    result = CliRunner().invoke(build_app("dataset"), arguments)
    assert result.exit_code == 0, result.output
    with h5py.File(out, "r") as file:
        assert file["data/demo_0/obs/scene_image"].shape[1:] == (24, 24, 3)
