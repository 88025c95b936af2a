"""Deleting episodes: a mark that can be taken back, and a compaction that cannot leave half a data set."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support.recordings import Script, number_shown, record
from vigil.errors import VigilError
from vigil.record.dataset import compact as compaction
from vigil.record.dataset import video
from vigil.record.dataset.compact import compact, deleted, mark, settle, verify
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.layout import DATA_PATH, INFO, PICTURE, VIDEO_PATH, place
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.resample import Grid
from vigil.record.dataset.store import read_rows, read_tasks


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    tasks = ("first", "second", "second", "third")
    return [
        record(folder / f"{i}.mcap", Script(seconds=0.6 + 0.2 * i, cameras={"scene": 30.0}, task=task))
        for i, task in enumerate(tasks)
    ]


@pytest.fixture(scope="module")
def made(recordings, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made") / "set"
    run(recordings, root)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def run(recordings, root: Path):
    return export(recordings, root, Wanted(Grid(30)), Encoding(), ("rnd", "ace"))


def pictures(root: Path, episode: int) -> list[int]:
    path = root / place(VIDEO_PATH, episode, video_key=PICTURE + "scene")
    return [number_shown(rgb) for rgb in video.decode(path)]


def test_a_mark_changes_no_episode_and_can_be_taken_back(root, made):
    assert mark(root, [1, 3], "operator sneezed") == {1: "operator sneezed", 3: "operator sneezed"}
    assert deleted(root) == {1: "operator sneezed", 3: "operator sneezed"}
    for path in filter(Path.is_file, made.rglob("*")):
        assert (root / path.relative_to(made)).read_bytes() == path.read_bytes()
    assert mark(root, [3], undo=True) == {1: "operator sneezed"}
    with pytest.raises(VigilError, match="has no episode 4: its episodes are 0 to 3"):
        mark(root, [4])


def test_compaction_removes_them_and_numbers_the_others_anew(root, made, recordings):
    before = read_rows(made, 4)
    mark(root, [1, 3])
    (root / "README.md").write_text("mine")
    assert compact(root) == (2, 2)
    assert (root / "README.md").read_text() == "mine"
    assert verify(root) == []
    assert deleted(root) == {}
    info = json.loads((root / INFO).read_text())
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (
        2, before[0]["length"] + before[2]["length"], {"train": "0:2"},
    )  # fmt: skip
    rows = read_rows(root, 2)
    assert [row["x_recording"] for row in rows] == [before[0]["x_recording"], before[2]["x_recording"]]
    assert read_tasks(root) == ["first", "second"]
    table = pq.read_table(root / place(DATA_PATH, 1))
    original = pq.read_table(made / place(DATA_PATH, 2))
    assert table["action"].equals(original["action"])
    assert set(table["task_index"].to_pylist()) == {1}
    assert pictures(root, 1) == pictures(made, 2)
    assert rows[1]["stats/index/min"] == [rows[0]["length"]]
    assert list(root.parent.iterdir()) == [root]
    # What was removed does not come back with the next export of the same runs; what is new is added.
    result = run(recordings, root)
    assert (len(result.added), result.episodes, result.present) == (0, 2, 4)
    other = record(root.parent / "new.mcap", Script(seconds=0.8, cameras={"scene": 30.0}))
    assert run([other], root).episodes == 3
    assert verify(root) == []


def test_compaction_without_marks_does_nothing(root, made):
    assert compact(root) == (0, 4)
    with pytest.raises(VigilError, match="all 4 episodes"):
        mark(root, [0, 1, 2, 3])
        compact(root)
    assert verify(root) == []


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(VigilError, match="is no data set"):
        compact(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / INFO).write_text('{"total_episodes": 1}')
    with pytest.raises(VigilError, match="was not made by"):
        mark(tmp_path, [0])


def test_a_copy_that_is_not_whole_is_not_used(root, monkeypatch):
    mark(root, [0])
    monkeypatch.setattr(compaction, "_link", lambda source, target: None)
    with pytest.raises(VigilError, match="not whole, and was not used: episode 0 has no video"):
        compact(root)
    assert verify(root) == []
    assert len(read_rows(root, 4)) == 4


class _Crash(BaseException):
    """The process ends here."""


def test_a_swap_in_two_steps_is_ended_by_the_next_command(root, monkeypatch):
    """Where a file system cannot exchange folders, a crash between the two renames leaves no data set of that name."""
    mark(root, [0])
    real, renames = Path.rename, []

    def rename(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise _Crash
        return real(self, target)

    class NoExchange:
        def __init__(self, *_, **__):
            pass

    with monkeypatch.context() as patched:
        patched.setattr(compaction.ctypes, "CDLL", NoExchange)
        patched.setattr(Path, "rename", rename)
        patched.setattr(compaction, "settle", lambda root: None)
        with pytest.raises(_Crash):
            compact(root)
    assert not root.exists()
    settle(root)
    assert verify(root) == []
    assert json.loads((root / INFO).read_text())["total_episodes"] == 3
    assert list(root.parent.iterdir()) == [root]


def test_a_disk_that_refuses_the_swap_costs_nothing(root, monkeypatch):
    mark(root, [0])
    real = Path.rename

    def rename(self, target):
        if self.name.endswith(".compact") and not getattr(rename, "failed", False):
            rename.failed = True
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(compaction, "_EXCHANGE", -1)
        patched.setattr(Path, "rename", rename)
        with pytest.raises(VigilError, match="No space left"):
            compact(root)
    assert rename.failed
    assert verify(root) == []
    assert list(root.parent.iterdir()) == [root]


COMPACT = """
import sys
from pathlib import Path
from vigil.record.dataset.compact import compact
print("ready", flush=True)
compact(Path(sys.argv[1]))
print("done", flush=True)
"""


def test_a_killed_compaction_leaves_the_old_data_set_or_the_new_one(made, tmp_path):
    rng, kills = random.Random(1), 0
    for attempt in range(8):
        root = Path(shutil.copytree(made, tmp_path / f"set{attempt}"))
        mark(root, [0])
        with subprocess.Popen(
            [sys.executable, "-c", COMPACT, str(root)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
            kills += "done" not in process.stdout.read()
        assert verify(root) == []
        assert json.loads((root / INFO).read_text())["total_episodes"] in (3, 4)
        assert compact(root)[1] == 3
        assert verify(root) == []
    assert kills >= 2
