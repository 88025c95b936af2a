"""From one recorded episode of a policy to a roll-out: what calibration and analysis work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.policy.observation import prepare_image
from vigil.record.pictures import decode_picture
from vigil.record.rollout import AUTHORITIES, VERDICTS, Episode, Rollout
from vigil.run.timeline import Recorded, Timeline, nanoseconds


def make_rollout(
    timeline: Timeline,
    evidence: Sequence[Recorded],
    joints: Sequence[Recorded],
    columns: Sequence[str],
    frames: Mapping[str, Sequence[Recorded]],
    image_size: int,
    about: Mapping[str, Any],
) -> Rollout:
    """The policy ticks of one episode, from control given to the task's end.

    Args:
        timeline: who was in control, and the verdicts.
        evidence: PolicyEvidence messages.
        joints: JointState messages.
        columns: joints wanted, by name.
        frames: CompressedImage messages by camera; none: no images in the roll-out.
        image_size: side of the images kept [px], as the policy saw them.
        about: further entries of ``episode.json``.

    Raises:
        VigilError: there is no policy tick, or the recording lacks what belongs to one.
    """
    ticks = [
        r.message for r in evidence if timeline.start <= nanoseconds(r.message.header.stamp) <= timeline.end
    ]
    if not ticks:
        raise VigilError(
            "the recording has no policy tick while the policy had control: the policy node was silent"
        )
    stamps = np.array([nanoseconds(m.header.stamp) for m in ticks])
    first = ticks[0]
    shape = (first.k, first.horizon, len(first.names))
    verdicts = {int(r.message.tick): r.message for r in timeline.verdicts}
    judged = [verdicts.get(int(m.tick)) for m in ticks]
    names = next((tuple(m.score_names) for m in judged if m is not None), ())
    episode = Episode(
        duration_s=timeline.duration,
        alarms=len(timeline.alarms()),
        first_alarm_s=timeline.first_alarm_s(),
        perturbation_active_s=timeline.perturbed_s(),
        bundle_hash=first.bundle_hash,
        sampler=first.sampler,
        sampler_steps=int(first.sampler_steps),
        verdicts=timeline.verdict_names(),
        holds=timeline.holds(),
        **about,
    )
    return Rollout(
        stamps=(stamps - timeline.start) / 1e9,
        tick=np.array([m.tick for m in ticks], np.uint64),
        embedding=np.stack([np.asarray(m.embedding, np.float32) for m in ticks]),
        samples=np.stack([np.asarray(m.samples, np.float32).reshape(shape) for m in ticks]),
        names=tuple(first.names),
        step_dt=float(first.step_dt),
        authority=np.array([AUTHORITIES.index(timeline.authority_at(int(s))) for s in stamps], np.uint8),
        joint_positions=_positions(joints, stamps, columns),
        joint_names=tuple(columns),
        score_names=names,
        scores=_score_rows(judged, names, "scores"),
        windowed=_score_rows(judged, names, "windowed"),
        thresholds=_score_rows(judged, names, "thresholds"),
        verdict=np.array(
            [VERDICTS.index(m.verdict_name) if m is not None else VERDICTS.index("STALE") for m in judged],
            np.uint8,
        ),
        images={camera: _pictures(seen, stamps, image_size, camera) for camera, seen in frames.items()},
        episode=episode,
    )


def nearest(stamps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the nearest of ``stamps`` (sorted) to each of ``wanted``."""
    right = (
        np.clip(np.searchsorted(stamps, wanted), 1, len(stamps) - 1)
        if len(stamps) > 1
        else np.zeros(len(wanted), int)
    )
    left = np.maximum(right - 1, 0)
    return np.where(wanted - stamps[left] <= stamps[right] - wanted, left, right)


def stamps_of(messages: Sequence[Recorded]) -> np.ndarray:
    """Header stamps [ns]."""
    return np.array([nanoseconds(r.message.header.stamp) for r in messages], np.int64)


def _pictures(seen: Sequence[Recorded], wanted: np.ndarray, size: int, camera: str) -> np.ndarray:
    if not seen:
        raise VigilError(f"the recording has no pictures of camera {camera}: record with record.images: jpeg")
    picked = nearest(stamps_of(seen), wanted)
    return np.stack([prepare_image(decode_picture(seen[i].message.data, camera), size) for i in picked])


def _positions(joints: Sequence[Recorded], wanted: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    if not joints:
        raise VigilError("the recording has no joint states: the hardware was silent")
    names = list(joints[0].message.name)
    if missing := [c for c in columns if c not in names]:
        raise VigilError(f"the recorded joint states lack {', '.join(missing)}; they have {', '.join(names)}")
    order = [names.index(c) for c in columns]
    picked = nearest(stamps_of(joints), wanted)
    return np.stack([np.asarray(joints[i].message.position, float)[order] for i in picked])


def _score_rows(judged: Sequence[Any], names: Sequence[str], what: str) -> np.ndarray:
    rows = np.full((len(judged), len(names)), np.nan)
    for row, message in zip(rows, judged, strict=True):
        if message is not None and tuple(message.score_names) == tuple(names):
            row[:] = getattr(message, what)
    return rows
