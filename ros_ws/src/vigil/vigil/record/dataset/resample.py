"""A recording on an even grid of frames: which sample of every stream belongs to each frame, and which frames lie in gaps.

Frame k stands for the instant ``start + k / fps`` on the axis of acquisition stamps, so the declared rate is the true
one. Each stream gives the sample nearest to that instant, as one observation of the policy is put together. Where a
stream has a gap, the policy chosen decides, and the frame is labelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset.source import Source
from vigil.record.dataset.streams import Gap, Stream

Policy = Literal["hold", "nearest", "drop"]
POLICIES = get_args(Policy)
SHORTEST = 2  # frames; less has no rate


@dataclass(frozen=True)
class Grid:
    """How a recording is to be sampled.

    Attributes:
        fps: frames per second.
        gaps: ``hold`` repeats the last sample before a gap; ``nearest`` takes the nearest, also one after it; ``drop``
            leaves the frames out and cuts the recording there, so that every part keeps its rate.
        whole: from the recording's first to its last instant; otherwise from when somebody was given control.
    """

    fps: int
    gaps: Policy = "hold"
    whole: bool = False


@dataclass(frozen=True)
class Quality:
    """How well the frames of one part stand for what was recorded. Skews and rates are of frames outside gaps.

    Attributes:
        measured_fps: slope of the fastest input's acquisition stamps over the frames.
        skew_median_s, skew_max_s: newest minus oldest input of a frame.
        gap_frames: frames within a gap.
        repeated: frames that show a picture that the frame before had shown, by camera, in gaps too.
        skipped: pictures between the first and the last frame that no frame shows, by camera.
        rates: what each camera delivered [Hz].
    """

    measured_fps: float
    skew_median_s: float
    skew_max_s: float
    gap_frames: int
    repeated: dict[str, int]
    skipped: dict[str, int]
    rates: dict[str, float]


@dataclass(frozen=True)
class Part:
    """T consecutive frames of a recording.

    Attributes:
        times: int64 [T], the frames' instants [ns].
        pick: by stream, int64 [T]: place of the sample that each frame gets in the stream.
        gap: bool [T], some stream has a gap there.
        skew: float32 [T], newest minus oldest input of the frame [s].
        gaps: of all streams, within the part or at its ends.
    """

    number: int
    times: np.ndarray
    pick: Mapping[str, np.ndarray]
    gap: np.ndarray
    skew: np.ndarray
    gaps: tuple[Gap, ...]
    quality: Quality

    def __len__(self) -> int:
        return len(self.times)


def resample(source: Source, cameras: Mapping[str, Stream], grid: Grid) -> list[Part]:
    """The parts of one recording: one, unless ``grid.gaps`` is ``drop``.

    Args:
        cameras: exposures by camera; the first camera's frames set the phase of the grid.

    Raises:
        VigilError: a camera delivered nothing, nobody had control, or there is no instant at which all streams are
            known.
    """
    if grid.gaps not in POLICIES:
        raise VigilError(f"gaps {grid.gaps!r} is unknown: choose one of {', '.join(POLICIES)}")
    if dark := [name for name, stream in cameras.items() if not len(stream)]:
        raise VigilError(f"camera {', '.join(dark)} delivered no picture at all")
    inputs: list[Stream] = [*cameras.values(), *(joints.stream for joints in source.joints)]
    streams = [*inputs, source.control.stream]
    start, end = _bounds(source, streams, grid.whole)
    lead = inputs[0].stamps
    start = int(lead[min(np.searchsorted(lead, start), len(lead) - 1)])
    period = 1e9 / grid.fps
    count = int(np.floor((end - start) / period + 1e-6)) + 1 if end >= start else 0
    if count < SHORTEST:
        raise VigilError(f"is too short: {max(end - start, 0) / 1e9:.3f} s at {grid.fps} frames per second")
    times = start + np.round(np.arange(count) * period).astype(np.int64)

    gaps = tuple(gap for stream in streams for gap in stream.gaps(start, end, round(period)))
    pick, missed = {}, np.zeros(count, bool)
    for stream in streams:
        pick[stream.name], inside = _pick(
            stream, [g for g in gaps if g.stream == stream.name], times, period, grid
        )
        missed |= inside
    skew = _skew(inputs, pick)
    runs = [slice(0, count)] if grid.gaps != "drop" else _runs(~missed, SHORTEST)
    if not runs:
        raise VigilError("has gaps everywhere: there are no two frames in a row without one")
    return [
        _part(number, run, times, pick, missed, skew, gaps, inputs, cameras)
        for number, run in enumerate(runs)
    ]


def _bounds(source: Source, streams: Sequence[Stream], whole: bool) -> tuple[int, int]:
    """First and last instant [ns]. A stream that ends early does not end the episode: that is a gap."""
    start = max(int(stream.stamps[0]) for stream in streams)
    if not whole:
        start = max(start, source.first_control())
    return start, max(int(stream.stamps[-1]) for stream in streams)


def _pick(
    stream: Stream, gaps: Sequence[Gap], times: np.ndarray, period: float, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """(place of each frame's sample, frames that lie in a gap)."""
    nearest = stream.nearest(times)
    away = np.abs(times - stream.stamps[nearest]) > max(stream.period, period) / 2 + 1
    inside = np.zeros(len(times), bool)
    for gap in gaps:
        within = (times > gap.start) & (times <= gap.end)
        inside |= within & away
        if gap.kind == "clock_step":
            # Time goes on, but the world has jumped: at least one frame says so.
            inside[min(np.searchsorted(times, gap.end), len(times) - 1)] = True
    if grid.gaps == "hold":
        held = np.maximum(stream.before(times), 0)
        return np.where(inside & away, held, nearest), inside
    return nearest, inside


def _skew(inputs: Sequence[Stream], pick: Mapping[str, np.ndarray]) -> np.ndarray:
    stamps = np.stack([stream.stamps[pick[stream.name]] for stream in inputs])
    return (np.ptp(stamps, axis=0) / 1e9).astype(np.float32)


def _runs(good: np.ndarray, shortest: int) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(int)))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= shortest]


def _part(
    number: int,
    run: slice,
    times: np.ndarray,
    pick: Mapping[str, np.ndarray],
    missed: np.ndarray,
    skew: np.ndarray,
    gaps: Sequence[Gap],
    inputs: Sequence[Stream],
    cameras: Mapping[str, Stream],
) -> Part:
    picked = {name: places[run] for name, places in pick.items()}
    times, missed, skew = times[run], missed[run], skew[run]
    margin = times[1] - times[0]
    near = tuple(g for g in gaps if g.end >= times[0] - margin and g.start <= times[-1] + margin)
    sound = ~missed if (~missed).sum() >= SHORTEST else np.ones(len(times), bool)
    shown = {name: picked[stream.name] for name, stream in cameras.items()}
    quality = Quality(
        measured_fps=_measured_fps(inputs, picked, sound),
        skew_median_s=float(np.median(skew[sound])),
        skew_max_s=float(skew[sound].max()),
        gap_frames=int(missed.sum()),
        repeated={name: int((np.diff(places) == 0).sum()) for name, places in shown.items()},
        skipped={name: int(np.maximum(np.diff(places) - 1, 0).sum()) for name, places in shown.items()},
        rates={name: round(stream.rate, 3) for name, stream in cameras.items()},
    )
    return Part(number, times, picked, missed, skew, near, quality)


def _measured_fps(inputs: Sequence[Stream], pick: Mapping[str, np.ndarray], sound: np.ndarray) -> float:
    """Frames per second by the stamps of what the frames hold: a straight line through them, gaps left out.

    Of the fastest input: a picture may be half a frame off its instant, which says nothing about the rate.
    """
    frames = np.flatnonzero(sound)
    fastest = min(inputs, key=lambda stream: stream.period or np.inf)
    stamps = fastest.stamps[pick[fastest.name][frames]] - fastest.stamps[0]
    slope = np.polyfit(frames - frames.mean(), stamps - stamps.mean(), 1)[0]
    return float(1e9 / slope) if slope > 0 else 0.0
