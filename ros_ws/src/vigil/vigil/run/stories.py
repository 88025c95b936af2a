"""The four stories of the demonstration: what is to happen in each, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vigil.record.pictures import decode_picture
from vigil.rig import RigConfig
from vigil.run.recording import Recording
from vigil.run.rollouts import nearest, stamps_of
from vigil.run.story import Frame, Story
from vigil.run.timeline import Timeline

FRAMES, FRAME_SIZE, FRAME_QUALITY = 8, (240, 180), 72  # per camera and episode; [px]
LARGEST_STEP = 0.01  # [rad] difference of the first command from the measured pose that counts as no jump


@dataclass(frozen=True)
class Script:
    """One story to be told."""

    name: str
    title: str
    perturbation: str
    seed: int
    expectation: str
    check: Callable[[Mapping[str, Any]], list[str]]


def policy_alone(facts: Mapping[str, Any]) -> list[str]:
    """What went wrong in an episode that the policy was to finish by itself, without alarm."""
    problems = []
    if facts["outcome"] != "success":
        problems.append(f"the policy was to finish by itself, but it ended in {_words(facts)}")
    if facts["alarms"]:
        problems.append(f"there was to be no alarm, but one came after {facts['first_alarm_s']:.1f} s")
    return problems


def saved_by_operator(facts: Mapping[str, Any]) -> list[str]:
    """What went wrong in an episode that was to be alarmed, held, taken over, finished and handed back."""
    problems = []
    if not facts["alarms"]:
        problems.append(f"an alarm was to come, but none did; it ended in {_words(facts)}")
        return problems
    if facts["alarm_to_hold_ms"] is None:
        problems.append("the alarm was to hold the arm, but it did not")
    step = facts["takeover_joint_step_rad"]
    if step is None:
        problems.append("an operator was to take over, but did not")
    elif step > LARGEST_STEP:
        problems.append(
            f"the takeover was to be without a jump (<= {LARGEST_STEP} rad), but it was {step:.4f} rad"
        )
    if facts["outcome"] != "intervened_success":
        problems.append(f"the operator was to finish the task, but it ended in {_words(facts)}")
    if not facts["handed_back"]:
        problems.append("the operator was to hand control back to the policy, but did not")
    return problems


SCRIPTS = (
    Script(
        "nominal",
        "A nominal episode",
        "none",
        30039,
        "Nothing is disturbed: the policy puts the cube on the tray, and the monitor stays quiet.",
        policy_alone,
    ),
    Script(
        "benign",
        "The light changes",
        "lighting",
        30011,
        "The scene looks different, but the policy copes: it finishes, and no alarm stops it.",
        policy_alone,
    ),
    Script(
        "object_moved",
        "The cube is moved away",
        "object_moved",
        3,
        "The cube is pulled away during the approach: alarm, hold; the operator takes over, finishes and hands back.",
        saved_by_operator,
    ),
    Script(
        "camera_knocked",
        "The cameras are knocked",
        "camera_knocked",
        4,
        "Both cameras lose their calibrated pose: alarm, hold; the operator takes over, finishes and hands back.",
        saved_by_operator,
    ),
)


def tell(script: Script, seed: int, recording: Path, rig: RigConfig, outcome: str, reason: str) -> Story:
    """The story of one recorded episode, measured from its recording.

    Raises:
        VigilError: the recording cannot be read, or nobody ever had control in it.
    """
    source = Recording(recording, rig)
    timeline = source.timeline()
    facts = measure(timeline, rig) | {
        "name": script.name,
        "perturbation": script.perturbation,
        "seed": seed,
        "outcome": outcome,
        "termination_reason": reason,
        "chunk_rate_hz": _rate(timeline, stamps_of(source.topic("policy/chunk"))),
        "recording": recording.name,
    }
    return Story(
        facts=facts,
        title=script.title,
        expectation=script.expectation,
        duration=timeline.length,
        spans=timeline.spans(),
        events=timeline.events(),
        scores=timeline.scores(),
        films={camera.name: _film(source, timeline, camera.name) for camera in rig.cameras},
        problems=tuple(script.check(facts)),
    )


def untold(script: Script, seed: int, why: str) -> Story:
    """The story of an episode that broke off because the system did."""
    measured = ("first_alarm_s", "alarm_to_hold_ms", "hold_to_operator_s", "takeover_to_command_ms")
    measured += ("takeover_joint_step_rad", "chunk_rate_hz", "control_period_p99_ms", "recording")
    facts: dict[str, Any] = dict.fromkeys(measured)
    facts |= {"name": script.name, "perturbation": script.perturbation, "seed": seed, "outcome": "failure"}
    facts |= {"termination_reason": "system_error", "alarms": 0, "verdicts": [], "handed_back": False}
    facts |= {"holds": [], "duration_s": 0.0}
    return Story(facts, script.title, script.expectation, 0.0, (), (), (), {}, (why,))


def measure(timeline: Timeline, rig: RigConfig) -> dict[str, Any]:
    """Figures of one episode, all from recorded stamps."""
    takeover = timeline.takeover()
    hold = timeline.first("alarm")
    step = None
    if takeover is not None:
        # The gripper's column is in m, and a gripper does not throw an arm.
        step = max(
            abs(takeover.first_step.get(joint, 0.0)) for arm in rig.arms for joint in arm.joint_columns
        )
    return {
        "alarms": len(timeline.alarms()),
        "first_alarm_s": timeline.first_alarm_s(),
        "verdicts": timeline.verdict_names(),
        "alarm_to_hold_ms": timeline.alarm_to_hold_ms(),
        "hold_to_operator_s": None if not (takeover and hold) else (takeover.made - hold.made) / 1e9,
        "takeover_to_command_ms": None
        if takeover is None or not takeover.first_command
        else (takeover.first_command - takeover.raised) / 1e6,
        "takeover_joint_step_rad": step,
        "handed_back": timeline.handed_back(),
        "holds": timeline.holds(),
        "duration_s": timeline.duration,
        "control_period_p99_ms": timeline.period_p99() * 1e3,
    }


def _rate(timeline: Timeline, stamps: np.ndarray) -> float | None:
    """Chunks per second while the policy had control, until the task's end; None with fewer than two chunks."""
    gaps: list[float] = []
    for span in timeline.spans():
        if span.authority == "POLICY":
            begin, end = (
                timeline.start + round(t * 1e9) for t in (span.start, min(span.end, timeline.duration))
            )
            within = stamps[(stamps >= begin) & (stamps < end)]
            between = np.diff(within) / 1e9
            gaps += between.tolist()
            if len(between) and (end - within[-1]) / 1e9 > 1.5 * np.median(between):
                gaps.append((end - within[-1]) / 1e9)  # it ended with a chunk that did not come
    return len(gaps) / sum(gaps) if gaps else None


def _film(source: Recording, timeline: Timeline, camera: str) -> tuple[Frame, ...]:
    seen = source.frames(camera)
    if not seen:
        return ()
    middles = (np.arange(FRAMES) + 0.5) / FRAMES * timeline.length
    stamps = stamps_of(seen)
    frames = []
    for i in nearest(stamps, timeline.start + (middles * 1e9).astype(np.int64)):
        picture = cv2.resize(
            decode_picture(seen[i].message.data, camera), FRAME_SIZE, interpolation=cv2.INTER_AREA
        )
        _, jpeg = cv2.imencode(
            ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, FRAME_QUALITY]
        )
        frames.append(Frame(timeline.seconds(int(stamps[i])), jpeg.tobytes()))
    return tuple(frames)


def _words(facts: Mapping[str, Any]) -> str:
    return f"{facts['outcome'].replace('_', ' ')} ({facts['termination_reason'].replace('_', ' ')})"
