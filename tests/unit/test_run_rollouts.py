"""From recorded messages to a roll-out."""

from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest

from vigil.errors import VigilError
from vigil.run.rollouts import make_rollout, nearest
from vigil.run.timeline import Recorded, Timeline

MS = 1_000_000
ABOUT = {
    "rig": "rig",
    "seed": 3,
    "perturbation": "none",
    "outcome": "success",
    "termination_reason": "task_success",
}


def at(ms):
    ns = ms * MS
    return Message(stamp=Message(sec=ns // 10**9, nanosec=ns % 10**9))


def sent(messages):
    return [Recorded(0, 0, m) for m in messages]


def control(ms, transition, authority, made):
    zero = at(0).stamp
    return Message(
        header=at(ms), transition=transition, authority_name=authority, event="", reason="", event_stamp=zero,
        transition_stamp=at(made).stamp, first_command_stamp=zero, first_step=[0.0], names=["j"],
    )  # fmt: skip


def timeline():
    arm = [control(0, 0, "HOLD", 0)] + [control(t, 1, "POLICY", 1000) for t in range(1000, 3000, 10)]
    task = Message(
        header=at(2600),
        success=True,
        failure=False,
        failure_reason="",
        perturbation="none",
        perturbation_active=False,
    )
    judged = [verdict(t, i) for i, t in enumerate((800, 1000, 1200))]
    return Timeline(sent(arm), sent(judged), sent([task]), ("ALARM",))


def verdict(ms, tick):
    return Message(
        header=at(ms), tick=tick, verdict_name="NOMINAL", score_names=["rnd"], score_kinds=[0],
        scores=[0.5], windowed=[0.6], thresholds=[2.0],
    )  # fmt: skip


def evidence(ms, tick):
    k, horizon, names = 3, 4, ["j", "gripper"]
    return Message(
        header=at(ms), tick=tick, bundle_hash="abc", sampler="ddim", sampler_steps=10, names=names, step_dt=0.05,
        embedding=np.full(5, tick, np.float32), k=k, horizon=horizon,
        samples=np.arange(k * horizon * 2, dtype=np.float32),
    )  # fmt: skip


def picture(ms, value):
    _, jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), (0, 0, value), np.uint8))  # BGR: red
    return Message(header=at(ms), data=jpeg)


def joint(ms, position):
    return Message(header=at(ms), name=["gripper", "j"], position=[0.0, position])


TICKS = [evidence(t, i) for i, t in enumerate((800, 1000, 1200, 2600, 2800))]
JOINTS = [joint(t, t / 1000) for t in range(0, 3000, 10)]


def build(**changes):
    given = {
        "evidence": sent(TICKS),
        "joints": sent(JOINTS),
        "frames": {"wrist": sent([picture(1000, 10), picture(1190, 200)])},
    } | changes
    return make_rollout(timeline(), columns=("j", "gripper"), image_size=16, about=ABOUT, **given)


def test_ticks_from_control_given_to_the_end():
    rollout = build()
    assert rollout.tick.tolist() == [1, 2, 3]
    assert rollout.stamps.tolist() == pytest.approx([0.0, 0.2, 1.6])
    assert rollout.samples.shape == (3, 3, 4, 2) and rollout.samples[0, 0, 1, 0] == 2.0
    assert rollout.authority.tolist() == [1, 1, 1]
    assert rollout.joint_positions[:, 0].tolist() == pytest.approx([1.0, 1.2, 2.6])
    assert rollout.episode.duration_s == pytest.approx(1.6)


def test_a_tick_without_a_verdict_is_stale_and_has_no_scores():
    rollout = build()
    assert rollout.windowed[:, 0].tolist()[:2] == [0.6, 0.6] and np.isnan(rollout.windowed[2, 0])
    assert rollout.verdict.tolist() == [0, 0, 6]


def test_pictures_are_the_nearest_in_time_and_red_comes_first():
    images = build().images["wrist"]
    assert images.shape == (3, 16, 16, 3)
    assert images[0, 0, 0, 0] < 30 and images[1, 0, 0, 0] > 180 and images[1, 0, 0, 2] < 30


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"evidence": []}, "no policy tick"),
        ({"joints": []}, "no joint states"),
        ({"joints": sent([Message(header=at(0), name=["gripper"], position=[0.0])])}, "lack j"),
        ({"frames": {"wrist": []}}, "no pictures of camera wrist"),
        (
            {"frames": {"wrist": sent([Message(header=at(0), data=np.zeros(9, np.uint8))])}},
            "cannot be decoded",
        ),
    ],
)
def test_what_a_recording_lacks_is_named(changes, said):
    with pytest.raises(VigilError, match=said):
        build(**changes)


def test_nearest():
    assert nearest(np.array([0, 10, 20]), np.array([-5, 4, 6, 25])).tolist() == [0, 0, 1, 2]
    assert nearest(np.array([7]), np.array([0, 100])).tolist() == [0, 0]
