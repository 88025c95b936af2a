"""Held-out demonstrations read without torch, and what chunks are compared with them."""

import os
import subprocess
import sys

import numpy as np
import pytest

from support.recordings import Script, joint_values, record, silent
from support.sampler_bundle import write_sampler_bundle
from support.tiny_bundle import COLUMNS, HORIZON, NOISE_GAIN, SIZE, write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.runtime import PolicyRuntime
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.resample import Grid
from vigil.sweep.actions import Drawing, chunk_errors, inference_period, observation, periods, summarise
from vigil.sweep.held_out import HeldOut, data_identity, grid_rate, read_held_out

DEMONSTRATED = ((0.2, "HOLD"), (9, "OPERATOR"))
STD = 0.5  # of every column of the tiny bundle


def script(**changes):
    return Script(**{"seconds": 2.0, "authority": DEMONSTRATED, "columns": COLUMNS, **changes})


def held_out(seconds=2.0, period=0.05, drift=0.0, judged=None):
    """An arm that stands still, and commands that drift away from where it stands, ``drift`` [rad/s]."""
    times = np.arange(0, seconds, period)
    command_times = np.arange(0, seconds + 1.0, 0.01)
    count = len(times)
    return HeldOut(
        "made up",
        period,
        {name: np.zeros((count, SIZE, SIZE, 3), np.uint8) for name in ("wrist", "scene")},
        np.zeros((count, 8), np.float32),
        np.ones(count, bool) if judged is None else judged(times),
        times,
        command_times,
        np.repeat(drift * command_times[:, None], 8, 1),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "several"
    return write_sampler_bundle(folder, {"exact": 0.0, "off": 0.1}, emitted=2, gain=0.0)


def runtime(bundle, sampler):
    return PolicyRuntime(load_bundle(bundle, sampler))


def drawing(**changes):
    return Drawing(**{"period": 0.2, "samples": 1, "selection": "first", **changes})


def test_an_error_is_in_standard_deviations_of_the_columns(bundle):
    errors = chunk_errors(runtime(bundle, "off"), held_out(), drawing(), 0)
    assert errors == pytest.approx(np.full((10, 2), 0.1 / STD), abs=1e-6), "2 s, every 0.2 s"
    assert chunk_errors(runtime(bundle, "exact"), held_out(), drawing(), 0) == pytest.approx(0.0, abs=1e-6)


def test_only_steps_due_before_the_next_chunk_count_as_executed(bundle):
    executed, whole = chunk_errors(runtime(bundle, "exact"), held_out(drift=1.0), drawing(), 0)[3]
    # The arm is at 0, the commands are drift * (t + step): RMS over 4 and over 16 steps of 0.05 s.
    ahead = lambda steps: np.sqrt(np.mean((0.6 + 0.05 * np.arange(steps)) ** 2)) / STD  # noqa: E731
    assert (executed, whole) == (pytest.approx(ahead(4)), pytest.approx(ahead(HORIZON)))


def test_only_what_somebody_demonstrates_is_judged(bundle):
    episode = held_out(judged=lambda times: times > 0.99)
    assert len(chunk_errors(runtime(bundle, "exact"), episode, drawing(), 0)) == 5


def test_a_streaming_sampler_is_called_as_often_as_it_has_to_be(bundle, monkeypatch):
    streaming = runtime(bundle, "stream")
    spec, sampler = streaming.bundle.spec, streaming.sampler
    assert inference_period(sampler, spec, 0.2) == pytest.approx(0.1)
    buffers = []
    stream = streaming.stream
    monkeypatch.setattr(streaming, "stream", lambda e, k, r, b: buffers.append(b) or stream(e, k, r, b))
    assert len(chunk_errors(streaming, held_out(), drawing(), 0)) == 20
    assert buffers[0] is None and all(b.shape == (1, HORIZON, 8) for b in buffers[1:])


def test_noise_depends_on_seed_and_episode_alone(tmp_path):
    noisy = PolicyRuntime(load_bundle(write_tiny_bundle(tmp_path / "noisy")))
    first = chunk_errors(noisy, held_out(), drawing(), 3)
    assert np.array_equal(first, chunk_errors(noisy, held_out(), drawing(), 3))
    assert not np.array_equal(first, chunk_errors(noisy, held_out(), drawing(), 4))
    assert first[:, 1].mean() == pytest.approx(NOISE_GAIN / STD, rel=0.2)


def test_histories_repeat_the_first_observation_and_end_with_the_newest(bundle):
    spec = load_bundle(bundle).spec.model_copy(update={"observation_steps": 3, "observation_dt": 0.1})
    episode = held_out()
    states = np.arange(40, dtype=np.float32)[:, None].repeat(8, 1)
    episode = HeldOut(**{**vars(episode), "states": states})
    assert observation(spec, episode, 1)[1][:, 0].tolist() == [0, 0, 1]
    images, rows = observation(spec, episode, 20)
    assert rows[:, 0].tolist() == [16, 18, 20] and images["wrist"].shape == (3, SIZE, SIZE, 3)
    assert periods(spec, [spec.samplers["exact"], spec.samplers["stream"]], 0.2) == pytest.approx([0.1, 0.2])


def test_the_grid_has_every_instant_that_is_asked_for():
    assert grid_rate([0.2]) == 5 and grid_rate([0.2, 0.05]) == 20 and grid_rate([0.3, 0.2]) == 10
    assert grid_rate([1 / 30]) == 1000


def test_intervals_are_of_episodes_not_of_observations():
    rng = np.random.default_rng(0)
    alike = {str(i): np.full((50, 2), 0.1) for i in range(8)}
    assert (summarise(alike).low, summarise(alike).high) == (pytest.approx(0.1), pytest.approx(0.1))
    apart = {str(i): np.full((50, 2), rng.uniform(0, 1)) for i in range(8)}
    found = summarise(apart)
    assert found.low < found.executed - 0.1 and found.high > found.executed + 0.1
    assert (found.observations, found.episodes) == (400, 8)
    with pytest.raises(VigilError, match="no observation to judge"):
        summarise({"a": np.empty((0, 2))})


# Where they come from --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    record(folder / "a.mcap", script())
    record(folder / "b.mcap", script(faults={"joints": silent(0.9, 1.5)}))
    record(folder / "failed.mcap", script(outcome="failure", reason="time_limit"))
    record(folder / "policy.mcap", script(authority=((0.2, "HOLD"), (9, "POLICY"))))
    return folder


def test_recordings_are_read_at_the_policys_rate(recorded, bundle):
    spec, told = load_bundle(bundle).spec, []
    first, second = read_held_out(recorded, spec, 5, 10, told.append)
    assert len(told) == 2 and "failure" in told[0] and "policy: nobody demonstrates" in told[1]
    assert np.diff(first.times) == pytest.approx(0.2) and first.period == 0.2
    at = first.times - first.command_times[0]
    assert first.states == pytest.approx(joint_values(at, 8), abs=0.02)
    assert first.images["wrist"].shape == (len(first.times), SIZE, SIZE, 3)
    due = at[2] + 0.05 * np.arange(HORIZON)
    inside = due < 1.9
    assert first.targets(2, HORIZON, 0.05)[inside] == pytest.approx(
        10 + joint_values(due, 8)[inside], abs=0.02
    )
    assert first.judged.all() and not second.judged.all(), "what lies in a gap is not judged"
    assert len(list(read_held_out(recorded, spec, 5, 1))) == 1


def test_columns_go_by_name(recorded, tmp_path):
    reversed_ = write_tiny_bundle(tmp_path / "reversed", names=tuple(reversed(COLUMNS)))
    episode = next(read_held_out(recorded, load_bundle(reversed_).spec, 5, 1))
    straight = next(read_held_out(recorded, load_bundle(write_tiny_bundle(tmp_path / "s")).spec, 5, 1))
    assert np.array_equal(episode.states[:, ::-1], straight.states)
    assert np.array_equal(episode.commands[:, ::-1], straight.commands)


def test_a_data_set_gives_what_its_recordings_give(recorded, bundle, tmp_path):
    export(sorted(recorded.glob("*.mcap")), tmp_path / "set", Wanted(Grid(30)), Encoding(), ("rnd", "ace"))
    spec, told = load_bundle(bundle).spec, []
    ours = list(read_held_out(tmp_path / "set", spec, 5, 10, told.append))
    theirs = list(read_held_out(recorded, spec, 5, 10))
    assert len(ours) == len(theirs) == 2 and len(told) == 2
    for mine, other in zip(ours, theirs, strict=True):
        shared = min(len(mine.times), len(other.times))
        judged = mine.judged[:shared] & other.judged[:shared]
        assert judged.sum() >= shared - 4, "all but the gap"
        assert mine.states[:shared][judged] == pytest.approx(other.states[:shared][judged], abs=0.05)
        assert mine.targets(1, HORIZON, 0.05) == pytest.approx(other.targets(1, HORIZON, 0.05), abs=0.05)
        pictures = mine.images["scene"][:shared].astype(float) - other.images["scene"][:shared]
        assert np.abs(pictures).mean() < 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cameras": ("wrist", "left")}, "no pictures of left"),
        ({"names": (*COLUMNS[:7], "hand")}, "has no hand, which the policy needs"),
    ],
)
def test_data_of_another_robot_are_refused(recorded, tmp_path, change, reason):
    other = write_tiny_bundle(tmp_path / "other", **change)
    with pytest.raises(VigilError, match=reason):
        list(read_held_out(recorded, load_bundle(other).spec, 5, 10))


def test_a_folder_without_demonstrations_is_refused(tmp_path, bundle):
    spec = load_bundle(bundle).spec
    with pytest.raises(VigilError, match="does not exist"):
        list(read_held_out(tmp_path / "nothing", spec, 5, 10))
    record(tmp_path / "policy.mcap", script(authority=((0.2, "HOLD"), (9, "POLICY"))))
    with pytest.raises(VigilError, match="holds no demonstration"):
        list(read_held_out(tmp_path, spec, 5, 10))


def test_more_episodes_are_other_data(tmp_path):
    record(tmp_path / "a.mcap", script(seconds=0.6))
    before = data_identity(tmp_path)
    assert data_identity(tmp_path) == before
    record(tmp_path / "b.mcap", script(seconds=0.6))
    assert data_identity(tmp_path) != before


def test_neither_torch_nor_ros_is_needed():
    code = (
        "import sys, vigil.sweep.actions, vigil.sweep.commands, vigil.bench.commands\n"
        "print(sorted({'torch', 'rclpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
