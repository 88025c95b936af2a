"""Reading a LeRobotDataset, ours or another's, and what training makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.recordings import COLUMNS, SECOND, START, Script, joint_values, number_shown, record, silent
from vigil.errors import VigilError
from vigil.policy import observation
from vigil.record.dataset import video
from vigil.record.dataset.compact import mark
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.layout import INFO, tasks_table
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.reader import DatasetReader
from vigil.record.dataset.resample import Grid
from vigil.train import dataset as training
from vigil.train.config import TrainConfig
from vigil.train.dataset import cache_key, read_dataset, row_weights

TAKEOVER = ((0.2, "HOLD"), (1.0, "POLICY"), (1.4, "HOLD"), (2.4, "OPERATOR"), (9.0, "POLICY"))
CONFIG = TrainConfig(image_size=48, crop=44, horizon=8, step_dt=0.05)
CAMERAS = ("wrist", "scene")
TASK = "put the cube on the tray"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    recordings = [
        record(folder / "a.mcap", Script(authority=TAKEOVER, outcome="intervened_success")),
        record(folder / "b.mcap", Script(seconds=1.0, outcome="failure")),
        record(folder / "c.mcap", Script(seconds=2.0, faults={"wrist": silent(0.8, 1.4)})),
    ]
    export(recordings, folder / "set", Wanted(Grid(30)), Encoding(), ("rnd", "ace"))
    return folder / "set"


@pytest.fixture
def root(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def start_of(reader: DatasetReader, episode: int) -> float:
    return (reader.rows[episode]["x_start_ns"] - START) / SECOND


def test_what_was_exported_is_read(made):
    reader = DatasetReader(made)
    assert (reader.fps, reader.cameras, reader.tasks) == (30.0, ("scene", "wrist"), [TASK])
    assert reader.names("action") == list(COLUMNS)
    table = reader.columns(0, ["action", "timestamp", "intervention", "control_source"])
    times = start_of(reader, 0) + table["timestamp"]
    assert table["action"] == pytest.approx(joint_values(times) + 10.0, abs=0.02)
    assert table["intervention"].tolist() == [s == "operator" for s in table["control_source"]]
    numbers = [number_shown(rgb) for rgb in reader.pictures(0, "wrist")]
    assert numbers == [round(t * 30) for t in times]


def test_many_episodes_in_one_file_are_read(made, tmp_path):
    """As lerobot itself writes them: one data file, one video and one episodes file for all."""
    ours = DatasetReader(made)
    root = tmp_path / "theirs"
    for folder in ("data/chunk-000", "meta/episodes/chunk-000", "videos/observation.images.scene/chunk-000"):
        (root / folder).mkdir(parents=True)
    frames, tables, rows, first = [], [], [], 0
    for number in range(3):
        shown = list(ours.pictures(number, "scene"))
        columns = ours.columns(number, ["observation.state", "action", "timestamp"])
        table = {name: pa.array(list(values)) for name, values in columns.items()}
        tables.append(pa.table({**table, "episode_index": [number] * len(shown)}))
        video_key = "videos/observation.images.scene"
        rows.append(
            {
                "episode_index": number, "tasks": [TASK], "length": len(shown), "data/chunk_index": 0,
                "data/file_index": 0, f"{video_key}/chunk_index": 0, f"{video_key}/file_index": 0,
                f"{video_key}/from_timestamp": first / 30, f"{video_key}/to_timestamp": (first + len(shown)) / 30,
            }
        )  # fmt: skip
        first += len(shown)
        frames += shown
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(tasks_table([TASK]), root / "meta/tasks.parquet")
    video.encode(root / "videos/observation.images.scene/chunk-000/file-000.mp4", frames, 30, "h264")
    info = json.loads((made / INFO).read_text())
    kept = ("observation.state", "action", "timestamp", "observation.images.scene", "episode_index")
    info["features"] = {name: f for name, f in info["features"].items() if name in kept}
    info["features"]["action"]["names"] = {"motors": list(COLUMNS)}
    (root / INFO).write_text(json.dumps(info))
    theirs = DatasetReader(root)
    for number in range(3):
        assert (
            theirs.columns(number, ["action"])["action"].tolist()
            == ours.columns(number, ["action"])["action"].tolist()
        )
        a, b = ([number_shown(rgb) for rgb in r.pictures(number, "scene")] for r in (theirs, ours))
        assert a == b
    found = read_dataset(root, COLUMNS, ("scene",), "another text", CONFIG)
    assert found.task == TASK
    assert set(found.episode) == {0, 1, 2}  # nothing says that one failed
    assert (found.weights == 1).all()


def test_rows_are_those_that_are_worth_learning_from(made):
    found = read_dataset(made, COLUMNS, CAMERAS, TASK, CONFIG)
    assert set(found.episode) == {0, 2}  # the second failed
    reader = DatasetReader(made)
    table = reader.columns(0, ["control_source", "timestamp"])
    in_hold = int((table["control_source"] == "hold").sum())
    length = reader.rows[0]["length"]
    assert (found.episode == 0).sum() == pytest.approx((length - in_hold) / 1.5, abs=3)
    gap = int(reader.columns(2, ["gap"])["gap"].sum())
    assert gap > 10
    assert (found.episode == 2).sum() == pytest.approx((reader.rows[2]["length"] - gap) / 1.5, abs=3)


def test_rows_carry_the_columns_asked_for_in_their_order(made):
    order = ("gripper", "fr3_joint1")
    found = read_dataset(made, order, CAMERAS, TASK, CONFIG)
    reader = DatasetReader(made)
    assert found.states.shape[1] == found.chunks.shape[2] == 2
    # A chunk's step i is what was commanded i steps later, though frames and steps have different periods.
    number = np.array([number_shown(rgb) for rgb in found.images["scene"][found.episode == 0]])
    at = number / 30
    last = start_of(reader, 0) + (reader.rows[0]["length"] - 1) / 30
    due = np.minimum(at[:, None] + np.arange(CONFIG.horizon) * CONFIG.step_dt, last)
    wanted = joint_values(due)[..., [2, 0]] + 10.0
    assert found.chunks[found.episode == 0] == pytest.approx(wanted, abs=0.02)
    assert found.states[found.episode == 0] == pytest.approx(joint_values(at)[:, [2, 0]], abs=0.02)


def test_pictures_pass_the_function_that_serving_uses(made):
    """Training has no preparation of its own: what it gets is what `prepare_image` makes of the stored frame."""
    assert training.prepare_image is observation.prepare_image
    config = CONFIG.model_copy(update={"image_size": 20})
    found = read_dataset(made, COLUMNS, ("scene",), TASK, config)
    stored = list(DatasetReader(made).pictures(2, "scene"))
    prepared = [observation.prepare_image(rgb, 20).tobytes() for rgb in stored]
    assert all(rgb.tobytes() in prepared for rgb in found.images["scene"][found.episode == 2])


def test_corrections_count_more_and_what_led_to_them_less():
    times = np.arange(60) / 30
    intervention = (times >= 1.0) & (times < 1.5)
    config = CONFIG.model_copy(update={"intervention_weight": 3.0, "pre_intervention": 0.5})
    weights = row_weights(intervention, times, config)
    assert weights[intervention].tolist() == [3.0] * 15
    assert weights[(times >= 0.5) & (times < 1.0)].tolist() == [0.0] * 15
    assert weights[times < 0.49].tolist() == [1.0] * 15
    assert weights[times >= 1.5].tolist() == [1.0] * 15
    assert (row_weights(np.ones(60, bool), times, config) == 1).all()  # a demonstration


def test_weights_reach_the_rows(made):
    config = CONFIG.model_copy(update={"intervention_weight": 4.0})
    found = read_dataset(made, COLUMNS, CAMERAS, TASK, config)
    assert set(found.weights[found.episode == 0]) == {1.0, 4.0}
    assert set(found.weights[found.episode == 2]) == {1.0}


def test_deleted_episodes_are_passed_over(root):
    before = cache_key(root, CONFIG)
    mark(root, [0])
    assert DatasetReader(root).episodes == [1, 2]
    assert set(read_dataset(root, COLUMNS, CAMERAS, TASK, CONFIG).episode) == {2}
    assert cache_key(root, CONFIG) != before


def test_what_does_not_fit_is_named(root):
    with pytest.raises(VigilError, match="has no elbow; it has fr3_joint1"):
        read_dataset(root, ("elbow",), CAMERAS, TASK, CONFIG)
    with pytest.raises(VigilError, match="no pictures of ceiling; its cameras are scene, wrist"):
        read_dataset(root, COLUMNS, ("ceiling",), TASK, CONFIG)
    mark(root, [0, 2])
    with pytest.raises(VigilError, match="no rows to learn from"):
        read_dataset(root, COLUMNS, CAMERAS, TASK, CONFIG)
    with pytest.raises(VigilError, match="has no colour"):
        DatasetReader(root).columns(0, ["colour"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebase_version": "v2.1"}, "is a LeRobotDataset v2.1"),
        ({"total_episodes": 9}, "3 of the 9 episodes"),
    ],
)
def test_damage_and_other_versions_are_named(root, changes, said):
    (root / INFO).write_text(json.dumps({**json.loads((root / INFO).read_text()), **changes}))
    with pytest.raises(VigilError, match=said):
        DatasetReader(root)


def test_a_folder_without_data_set_is_named(tmp_path):
    with pytest.raises(VigilError, match="is no LeRobotDataset"):
        DatasetReader(tmp_path)
