"""`vigil dataset view`: what of a recording lands in the file for the viewer. Needs rerun (the extra `view`)."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from support import recordings
from support.cdr import encode, header
from support.recordings import COLUMNS, SECOND, START, Script, record, silent
from vigil.cli import build_app
from vigil.errors import VigilError
from vigil.record.dataset.lanes import chunk_lines
from vigil.record.dataset.view import AXIS, view
from vigil.record.episode import EpisodeRecord
from vigil.record.pictures import compressed_picture, decode_picture
from vigil.record.reader import EpisodeReader

HORIZON, STEP = 16, 50_000_000  # of the chunks [ns]
TAKEOVER = Script(
    authority=((0.2, "HOLD"), (1.5, "POLICY"), (9.0, "OPERATOR")), alarm_at=1.4, outcome="intervened_success"
)


@pytest.fixture
def with_chunks(monkeypatch) -> None:
    """A chunk every 0.2 s, in what `record` writes."""
    kind = "vigil_msgs/msg/ActionChunk"
    plain = recordings._task

    def task_and_chunks(script):
        yield from plain(script)
        for tick in range(10):
            data = encode(
                kind,
                header=header(START + tick * 4 * STEP),
                tick=tick,
                bundle="b",
                names=list(COLUMNS),
                step_dt=STEP / SECOND,
                horizon=HORIZON,
                positions=(tick + np.arange(HORIZON * len(COLUMNS)) / 100.0),
                inference_time=0.01,
            )
            yield tick * 4 * STEP, "/rig/policy/chunk", data

    monkeypatch.setitem(recordings.TYPES, "policy/chunk", kind)
    monkeypatch.setattr(recordings, "_task", task_and_chunks)


@pytest.fixture
def saved(tmp_path) -> Callable[[Path], dict[str, dict[str, list]]]:
    """Writes the file for the viewer and reads it back: the columns of each entity, in the order of writing."""
    pytest.importorskip("rerun", reason="the viewer needs the extra `view`: pip install -e '.[view]'")
    chunks = pytest.importorskip("rerun.chunk", reason="this release of rerun does not read its files back")

    def save(path: Path) -> dict[str, dict[str, list]]:
        view(path, tmp_path / "e.rrd")
        assert [p.name for p in tmp_path.glob("e.rrd*")] == ["e.rrd"]
        found: dict[str, dict[str, list]] = {}
        for chunk in chunks.RrdReader(tmp_path / "e.rrd").stream():
            batch = chunk.to_record_batch()
            columns = found.setdefault(chunk.entity_path, {})
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                values = column.cast("int64") if name == AXIS else column
                columns.setdefault(name, []).extend(values.to_pylist())
                if name == AXIS:
                    columns["axis"] = [str(column.type)]
        return found

    return save


def test_all_that_was_recorded_is_there(saved, with_chunks, tmp_path):
    found = saved(record(tmp_path / "e.mcap", TAKEOVER))
    for camera in ("scene", "wrist"):
        shown = found[f"/cameras/{camera}"]
        assert len(set(shown[AXIS])) == len(shown[AXIS]) == 91
        assert shown[AXIS][0] == START
        assert set(map(str, shown["EncodedImage:media_type"])) == {"['image/jpeg']"}
        assert bytes(shown["EncodedImage:blob"][0][0]).startswith(b"\xff\xd8")
    for what, offset in (("measured", 0.0), ("commanded", 10.0)):
        line = found[f"/joints/franka/{what}/fr3_joint2"]
        seconds = (np.array(line[AXIS]) - START) / SECOND
        values = np.array(line["Scalars:scalars"])[:, 0]
        assert values == pytest.approx(np.sin(seconds * 2) + offset)
        assert line["SeriesLines:names"] == [[f"fr3_joint2 {what}"]]
    windowed, threshold = (
        found[f"/monitor/ace/{what}"]["Scalars:scalars"] for what in ("windowed", "threshold")
    )
    assert np.diff(np.ravel(windowed)) == pytest.approx(0.1)
    assert np.ravel(threshold) == pytest.approx(6.0)
    assert "intervened_success" in found["/episode"]["TextDocument:text"][0][0]


def test_who_had_control_is_a_line_with_steps_and_a_log(saved, tmp_path):
    found = saved(record(tmp_path / "e.mcap", TAKEOVER))
    line = found["/authority"]
    assert [v for (v,) in line["Scalars:scalars"]] == [0, 0, 1, 1, 2, 2]
    changed = [round((t - START) / SECOND, 2) for t in line[AXIS]]
    assert changed == [0.0, 0.19, 0.2, 1.49, 1.5, 3.0]
    assert [text for (text,) in found["/log/authority"]["TextLog:text"]] == ["HOLD", "POLICY", "OPERATOR"]
    told = found["/log/monitor"]
    assert [text for (text,) in told["TextLog:text"]] == ["NOMINAL", "ALARM, alarm"]
    assert told["TextLog:level"] == [["INFO"], ["ERROR"]]


def test_each_chunk_is_a_line_of_its_own(saved, with_chunks, tmp_path):
    path = record(tmp_path / "e.mcap", TAKEOVER)
    lines = chunk_lines(EpisodeReader(path))
    # 16 steps, replaced after 4: four of them overlap.
    assert sorted(lines) == [(column, lane) for column in sorted(COLUMNS) for lane in range(4)]
    for line in lines.values():
        assert (np.diff(line.stamps) > 0).all()
    second = lines["gripper", 1]
    assert second.lengths[: HORIZON + 1] == [1] * HORIZON + [0]
    assert second.stamps[:2] == [START + 4 * STEP, START + 5 * STEP]
    assert second.values[:2] == pytest.approx([1.02, 1.05])
    shown = saved(path)["/chunks/gripper/lane1"]
    assert shown[AXIS] == second.stamps
    assert [len(v) for v in shown["Scalars:scalars"]] == second.lengths


def test_recordings_without_pictures_without_monitor_and_cut_short(saved, tmp_path):
    bare = Script(cameras={}, faults={"monitor": silent(0.0, 9.0)})
    found = saved(record(tmp_path / "bare.mcap", bare))
    assert not [
        entity for entity in found if entity.startswith(("/cameras", "/monitor", "/log/monitor", "/chunks"))
    ]
    whole = record(tmp_path / "whole.mcap", Script(seconds=8.0))
    cut = tmp_path / "cut.mcap.part"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    found = saved(cut)
    assert "cut short" in found["/episode"]["TextDocument:text"][0][0]
    assert found["/joints/franka/measured/gripper"][AXIS][0] == START


def test_a_simulated_clock_counts_from_its_start(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        recordings, "EpisodeRecord", lambda **facts: EpisodeRecord(**{**facts, "clock": "simulated"})
    )
    found = saved(record(tmp_path / "e.mcap", Script(seconds=1.0, cameras={})))
    assert found["/joints/franka/measured/gripper"]["axis"] == ["duration[ns]"]
    assert found["/joints/franka/measured/gripper"][AXIS][0] == START


def test_raw_pictures_are_compressed():
    rgb = recordings.number_picture(1234)
    raw = SimpleNamespace(
        encoding="rgb8", height=rgb.shape[0], width=rgb.shape[1], step=rgb.shape[1] * 3, data=rgb.tobytes()
    )
    assert recordings.number_shown(decode_picture(compressed_picture(raw, "scene"), "scene")) == 1234


def test_the_command_writes_a_file(saved, tmp_path):
    path = record(tmp_path / "e.mcap", Script(seconds=1.0))
    target = tmp_path / "new" / "e.rrd"
    result = CliRunner().invoke(build_app("dataset"), ["dataset", "view", str(path), "--save", str(target)])
    assert result.exit_code == 0, result.output
    assert target.stat().st_size > 10_000
    (tmp_path / "other.mcap").write_bytes(b"no recording")
    with pytest.raises(VigilError, match=r"^\S+other\.mcap is no MCAP file"):
        view(tmp_path / "other.mcap", target)
    with pytest.raises(VigilError, match="cannot write"):
        view(path, path / "below_a_file.rrd")


def test_without_rerun_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(VigilError, match=r"pip install 'vigil\[view\]'"):
        view(tmp_path / "e.mcap")


def test_a_viewer_that_does_not_start_is_an_error(saved, monkeypatch, tmp_path):
    def missing(*_, **__):
        raise RuntimeError("Failed to find Rerun Viewer executable in PATH.\n\nPATH=...")

    monkeypatch.setattr("rerun.RecordingStream.spawn", missing)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(VigilError, match=r"does not start \(Failed to find .* --save"):
        view(record(tmp_path / "e.mcap", Script(seconds=1.0, cameras={})))


def test_without_a_screen_it_names_the_option(monkeypatch, tmp_path):
    monkeypatch.setattr("vigil.record.dataset.view.load_rerun", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(VigilError, match="--save"):
        view(tmp_path / "e.mcap")
