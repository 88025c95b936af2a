"""From recorded samples to frames: the rate is true, and what was missing is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.recordings import COLUMNS, SECOND, START, Script, joint_values, record, set_back, silent
from vigil.errors import VigilError
from vigil.record.dataset.frames import Pictures, make_table
from vigil.record.dataset.prepare import Wanted, find_recordings, prepare
from vigil.record.dataset.resample import Grid, resample
from vigil.record.dataset.source import read_source
from vigil.record.dataset.streams import make_stream
from vigil.record.episode import JointFacts

SCORES = ("ace", "kernel", "rnd")


def one(path, wanted: Wanted):
    episodes, ready = prepare(path, wanted, SCORES)
    assert len(episodes) == 1
    assert ready == 0
    return episodes[0]


# Streams ------------------------------------------------------------------------------------------------------


def test_stamps_in_order_are_left_as_they_are():
    stream = make_stream("s", [1, 5, 9])
    assert stream.stamps.tolist() == [1, 5, 9]
    assert stream.index.tolist() == [0, 1, 2]
    assert stream.steps == ()
    assert stream.period == 4


def test_a_clock_that_is_set_back_leaves_out_what_it_stamps_twice():
    stream = make_stream("s", [10, 20, 30, 40, 21, 31, 41, 51])
    assert stream.stamps.tolist() == [10, 20, 30, 40, 41, 51]
    assert stream.index.tolist() == [0, 1, 2, 3, 6, 7]
    (step,) = stream.steps
    assert (step.kind, step.start, step.end, step.discarded, step.back_s) == ("clock_step", 40, 41, 2, 19e-9)


def test_a_clock_that_is_set_far_back_ends_the_stream_there():
    stream = make_stream("s", [1000, 1010, 1020, 10, 20, 30])
    assert stream.stamps.tolist() == [1000, 1010, 1020]
    (step,) = stream.steps
    assert (step.discarded, step.start, step.end) == (3, 1020, 1020)
    (gap,) = stream.gaps(1000, 1100, 10)
    assert (gap.kind, gap.start, gap.end, gap.discarded) == ("clock_step", 1020, 1100, 3)


def test_one_stamp_from_the_future_is_left_out_alone():
    stream = make_stream("s", [10, 20, 9_000_000, 30, 40])
    assert stream.stamps.tolist() == [10, 20, 30, 40]
    assert [(s.kind, s.discarded) for s in stream.steps] == [("odd_stamp", 1)]


def test_the_same_instant_twice_is_no_clock_step():
    stream = make_stream("s", [10, 10, 20, 20, 30])
    assert stream.stamps.tolist() == [10, 20, 30]
    assert stream.steps == ()


@given(st.lists(st.integers(0, 10**6), max_size=60))
def test_stamps_always_rise_and_every_sample_is_accounted_for(stamps):
    stream = make_stream("s", stamps)
    assert (np.diff(stream.stamps) > 0).all()
    assert [stamps[i] for i in stream.index] == stream.stamps.tolist()
    twice = len(stamps) - len(stream) - sum(step.discarded for step in stream.steps)
    assert 0 <= twice <= len(stamps) - len(set(stamps))


def test_a_lost_sample_is_no_gap_and_three_are():
    stamps = [t for t in range(0, 1000, 10) if t != 500 and t not in (700, 710, 720)]
    gaps = make_stream("s", stamps).gaps(0, 990, 10)
    assert [(g.kind, g.start, g.end) for g in gaps] == [("silent", 690, 730)]


# The grid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [29.9, 30.0, 30.1, 24.0, 60.0, 15.0])
def test_the_declared_rate_is_the_measured_one(tmp_path, rate):
    """Whatever the cameras deliver: within 0.1 %, by the stamps of the samples that the frames hold."""
    rng = np.random.default_rng(0)

    def jitter(t):
        return np.maximum(t + rng.integers(-3_000_000, 3_000_000, len(t)), 0)

    script = Script(
        seconds=8.0,
        cameras={"scene": rate, "wrist": rate},
        phase={"wrist": 0.007},
        faults={"scene": jitter, "wrist": jitter},
    )
    episode = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30)))
    assert episode.part.quality.measured_fps == pytest.approx(30.0, rel=1e-3)
    assert (np.diff(episode.part.times) > 0).all()
    assert np.diff(episode.part.times) == pytest.approx(SECOND / 30, abs=1)
    quality = episode.part.quality
    for camera in ("scene", "wrist"):
        places = episode.part.pick[f"camera {camera}"]
        assert quality.repeated[camera] == int((np.diff(places) == 0).sum())
        assert quality.rates[camera] == pytest.approx(rate, rel=0.02)
        if rate == 60.0:
            assert quality.skipped[camera] > 200
        if rate == 15.0:
            assert quality.repeated[camera] > 100
    told = any("pictures repeat" in label for label in episode.facts["x_labels"])
    assert told == (rate < 27)


def test_every_frame_gets_the_sample_nearest_to_its_instant(tmp_path):
    path = record(tmp_path / "e.mcap", Script(phase={"scene": 0.011}))
    episode = one(path, Wanted(Grid(30)))
    seconds = (episode.part.times - START) / SECOND
    assert episode.table.state == pytest.approx(joint_values(seconds), abs=0.02)
    assert episode.table.action == pytest.approx(joint_values(seconds) + 10.0, abs=0.02)
    stream = episode.source.cameras["wrist"]
    chosen = stream.stamps[episode.part.pick["camera wrist"]]
    best = np.abs(stream.stamps[None] - episode.part.times[:, None]).min(1)
    assert np.abs(chosen - episode.part.times).tolist() == best.tolist()


def test_columns_are_those_of_the_arm_by_name(tmp_path):
    source = read_source(record(tmp_path / "e.mcap"))
    assert source.columns == COLUMNS
    (joints,) = source.joints
    assert joints.columns == COLUMNS
    assert joints.positions[0].tolist() == joint_values(0.0).tolist()


def test_columns_are_read_as_the_recorder_noted_them(tmp_path):
    """With the arm's prefix, and the gripper's width of what its joint says."""
    facts = JointFacts(
        topic="franka/joint_states",
        columns=("left_a", "left_b", "left_gripper"),
        joints=("a", "b", "finger"),
        scale=((1.0, 0.0), (1.0, 0.0), (-2.0, 0.1)),
    )
    script = Script(columns=facts.columns, joint_names=facts.joints, joints=(facts,))
    (joints,) = read_source(record(tmp_path / "e.mcap", script)).joints
    assert joints.columns == facts.columns
    raw = joint_values(np.arange(len(joints.positions)) / 100)
    assert joints.positions == pytest.approx(raw * [1, 1, -2] + [0, 0, 0.1])
    other = Script(columns=facts.columns, joint_names=("a", "b", "thumb"), joints=(facts,))
    with pytest.raises(VigilError, match=r"has no finger; it has extra, thumb, b, a"):
        read_source(record(tmp_path / "f.mcap", other))


def test_a_correction_of_the_policy_is_an_intervention(tmp_path):
    script = Script(authority=((1.0, "POLICY"), (2.0, "BLENDED"), (9.0, "POLICY")))
    table = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30))).table
    assert list(dict.fromkeys(table.control_source)) == ["policy", "blended"]
    assert table.intervention.tolist() == [s == "blended" for s in table.control_source]


def test_it_begins_when_somebody_gets_control_unless_all_is_wanted(tmp_path):
    path = record(tmp_path / "e.mcap", Script(authority=((1.0, "HOLD"), (2.0, "POLICY"), (9.0, "OPERATOR"))))
    episode = one(path, Wanted(Grid(30)))
    assert (episode.part.times[0] - START) / SECOND == pytest.approx(1.0, abs=0.04)
    whole = one(path, Wanted(Grid(30, whole=True)))
    assert whole.part.times[0] == START
    sources = whole.table.control_source
    assert [sources[0], sources[45], sources[-1]] == ["hold", "policy", "operator"]
    assert whole.table.intervention.tolist() == [s == "operator" for s in sources]
    assert whole.facts["x_interventions"] == 1
    assert whole.facts["x_intervention_frames"] == int(whole.table.intervention.sum()) > 25


def test_scores_stand_where_a_verdict_holds_and_nan_elsewhere(tmp_path):
    script = Script(authority=((9.0, "POLICY"),), alarm_at=1.5, faults={"monitor": silent(2.2, 9.0)})
    table = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30))).table
    assert table.verdict[0] == ""
    assert np.isnan(table.scores[0]).all()
    at = {"before": 15, "alarmed": 50}
    assert table.verdict[at["before"]] == "NOMINAL"
    assert table.verdict[at["alarmed"]] == "ALARM"
    assert [bool(table.alarm[i]) for i in at.values()] == [False, True]
    row = table.scores[at["before"]]
    assert np.isnan(row[SCORES.index("kernel")])
    assert row[SCORES.index("ace")] == pytest.approx(1.0)  # the second score of the script's first tick
    assert table.thresholds[at["before"], SCORES.index("rnd")] == 5.0
    # The last verdict speaks for half a second: what is older than that is no verdict.
    assert table.verdict[-1] == ""
    assert np.isnan(table.thresholds[-1]).all()
    assert not table.alarm[-1]


def test_an_alarm_from_before_the_policy_had_control_is_not_its_own(tmp_path):
    script = Script(authority=((1.5, "HOLD"), (9.0, "POLICY")), alarm_at=0.5)
    table = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30))).table
    assert table.verdict[0] == ""
    assert not table.alarm[0]
    assert table.alarm[10]
    whole = one(tmp_path / "e.mcap", Wanted(Grid(30, whole=True))).table
    assert whole.verdict[40] == "ALARM"


# Gaps ---------------------------------------------------------------------------------------------------------

DEAD = Script(seconds=5.0, faults={"wrist": silent(1.0, 4.0)})


def test_a_camera_that_dies_for_three_seconds_is_held_and_labelled(tmp_path):
    episode = one(record(tmp_path / "e.mcap", DEAD), Wanted(Grid(30, "hold")))
    part = episode.part
    seconds = (part.times - START) / SECOND
    assert part.gap[(seconds > 1.05) & (seconds < 3.95)].all()
    assert not part.gap[(seconds < 0.95) | (seconds > 4.05)].any()
    held = part.pick["camera wrist"][part.gap]
    assert len(set(held.tolist())) == 1
    stamp = episode.source.cameras["wrist"].stamps[held[0]]
    assert (stamp - START) / SECOND == pytest.approx(1.0, abs=0.034)
    assert part.skew[part.gap].max() == pytest.approx(3.0, abs=0.1)
    facts = episode.facts
    assert any("camera wrist: silent for 3.0" in label for label in facts["x_labels"])
    assert facts["x_gap_frames"] == int(part.gap.sum()) > 80
    (gap,) = json.loads(facts["x_gaps"])
    assert (gap["stream"], gap["kind"]) == ("camera wrist", "silent")
    assert gap["to_s"] - gap["from_s"] == pytest.approx(3.0, abs=0.07)
    assert facts["x_skew_max_s"] < 0.05  # of the frames that are sound
    assert json.loads(facts["x_cameras"])["wrist"]["repeated"] > 80


def test_nearest_takes_what_came_after_a_gap_too(tmp_path):
    part = one(record(tmp_path / "e.mcap", DEAD), Wanted(Grid(30, "nearest"))).part
    assert len(set(part.pick["camera wrist"][part.gap].tolist())) == 2
    assert part.skew.max() == pytest.approx(1.5, abs=0.05)


def test_drop_cuts_the_recording_at_a_gap(tmp_path):
    path = record(tmp_path / "e.mcap", DEAD)
    episodes, _ = prepare(path, Wanted(Grid(30, "drop")), SCORES)
    assert [(e.part.number, e.parts) for e in episodes] == [(0, 2), (1, 2)]
    for episode in episodes:
        assert not episode.part.gap.any()
        assert episode.part.quality.measured_fps == pytest.approx(30.0, rel=1e-3)
        assert any("cut at gaps" in label for label in episode.facts["x_labels"])
        assert any("camera wrist: silent" in label for label in episode.facts["x_labels"])
    seconds = [(e.part.times[[0, -1]] - START) / SECOND for e in episodes]
    assert seconds[0][1] == pytest.approx(1.0, abs=0.05)
    assert seconds[1] == pytest.approx([4.0, 5.0], abs=0.05)


def test_a_camera_that_dies_for_good_does_not_end_the_episode(tmp_path):
    script = Script(faults={"wrist": silent(1.0, 99.0)})
    episode = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30)))
    assert (episode.part.times[-1] - START) / SECOND == pytest.approx(3.0, abs=0.04)
    assert episode.part.gap[-1]
    assert any("camera wrist: nothing in the last 2.0" in label for label in episode.facts["x_labels"])


def test_a_hole_in_the_joint_states_is_labelled(tmp_path):
    script = Script(faults={"joints": silent(1.0, 1.5)})
    episode = one(record(tmp_path / "e.mcap", script), Wanted(Grid(30)))
    assert any("joint_states: silent for 0.5" in label for label in episode.facts["x_labels"])
    seconds = (episode.part.times - START) / SECOND
    assert episode.part.gap.tolist() == ((seconds > 1.01) & (seconds < 1.48)).tolist()


@pytest.mark.parametrize("back", [0.02, 0.5, 60.0])
def test_a_clock_set_back_is_labelled_and_time_still_rises(tmp_path, back):
    everything = dict.fromkeys(("scene", "wrist", "joints", "arm", "monitor"), set_back(1.5, back))
    # Times are counted from a start that leaves room for a minute back.
    faults = {name: (lambda t, f=f: f(t) + 100 * SECOND) for name, f in everything.items()}
    episode = one(record(tmp_path / "e.mcap", Script(faults=faults)), Wanted(Grid(30)))
    assert (np.diff(episode.part.times) > 0).all()
    for stream in episode.source.cameras.values():
        assert (np.diff(stream.stamps) > 0).all()
    label = next(label for label in episode.facts["x_labels"] if "arm state: clock set back" in label)
    assert f"by {back - 0.01:.2f}" in label  # less the period that had passed
    assert any(gap["kind"] == "clock_step" for gap in json.loads(episode.facts["x_gaps"]))
    assert episode.part.gap.any()
    left = (episode.part.times[-1] - episode.part.times[0]) / SECOND
    assert left == pytest.approx(3.0 - 0.2 - min(back, 1.5), abs=0.06)


# Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script(authority=((9.0, "HOLD"),)), "nobody ever had control"),
        (Script(faults={"wrist": silent(0, 99)}), "camera wrist delivered no picture"),
        (Script(faults={"arm": silent(0, 99)}), "no message of arm/state"),
        (Script(faults={"joints": silent(0, 99)}), "no joint state has the column fr3_joint1"),
        (Script(cameras={}), "has no pictures"),
        (Script(seconds=0.21), "is too short"),
    ],
)
def test_a_recording_that_makes_no_episode_says_why(tmp_path, script, said):
    with pytest.raises(VigilError, match=said):
        prepare(record(tmp_path / "e.mcap", script), Wanted(Grid(30)), SCORES)


def test_marked_moments_are_kept_in_the_time_of_the_episode(tmp_path):
    marks = ((0.1, "before control was given"), (1.5, "perturbation"))
    path = record(tmp_path / "e.mcap", Script(authority=((0.5, "HOLD"), (1e9, "POLICY")), marks=marks))
    (mark,) = json.loads(one(path, Wanted(Grid(30))).facts["x_marks"])
    assert mark["label"] == "perturbation" and mark["s"] == pytest.approx(1.0, abs=0.05)


def test_other_outcomes_are_left_out(tmp_path):
    path = record(tmp_path / "e.mcap", Script(outcome="failure"))
    with pytest.raises(VigilError, match="ended with outcome failure: only success"):
        prepare(path, Wanted(Grid(30), outcomes=("success",)), SCORES)
    assert one(path, Wanted(Grid(30), outcomes=("failure",))).facts["x_outcome"] == "failure"


def test_a_score_without_a_column_is_not_lost_in_silence(tmp_path):
    source = read_source(record(tmp_path / "e.mcap"))
    (part,) = resample(source, Pictures(source, None).cameras, Grid(30))
    with pytest.raises(VigilError, match="has the scores ace; the data set has columns for rnd"):
        make_table(source, part, ("rnd",))


def test_recordings_are_found_once(tmp_path):
    a, b = record(tmp_path / "a.mcap", Script(seconds=0.1)), tmp_path / "sub" / "b.mcap"
    record(b, Script(seconds=0.1))
    assert find_recordings([tmp_path, a]) == [a, b]
    with pytest.raises(VigilError, match="does not exist"):
        find_recordings([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(VigilError, match="no recordings"):
        find_recordings([tmp_path / "empty"])
