"""The LeRobotDataset v3.0 that an export writes: its files, its pictures, and what a crash leaves of it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from support.recordings import HEIGHT, SECOND, START, WIDTH, Script, number_shown, record, set_back, silent
from vigil.cli import build_app
from vigil.errors import VigilError
from vigil.monitor.scores import SCORES as ALL_SCORES
from vigil.policy import observation
from vigil.policy.observation import prepare_image
from vigil.record.dataset import files, frames, video
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.frames import Pictures, intervention_reward
from vigil.record.dataset.layout import DATA_PATH, EPISODE_FACTS, INFO, PICTURE, SETTINGS, VIDEO_PATH, place
from vigil.record.dataset.prepare import Wanted, prepare
from vigil.record.dataset.resample import Grid
from vigil.record.dataset.store import read_rows, read_tasks
from vigil.record.pictures import picture_of
from vigil.record.reader import EpisodeReader

SCORES = ("rnd", "kernel", "ace")
WANTED = Wanted(Grid(30))


def run(recordings, out: Path, wanted: Wanted = WANTED, encoding: Encoding | None = None):
    return export(recordings, out, wanted, encoding or Encoding(), SCORES)


def info(root: Path) -> dict:
    return json.loads((root / INFO).read_text())


def data(root: Path, episode: int):
    return pq.read_table(root / place(DATA_PATH, episode))


def shown(root: Path, episode: int, camera: str) -> list[int]:
    """Numbers that the pictures of an episode show."""
    path = root / place(VIDEO_PATH, episode, video_key=PICTURE + camera)
    return [number_shown(rgb) for rgb in video.decode(path)]


def check_whole(root: Path) -> int:
    """Everything that ``info.json`` declares is there and fits together; gives the number of episodes."""
    if not (root / INFO).exists():
        return 0
    facts = info(root)
    rows = read_rows(root, facts["total_episodes"])
    assert facts["splits"] == {"train": f"0:{len(rows)}"}
    index = 0
    for number, row in enumerate(rows):
        table = data(root, number)
        assert table.num_rows == row["length"]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (index, index + row["length"])
        assert table["index"].to_pylist() == list(range(index, index + row["length"]))
        assert set(table["episode_index"].to_pylist()) == {number}
        index += row["length"]
        tasks = read_tasks(root)
        assert [tasks[i] for i in set(table["task_index"].to_pylist())] == row["tasks"]
        for key in [key for key, f in facts["features"].items() if f["dtype"] == "video"]:
            assert row[f"videos/{key}/file_index"] == number
            path = root / place(VIDEO_PATH, number, video_key=key)
            assert sum(1 for _ in video.decode(path)) == row["length"]
    assert facts["total_frames"] == index
    assert set(json.loads((root / "meta/stats.json").read_text())) >= {"action", "observation.state"}
    return len(rows)


def contents(root: Path) -> dict[str, object]:
    """What a data set holds, for comparing two."""
    found: dict[str, object] = {"info": info(root)}
    for path in sorted(root.rglob("*.parquet")):
        # NaN is not itself: as text it is.
        found[str(path.relative_to(root))] = str(pq.read_table(path).to_pylist())
    for path in sorted(root.rglob("*.mp4")):
        found[str(path.relative_to(root))] = sum(int(rgb.sum()) for rgb in video.decode(path))
    found["stats"] = json.loads((root / "meta/stats.json").read_text())
    return found


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> list[Path]:
    """Three recordings: a takeover after an alarm, a failure, another task."""
    folder = tmp_path_factory.mktemp("taken")
    takeover = Script(
        authority=((0.2, "HOLD"), (1.2, "POLICY"), (1.3, "HOLD"), (9, "OPERATOR")),
        alarm_at=1.0,
        outcome="intervened_success",
        perturbation="object_swapped",
    )
    return [
        record(folder / "a.mcap", takeover),
        record(folder / "b.mcap", Script(seconds=1.5, outcome="failure", reason="timeout", operator="")),
        record(folder / "c.mcap", Script(seconds=1.2, task="open the drawer")),
    ]


@pytest.fixture(scope="module")
def exported(taken, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exported") / "set"
    result = run(taken, root)
    assert (result.episodes, result.skipped) == (3, {})
    return root


# What is written ----------------------------------------------------------------------------------------------


def test_the_files_are_those_of_the_format(exported):
    assert check_whole(exported) == 3
    facts = info(exported)
    assert list(facts)[:9] == [
        "codebase_version", "fps", "features", "total_episodes", "total_frames", "total_tasks", "chunks_size",
        "data_files_size_in_mb", "video_files_size_in_mb",
    ]  # fmt: skip
    assert (facts["codebase_version"], facts["fps"], facts["total_tasks"]) == ("v3.0", 30, 2)
    features = facts["features"]
    picture = features["observation.images.wrist"]
    assert (picture["dtype"], picture["shape"]) == ("video", [HEIGHT, WIDTH, 3])
    assert picture["names"] == ["height", "width", "channels"]
    assert picture["info"]["video.codec"] == "h264"
    assert features["action"]["names"] == ["fr3_joint1", "fr3_joint2", "gripper"]
    assert features["monitor.scores"]["names"] == list(SCORES)
    assert not any("/" in name for name in features)
    assert sorted(p.name for p in exported.iterdir()) == ["data", "meta", "videos"]


def test_timestamps_are_the_frame_numbers_at_the_declared_rate(exported):
    for episode in range(3):
        table = data(exported, episode)
        stamps = table["timestamp"].to_numpy()
        assert stamps.dtype == np.float32
        assert stamps == pytest.approx(np.arange(len(stamps)) / 30, abs=1e-6)
        assert (np.diff(stamps) > 0).all()
        assert table["frame_index"].to_pylist() == list(range(len(stamps)))


def test_the_task_is_found_by_its_text(exported):
    """LeRobot looks a task up by the frame's index: without pandas' metadata it would give a row number."""
    schema = pq.read_schema(exported / "meta/tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert read_tasks(exported) == ["put the cube on the tray", "open the drawer"]
    assert set(data(exported, 2)["task_index"].to_pylist()) == {1}


def test_each_frame_shows_the_picture_of_its_instant(exported):
    row = read_rows(exported, 3)[0]
    first = round((row["x_start_ns"] - START) / SECOND * 30)
    for camera in ("scene", "wrist"):
        assert shown(exported, 0, camera) == list(range(first, first + row["length"]))


def test_who_had_control_is_in_every_frame(exported):
    table = data(exported, 0)
    sources = table["control_source"].to_pylist()
    assert list(dict.fromkeys(sources)) == ["policy", "hold", "operator"]
    assert table["intervention"].to_pylist() == [source == "operator" for source in sources]
    reward = table["next.reward"].to_numpy()
    last = len(sources) - 1 - sources[::-1].index("policy")
    assert reward[last] == -1.0 and np.count_nonzero(reward) == 1, (
        "the policy's last frame before the takeover"
    )
    assert table["next.done"].to_pylist() == [False] * (len(sources) - 1) + [True]
    alarm = table["alarm"].to_numpy(zero_copy_only=False)
    assert not alarm[:20].any()
    assert alarm[26:].all()
    assert str(table.schema.field("intervention").type) == "bool"
    scores = np.array(table["monitor.scores"].to_pylist())
    assert np.isnan(scores[:, SCORES.index("kernel")]).all()
    assert np.isfinite(scores[10:, SCORES.index("rnd")]).all()
    assert table["verdict"].to_pylist()[-1] == "ALARM"


def test_the_reward_tells_what_made_a_person_step_in():
    letters = {"p": "POLICY", "o": "OPERATOR", "b": "BLENDED", "h": "HOLD"}
    for told, expected in (
        ("hpppoopp", "...-...."),
        ("ppbbpp", ".-...."),
        ("pphhoo", ".-...."),  # held, then taken over
        ("pphhpp", "......"),  # held, and given back
        ("oohhpp", "......"),
        ("ppohop", ".-...."),
        ("hhhh", "...."),
    ):
        reward = intervention_reward(np.array([letters[letter] for letter in told]))
        assert reward.tolist() == [-1.0 if mark == "-" else 0.0 for mark in expected], told


def test_what_is_known_of_an_episode_is_in_its_row(exported):
    rows = read_rows(exported, 3)
    assert set(EPISODE_FACTS) <= set(rows[0])
    told = [(r["x_outcome"], r["x_operator"], r["x_reason"], r["x_perturbation"]) for r in rows]
    assert told == [
        ("intervened_success", "anna", "task_success", "object_swapped"),
        ("failure", "", "timeout", "none"),
        ("success", "anna", "task_success", "none"),
    ]
    for row in rows:
        assert row["x_measured_fps"] == pytest.approx(30.0, rel=1e-3)
        assert row["x_skew_max_s"] < 0.02
        assert row["x_labels"] == []
    assert (rows[0]["x_alarms"], rows[0]["x_interventions"]) == (1, 1)


def test_statistics_are_those_of_the_columns(exported):
    found = json.loads((exported / "meta/stats.json").read_text())
    actions = np.concatenate([np.array(data(exported, i)["action"].to_pylist()) for i in range(3)])
    for name, value in {
        "min": actions.min(0),
        "max": actions.max(0),
        "mean": actions.mean(0),
        "std": actions.std(0),
    }.items():
        assert found["action"][name] == pytest.approx(value, abs=1e-6)
    assert found["action"]["count"] == [len(actions)]
    picture = found["observation.images.scene"]
    assert np.array(picture["mean"]).shape == (3, 1, 1)
    assert 20 / 255 <= picture["min"][0][0][0] < picture["mean"][0][0][0] < picture["max"][0][0][0] <= 1.0
    row = read_rows(exported, 3)[0]
    own = np.array(data(exported, 0)["action"].to_pylist())
    assert row["stats/action/q50"] == pytest.approx(np.quantile(own, 0.5, axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"wrist": silent(0.5, 3.5)}, "camera wrist: silent for 3.0"),
        ({"joints": silent(0.5, 1.0)}, "joint_states: silent for 0.5"),
        ({"arm": set_back(1.0, 0.3)}, "arm state: clock set back by 0.29"),
    ],
)
def test_what_went_wrong_is_in_the_row_and_in_the_report(tmp_path, fault, said):
    path = record(tmp_path / "e.mcap", Script(seconds=4.0, faults=fault))
    run([path], tmp_path / "set")
    (row,) = read_rows(tmp_path / "set", 1)
    assert any(said in label for label in row["x_labels"])
    assert row["x_gap_frames"] == sum(data(tmp_path / "set", 0)["gap"].to_pylist()) > 0
    (line,) = json.loads((tmp_path / "set" / SETTINGS).read_text())["episodes"]
    assert line["labels"] == row["x_labels"]
    assert line["gaps"] == json.loads(row["x_gaps"])


def test_av1(taken, tmp_path):
    run(taken[1:2], tmp_path / "set", encoding=Encoding("av1", 20))
    facts = info(tmp_path / "set")["features"]["observation.images.scene"]["info"]
    assert (facts["video.codec"], facts["video.crf"]) == ("av1", 20)
    numbers = shown(tmp_path / "set", 0, "scene")
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


# Pictures are prepared in one place ---------------------------------------------------------------------------


def test_small_pictures_are_the_policys_own_view(taken, tmp_path, monkeypatch):
    """Export, training and serving call the same function: what reaches the encoder is what it gives, bit for bit."""
    assert frames.prepare_image is prepare_image
    encoded = []
    real = video.encode

    def spy(path, pictures, *rest):
        def kept():
            for rgb in pictures:
                encoded.append(rgb.copy())
                yield rgb

        return real(path, kept(), *rest)

    monkeypatch.setattr(video, "encode", spy)
    path = record(tmp_path / "one.mcap", Script(seconds=1.0, cameras={"scene": 30.0}, shape=(96, 128)))
    run([path], tmp_path / "set", Wanted(Grid(30), size=32))
    recorded = [
        prepare_image(picture_of(message, "scene"), 32)
        for _, message in EpisodeReader(path).messages("scene/color/image_raw/compressed")
    ]
    assert info(tmp_path / "set")["features"]["observation.images.scene"]["shape"] == [32, 32, 3]
    assert encoded
    first = number_shown(encoded[0])
    for i, rgb in enumerate(encoded):
        np.testing.assert_array_equal(rgb, recorded[first + i])


def test_no_other_place_scales_or_decodes_pictures():
    """What people look at (films of a report) may; nothing that is trained on or served."""
    package = Path(observation.__file__).parents[1]
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    scaling = {name for name, text in sources.items() if "resize(" in text}
    # The network of a LeRobot checkpoint may scale by itself: that is within the graph.
    inside = {"train/lerobot/vision.py"}
    assert scaling - inside == {"policy/shrink.py", "run/stories.py", "record/dataset/report.py"}
    assert {name for name, text in sources.items() if "policy.shrink" in text} == {"policy/observation.py"}
    assert {name for name, text in sources.items() if "imdecode" in text} == {"record/pictures.py"}


def test_pictures_as_the_camera_gave_them_by_default(taken):
    (episode,), _ = prepare(taken[1], WANTED, SCORES)
    rgb = next(Pictures(episode.source, None).frames("scene", episode.part))
    assert rgb.shape == (HEIGHT, WIDTH, 3)


# Adding, resuming, crashing -----------------------------------------------------------------------------------


def test_runs_are_added_and_none_twice(taken, exported, tmp_path):
    root = tmp_path / "set"
    run(taken[:1], root)
    before = (root / place(DATA_PATH, 0)).stat().st_mtime_ns
    result = run(taken, root)
    assert (len(result.added), result.present, result.episodes) == (2, 1, 3)
    assert (root / place(DATA_PATH, 0)).stat().st_mtime_ns == before
    assert contents(root) == contents(exported)
    assert len(run(taken, root).added) == 0


def test_what_does_not_fit_is_left_out_and_named(taken, tmp_path):
    root = tmp_path / "set"
    other = record(tmp_path / "other.mcap", Script(columns=("a", "b", "c")))
    lacking = record(tmp_path / "lacking.mcap", Script(cameras={"scene": 30.0}))
    result = run([taken[1], other, lacking], root)
    assert result.episodes == 1
    assert "names of observation.state is ['a', 'b', 'c']" in result.skipped[str(other)]
    assert "it has no observation.images.wrist" in result.skipped[str(lacking)]
    assert json.loads((root / SETTINGS).read_text())["skipped"] == result.skipped
    assert check_whole(root) == 1


def test_other_settings_and_other_folders_are_refused(taken, tmp_path):
    root = tmp_path / "set"
    run(taken[1:2], root)
    with pytest.raises(VigilError, match=r"exported with fps 30 \(now 20\)"):
        run(taken, root, Wanted(Grid(20)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(VigilError, match="not empty and holds no data set"):
        run(taken, tmp_path / "full")
    (root / SETTINGS).unlink()
    with pytest.raises(VigilError, match="somebody else's"):
        run(taken, root)
    with files.owned(root), pytest.raises(VigilError, match="another process"):
        run(taken, root)


def test_a_full_disk_ends_the_export_with_a_whole_data_set(taken, tmp_path, monkeypatch):
    root = tmp_path / "set"
    run(taken[:1], root)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(VigilError, match=r"cannot write to .*No space left"):
            run(taken, root)
    assert check_whole(root) == 1
    assert run(taken, root).episodes == 3


class _Crash(BaseException):
    """The process ends here."""


def test_a_crash_at_any_step_of_writing_leaves_a_whole_data_set(taken, exported, tmp_path, monkeypatch):
    """The second of three episodes is interrupted before each of its renames in turn."""
    begun, real = tmp_path / "begun", os.replace
    run(taken[:1], begun)
    for step in itertools.count():
        root = tmp_path / f"set{step}"
        shutil.copytree(begun, root)
        renames = itertools.count()

        def replace(source, target, renames=renames, step=step):
            if next(renames) >= step:
                raise _Crash
            real(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(files.os, "replace", replace)
            try:
                run(taken[1:2], root)
            except _Crash:
                crashed = True
            else:
                crashed = False
        assert check_whole(root) == (1 if step < 7 else 2)
        if not crashed:
            break
        run(taken, root)
        assert contents(root) == contents(exported)
    assert step == 8  # two videos, data, row, tasks, statistics, info; then the report


EXPORT = """
import sys
from pathlib import Path
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.resample import Grid
print("ready", flush=True)
*recordings, out = map(Path, sys.argv[1:])
export(recordings, out, Wanted(Grid(30)), Encoding(), ("rnd", "kernel", "ace"))
print("done", flush=True)
"""


def test_a_killed_export_goes_on(taken, exported, tmp_path):
    """SIGKILL at random moments: what is on disk is whole every time, and in the end it is as if nothing had been."""
    root, rng, kills = tmp_path / "set", random.Random(0), 0
    command = [sys.executable, "-c", EXPORT, *map(str, taken), str(root)]
    for _ in range(8):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            done = "done" in process.stdout.read()
        assert check_whole(root) <= 3
        kills += not done
        if done:
            shutil.rmtree(root)
    assert kills >= 3
    run(taken, root)
    assert check_whole(root) == 3
    assert contents(root) == contents(exported)


def test_ctrl_c_ends_it_cleanly_and_it_goes_on(tmp_path):
    long = record(tmp_path / "long.mcap", Script(seconds=40.0, shape=(240, 320)))
    root = tmp_path / "set"
    command = [
        sys.executable,
        "-c",
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vigil.cli import main; main()",
        "dataset",
        "export",
        str(long),
        str(root),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 30
        while not list(root.glob(".staging/*.mp4")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert sorted(p.name for p in root.iterdir()) == ["meta"]
    assert export([long], root, WANTED, Encoding(), tuple(ALL_SCORES)).episodes == 1
    assert check_whole(root) == 1


# The command --------------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_did(taken, tmp_path):
    app, out = build_app("dataset"), tmp_path / "set"
    odd = record(tmp_path / "odd.mcap", Script(faults={"wrist": silent(1.0, 2.0)}))
    empty = record(tmp_path / "empty.mcap", Script(authority=((99, "HOLD"),)))
    arguments = ["dataset", "export", str(taken[2]), str(odd), str(empty), str(out), "--fps", "20"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "camera wrist: silent for 1.0" in result.output
    assert f"left out {empty}: nobody ever had control" in result.output
    assert "2 episodes added" in result.output
    assert info(out)["fps"] == 20
    assert check_whole(out) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gaps", "ignore"], "choose one of hold, nearest, drop"),
        (["--codec", "mpeg1"], "choose one of h264, av1"),
        (["--format", "zarr"], "choose one of lerobot, hdf5"),
        (["--outcome", "great"], "choose from success"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(taken, tmp_path, arguments, said):
    app = build_app("dataset")
    result = CliRunner().invoke(app, ["dataset", "export", str(taken[1]), str(tmp_path / "set"), *arguments])
    assert isinstance(result.exception, VigilError)
    assert said in str(result.exception)
    assert not (tmp_path / "set").exists()
