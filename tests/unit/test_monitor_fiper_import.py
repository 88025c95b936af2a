"""Import of the published FIPER roll-outs: every form, what is refused, and the command."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from vigil.errors import VigilError
from vigil.monitor.fiper_import import find_pickles, import_fiper, import_fiper_command, parse_columns
from vigil.monitor.fiper_rollout import ImportOptions, convert
from vigil.record.rollout import find_rollouts, load_rollout

T, K, H, D, E = 5, 6, 8, 4, 7


def make_ticks(seed=0, robots=None, **changes):
    rng = np.random.default_rng(seed)
    ticks = []
    for i in range(T):
        actions = [rng.standard_normal((K, H, D)) for _ in range(robots or 1)]
        ticks.append(
            {
                "obs_embedding": rng.standard_normal(E).astype(np.float32),
                "action_pred": actions if robots else actions[0],
                "action": actions[0][0],
                "rgb": np.zeros((4, 4, 3), np.uint8),
                "agent_pos": None,
                "timestamp": 0.1 * i,
                "step": np.int64(i),
                **changes,
            }
        )
    return ticks


def write(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def read(path, subset="test", **options):
    return convert(path, "task", subset, ImportOptions(**options))


# ---------------------------------------------------------------- roll-outs


@pytest.mark.parametrize(
    "form", ["dictionary", "list with metadata", "list with metadata inside", "bare list"]
)
def test_every_published_form(form, tmp_path):
    ticks = make_ticks()
    metadata = {"metadata": True, "successful": np.bool_(False), "rollout_subtype": "eb", "task": "t"}
    content = {
        "dictionary": {"metadata": metadata, "rollout": ticks},
        "list with metadata": [metadata, *ticks],
        "list with metadata inside": [{"metadata": metadata}, *ticks],
        "bare list": ticks,
    }[form]
    name = "episode_f_0001.pkl" if form == "bare list" else "episode_1.pkl"
    rollout, subset, reading = read(write(tmp_path / name, content), executed=4)
    assert subset == "test"
    assert rollout.episode.outcome == "failure"
    assert rollout.episode.perturbation == "ood"
    assert (len(rollout), rollout.k, rollout.horizon) == (T, K, H)
    assert rollout.names == ("x", "y", "z")
    np.testing.assert_array_equal(rollout.embedding, [tick["obs_embedding"] for tick in ticks])
    np.testing.assert_allclose(rollout.samples, [tick["action_pred"][..., :3] for tick in ticks], rtol=1e-6)
    np.testing.assert_allclose(rollout.stamps, np.arange(T) * 0.4)
    assert rollout.step_dt == 0.1
    assert rollout.segments() == [slice(0, T)]
    assert str(reading) == "position 0,1,2 (assumed)"


@pytest.mark.parametrize(
    ("layout", "source"),
    [("{}/rollouts/{}", "."), ("{}/rollouts/{}", "sorting"), ("{}/rollouts/{}", "sorting/rollouts"), ("{}/{}", "sorting")],
)  # fmt: skip
def test_a_data_set_comes_back_as_roll_outs(layout, source, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    files = [("calibration", "episode_s_0000", "ca"), ("calibration", "episode_f_0001", "ca"),
             ("test", "episode_s_0000", "id"), ("test", "episode_f_0001", "mt"), ("calibration_unused", "x_s_1", "ca")]  # fmt: skip
    for seed, (subset, stem, subtype) in enumerate(files):
        content = {"metadata": {"rollout_subtype": subtype}, "rollout": make_ticks(seed)}
        write(data / layout.format("sorting", subset) / f"{stem}.pkl", content)
    calls = []
    summary = import_fiper(data / source, out, ImportOptions(), lambda *call: calls.append(call))
    assert summary.total == 4
    assert summary.counts["sorting", "calibration", "failure"] == 1
    assert summary.counts["sorting", "test", "success"] == 1
    assert summary.out_of_distribution == {("sorting", "calibration"): 0, ("sorting", "test"): 1}
    assert summary.readings == {"sorting": {"position 0,1,2 (assumed)"}}
    assert [call[:2] for call in calls] == [(i, 4) for i in range(4)]
    assert len(find_rollouts(out)) == 4
    rollout = load_rollout(out / "sorting" / "test" / "episode_f_0001")
    episode = rollout.episode.model_dump(mode="json")
    assert (episode["rig"], episode["task"], episode["outcome"]) == ("fiper", "sorting", "failure")
    assert (episode["perturbation"], episode["ood"], episode["subtype"]) == ("ood", True, "mt")
    assert episode["duration_s"] == pytest.approx(T * 0.8)
    arm = {"chain": "position", "columns": ["x", "y", "z"], "tool_offset": [0.0, 0.0, 0.0]}
    assert episode["end_effectors"] == [arm]
    assert rollout.joint_positions.shape == (T, 0)


def test_any_folder_of_pickles(tmp_path):
    write(tmp_path / "mine" / "a.pkl", {"metadata": {"successful": True, "rollout_type": "calibration"},
                                        "rollout": make_ticks()})  # fmt: skip
    write(tmp_path / "mine" / "b.pkl", {"metadata": {"successful": 0}, "rollout": make_ticks()})
    summary = import_fiper(tmp_path / "mine", tmp_path / "out", ImportOptions(task="push"))
    assert summary.counts == {("push", "calibration", "success"): 1, ("push", "test", "failure"): 1}
    calibration = load_rollout(tmp_path / "out" / "push" / "calibration" / "a")
    assert calibration.episode.perturbation == "none"
    write(tmp_path / "w" / "rollouts" / "test" / "c_s_1.pkl", make_ticks())
    assert [entry[1:] for entry in find_pickles(tmp_path / "w" / "rollouts" / "test")] == [("w", "test")]


def test_several_robots(tmp_path):
    rng = np.random.default_rng(1)
    ticks = make_ticks(robots=2)
    for tick in ticks:
        tick["obs_embedding"] = [rng.standard_normal((1, E)), rng.standard_normal((1, E))]
    rollout, _, _ = read(write(tmp_path / "a_s_.pkl", ticks))
    assert rollout.names == ("x0", "y0", "z0", "x1", "y1", "z1")
    for robot in (0, 1):
        expected = [tick["action_pred"][robot][..., :3] for tick in ticks]
        np.testing.assert_allclose(rollout.samples[..., 3 * robot : 3 * robot + 3], expected, rtol=1e-6)
    assert rollout.embedding.shape == (T, 2 * E)
    arms = rollout.episode.model_dump(mode="json")["end_effectors"]
    assert [arm["columns"] for arm in arms] == [["x0", "y0", "z0"], ["x1", "y1", "z1"]]
    alone, _, _ = read(write(tmp_path / "b_s_.pkl", make_ticks(robots=1)))  # a list of one
    assert alone.names == ("x", "y", "z")


def test_an_array_of_objects_holds_one_array_per_robot(tmp_path):
    ticks = make_ticks(robots=2)
    for tick in ticks:
        arrays = np.empty(2, dtype=object)
        arrays[:] = tick["action_pred"]
        tick["action_pred"] = arrays
    rollout, _, _ = read(write(tmp_path / "a_s_.pkl", ticks))
    assert rollout.samples.shape == (T, K, H, 6)


@pytest.mark.parametrize("state", ["agent_pos", "state"])
def test_velocities_are_integrated_from_the_state(state, tmp_path):
    ticks = make_ticks()
    for i, tick in enumerate(ticks):
        tick[state] = np.array([i, 10.0 * i, -i, 99.0])
    path = write(tmp_path / "a_s_.pkl", ticks)
    rollout, _, reading = read(path, velocity=(2, 0, 1), dt=0.05)
    assert str(reading) == "velocity 2,0,1 (as told)"
    at = np.array([3.0, 30.0, -3.0])
    for step in range(H):
        at = at + 0.05 * ticks[3]["action_pred"][2, step, [2, 0, 1]]
        np.testing.assert_allclose(rollout.samples[3, 2, step], at, rtol=1e-5)
    from_zero, _, _ = read(path, velocity=(2, 0, 1), dt=0.05, start=None)
    shift = rollout.samples - from_zero.samples
    np.testing.assert_allclose(shift[3], np.broadcast_to([3.0, 30.0, -3.0], shift[3].shape), atol=1e-4)


def test_velocities_without_a_state_start_at_zero_with_the_step_time(tmp_path):
    ticks = make_ticks()
    rollout, _, _ = read(write(tmp_path / "a_s_.pkl", ticks), velocity=(0, 1), step_dt=0.2)
    assert rollout.names == ("x", "y")
    np.testing.assert_allclose(rollout.samples[0, :, 0], 0.2 * ticks[0]["action_pred"][:, 0, :2], rtol=1e-5)


def test_the_metadata_say_which_columns_and_how_many_steps(tmp_path):
    mappings = {"pos": None, "vel": [1, 2, 3], "gripper": None}
    metadata = {"successful": True, "action_mappings": mappings, "action_execution_horizon": np.int64(4)}
    path = write(tmp_path / "a.pkl", {"metadata": metadata, "rollout": make_ticks()})
    rollout, _, reading = read(path)
    assert str(reading) == "velocity 1,2,3 (by the metadata)"
    assert rollout.stamps[1] == pytest.approx(0.4)
    rollout, _, reading = read(path, position=(3,), executed=2)
    assert str(reading) == "position 3 (as told)"
    assert rollout.stamps[1] == pytest.approx(0.2)
    assert rollout.names == ("x",)


def test_two_columns_are_a_plane(tmp_path):
    ticks = make_ticks()
    for tick in ticks:
        tick["action_pred"] = tick["action_pred"][..., :2]
    rollout, _, _ = read(write(tmp_path / "a_s_.pkl", ticks))
    assert rollout.names == ("x", "y")


@pytest.mark.parametrize(
    ("subtype", "subset", "ood"),
    [("id", "test", False), ("na", "test", False), ("ca", "calibration", False), ("hh", "test", True),
     ("rb", "calibration", True), (None, "calibration", False), (None, "test", True)],
)  # fmt: skip
def test_what_is_out_of_distribution(subtype, subset, ood, tmp_path):
    content = {"metadata": {"successful": True, "rollout_subtype": subtype}, "rollout": make_ticks()}
    rollout, _, _ = read(write(tmp_path / "a.pkl", content), subset)
    assert rollout.episode.perturbation == ("ood" if ood else "none")


# ---------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("episode_s_0001", "success"), ("Success_3", "success"), ("eps_f_2", "failure"), ("rollout_failure", "failure"),
     ("episode_s", "success"), ("a_f", "failure")],
)  # fmt: skip
def test_the_outcome_by_the_name_of_the_file(name, outcome, tmp_path):
    rollout, _, _ = read(write(tmp_path / f"{name}.pkl", make_ticks()))
    assert rollout.episode.outcome == outcome


@pytest.mark.parametrize("name", ["episode_7", "unsuccessful_1", "episode_s_failure"])
def test_an_unknown_outcome_is_no_success(name, tmp_path):
    path = write(tmp_path / f"{name}.pkl", make_ticks())
    with pytest.raises(
        VigilError, match=rf"{name}\.pkl: neither 'successful'.*put success or failure into the"
    ):
        read(path)


@pytest.mark.parametrize("given", ["yes", 2, np.array([True, False]), [True], float("nan")])
def test_an_outcome_that_is_neither_true_nor_false(given, tmp_path):
    path = write(tmp_path / "a_s_.pkl", {"metadata": {"successful": given}, "rollout": make_ticks()})
    with pytest.raises(VigilError, match="successful of the metadata"):
        read(path)


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_embedding": None}, r"tick 0 has no obs_embedding, only action, action_pred"),
        ({"action_pred": None}, r"tick 0 has no action_pred"),
        ({"obs_embedding": np.zeros((2, 3))}, r"obs_embedding of tick 0 has shape \[2, 3\], must be \[E\]"),
        ({"obs_embedding": np.zeros(0)}, r"shape \[0\]"),
        ({"obs_embedding": np.full(E, np.nan)}, r"obs_embedding of tick 0 has 7 non-finite values"),
        ({"obs_embedding": np.full(E, 1e60)}, r"non-finite"),
        ({"obs_embedding": np.array(["a"])}, r"obs_embedding of tick 0 cannot be read: it holds no numbers"),
        ({"obs_embedding": np.array([None, "x"])}, r"obs_embedding of tick 0 cannot be read"),
        ({"obs_embedding": {"a": 1}}, r"a dict is no array"),
        ({"obs_embedding": []}, r"a list is no array"),
        ({"action_pred": np.zeros((H, D))}, r"has shape \[8, 4\], must be \[samples, steps, columns\]"),
        ({"action_pred": np.zeros((0, H, D))}, r"has shape \[0, 8, 4\]"),
        ({"action_pred": np.full((K, H, D), np.inf)}, r"192 non-finite"),
        ({"action_pred": [np.zeros((K, H, 3)), np.zeros((K, H, 2))]}, r"\[6, 8, 2\] and \[6, 8, 3\]"),
        ({"action_pred": [[[0.0]]]}, r"action_pred of tick 0 cannot be read"),
    ],
)
def test_a_tick_that_cannot_be_used_is_named(changes, message, tmp_path):
    path = write(tmp_path / "a_s_.pkl", make_ticks(**changes))
    with pytest.raises(VigilError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_random_damage_never_raises_anything_else(tmp_path):
    path = write(tmp_path / "a_s_1.pkl", make_ticks())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read(path)
        except VigilError as error:
            assert str(path) in str(error)


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_hostile_roll_out_is_refused_and_nothing_is_executed(tmp_path):
    marker = tmp_path / "marker"
    ticks = make_ticks(rgb=Command(f"touch {marker}"))
    path = write(tmp_path / "in" / "a_s_.pkl", ticks)
    with pytest.raises(
        VigilError, match=r"a_s_\.pkl is refused: it calls for .*system.*Nothing was executed"
    ):
        import_fiper(tmp_path / "in", tmp_path / "out", ImportOptions())
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # elsewhere the file does what it says


def test_ticks_of_different_shapes_are_named(tmp_path):
    ticks = make_ticks()
    ticks[3]["action_pred"] = ticks[3]["action_pred"][:2]
    with pytest.raises(
        VigilError, match=r"action_pred of tick 3 has shape \[2, 8, 1, 4\], of tick 0 \[6, 8, 1, 4\]"
    ):
        read(write(tmp_path / "a_s_.pkl", ticks))


@pytest.mark.parametrize(
    "content", [[], {}, 3, {"rollout": []}, {"rollout": [1]}, [{"metadata": True}], {"rollout": {"a": 1}}]
)
def test_a_file_without_a_roll_out(content, tmp_path):
    with pytest.raises(VigilError, match=r"holds no roll-out: must be a list"):
        read(write(tmp_path / "a_s_.pkl", content))


def test_metadata_must_be_a_dictionary(tmp_path):
    with pytest.raises(VigilError, match="metadata is a list"):
        read(write(tmp_path / "a_s_.pkl", {"metadata": [1], "rollout": make_ticks()}))


def test_columns_that_do_not_exist(tmp_path):
    path = write(tmp_path / "a_s_.pkl", make_ticks())
    with pytest.raises(VigilError, match=r"4 columns, 0 to 3; position 1,4 \(as told\) is not among them"):
        read(path, position=(1, 4))


def test_states_that_do_not_fit(tmp_path):
    ticks = make_ticks(agent_pos=np.zeros(2))
    with pytest.raises(VigilError, match=r"state of tick 0 has 2 columns.*--start none"):
        read(write(tmp_path / "a_s_.pkl", ticks), velocity=(0, 1, 2))
    ticks = make_ticks(agent_pos=[0.0, 0.0, 0.0])  # bare numbers are one robot's
    ticks[2]["agent_pos"] = None
    with pytest.raises(VigilError, match="state of tick 2"):
        read(write(tmp_path / "b_s_.pkl", ticks), velocity=(0, 1, 2))
    ticks = make_ticks(robots=2, agent_pos=np.zeros(3))
    with pytest.raises(VigilError, match="tick 0 has a state for 1 robots"):
        read(write(tmp_path / "c_s_.pkl", ticks), velocity=(0, 1, 2))


def test_no_pickles(tmp_path):
    with pytest.raises(VigilError, match=r"no roll-outs in .*TASK/rollouts/calibration"):
        import_fiper(tmp_path, tmp_path / "out", ImportOptions())


def test_no_name_leaves_the_output_folder(tmp_path):
    write(tmp_path / "in" / "...pkl", make_ticks())
    with pytest.raises(VigilError, match=r"'\.\.' is no name"):
        import_fiper(tmp_path / "in", tmp_path / "out", ImportOptions())
    with pytest.raises(ValueError, match="pattern"):
        ImportOptions(task="../x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": (0,), "velocity": (1,)}, "alternatives"),
        ({"position": (0,), "dt": 0.1}, "dt is for velocities"),
        ({"position": (0, 0)}, "name one twice"),
        ({"position": (0, 1, 2, 3)}, "at most 3"),
        ({"step_dt": 0}, "greater than 0"),
        ({"executed": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(ValueError, match=message):
        ImportOptions(**options)


# ---------------------------------------------------------------- command


def run(*args):
    app = typer.Typer()
    app.command()(import_fiper_command)
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def test_the_command_prints_what_it_wrote(tmp_path):
    for subset in ("calibration", "test"):
        write(tmp_path / "push_t" / "rollouts" / subset / "episode_s_1.pkl", make_ticks())
    result = run(tmp_path, "--out", tmp_path / "out", "--velocity", "0,1", "--dt", "0.1", "--start", "none")
    assert result.exit_code == 0, result.output
    assert "2 roll-outs written" in result.output
    assert "velocity 0,1 (as told)" in result.output
    assert len(find_rollouts(tmp_path / "out")) == 2


def test_the_command_names_wrong_options(tmp_path):
    result = run(tmp_path, "--out", tmp_path, "--position", "a,b")
    assert isinstance(result.exception, VigilError)
    assert "--position a,b: give one to three column numbers" in str(result.exception)
    result = run(tmp_path, "--out", tmp_path, "--step-dt", "-1")
    assert "--step-dt: " in str(result.exception)
    assert parse_columns("", "--position") is None
    assert parse_columns("0,12", "--position") == (0, 12)
