"""The columns of every frame, and the pictures in step with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vigil.errors import VigilError
from vigil.policy.observation import prepare_image
from vigil.record.dataset.resample import Part
from vigil.record.dataset.source import Source
from vigil.record.dataset.streams import Stream
from vigil.record.pictures import picture_of

# A verdict speaks for the time until the next one is due; after so many of the monitor's periods it is none.
VERDICT_PERIODS = 2.5
INTERVENING = ("OPERATOR", "BLENDED")  # a person moves the arm, or corrects what the policy does


@dataclass(frozen=True)
class Table:
    """The columns of T frames, by the names they have in a data set; N columns of the arm, S scores.

    A frame without a verdict has "" for it and NaN for every score and threshold.
    """

    state: np.ndarray  # float32 [T, N], measured; rad and m
    action: np.ndarray  # float32 [T, N], setpoint at the frame's instant; rad and m
    intervention: np.ndarray  # bool [T], an operator has control, or corrects the policy
    control_source: np.ndarray  # object [T], policy, operator, blended, hold or estop
    reward: np.ndarray  # float32 [T], see `intervention_reward`
    alarm: np.ndarray  # bool [T], latched: from the first alarm until the monitor is reset
    verdict: np.ndarray  # object [T]
    scores: np.ndarray  # float32 [T, S], raw
    windowed: np.ndarray  # float32 [T, S], what is compared
    thresholds: np.ndarray  # float32 [T, S], inf: uncalibrated
    gap: np.ndarray  # bool [T]
    skew: np.ndarray  # float32 [T], s


def make_table(source: Source, part: Part, score_names: Sequence[str]) -> Table:
    """The columns of one part; scores in the order of ``score_names``, one that was not computed is NaN.

    Raises:
        VigilError: the recording has a score that is not among ``score_names``.
    """
    columns = {}
    for joints in source.joints:
        rows = joints.positions[part.pick[joints.stream.name]]
        columns.update({name: rows[:, i] for i, name in enumerate(joints.columns)})
    control = part.pick[source.control.stream.name]
    authority = source.control.authority[control].astype(str)
    said, verdicts = _verdicts(source, part.times), source.verdicts
    spoken = said >= 0
    scores = {
        what: _spread(getattr(verdicts, what), verdicts.names, score_names, said)
        for what in ("scores", "windowed", "thresholds")
    }
    return Table(
        state=np.stack([columns[name] for name in source.columns], 1).astype(np.float32),
        action=source.control.commanded[control].astype(np.float32),
        intervention=np.isin(authority, INTERVENING),
        control_source=np.array([name.lower() for name in authority], object),
        reward=intervention_reward(authority),
        alarm=np.where(spoken, verdicts.alarm[said], False) if len(verdicts.stream) else spoken,
        verdict=np.where(spoken, verdicts.verdict[said], "") if len(verdicts.stream) else _empty(len(part)),
        gap=part.gap,
        skew=part.skew,
        **scores,
    )


def intervention_reward(authority: np.ndarray) -> np.ndarray:
    """-1 where what the policy did made a person step in, 0 elsewhere: float32 [T].

    As RLIF learns from (Luo et al. 2023, sec. 4): the reward is that of the last frame under the policy's own control, also if
    the arm was held between that and the takeover.

    Args:
        authority: str [T], names of who had control.
    """
    reward = np.zeros(len(authority), np.float32)
    moving = np.flatnonzero((authority == "POLICY") | np.isin(authority, INTERVENING))
    began = (authority[moving[:-1]] == "POLICY") & np.isin(authority[moving[1:]], INTERVENING)
    reward[moving[:-1][began]] = -1.0
    return reward


def _verdicts(source: Source, times: np.ndarray) -> np.ndarray:
    """Place of the verdict that holds at each instant; -1 where none does.

    What was said before somebody got control is about another run: the monitor is reset in between.
    """
    stream = source.verdicts.stream
    said = stream.before(times)
    if len(stream) > 1:
        age = times - stream.stamps[np.maximum(said, 0)]
        said = np.where(age <= VERDICT_PERIODS * stream.period, said, -1)
    if source.has_control:
        given = source.first_control()
        earlier = int(np.searchsorted(stream.stamps, given))
        said = np.where((times >= given) & (said < earlier), -1, said)
    return said


def _spread(values: np.ndarray, names: Sequence[str], wanted: Sequence[str], said: np.ndarray) -> np.ndarray:
    """Columns ``names`` [n, s] at the places ``said`` [T] in the order ``wanted``: float32 [T, S]."""
    if unknown := [name for name in names if name not in wanted]:
        raise VigilError(
            f"has the scores {', '.join(unknown)}; the data set has columns for {', '.join(wanted)}"
        )
    rows = np.full((len(said), len(wanted)), np.nan, np.float32)
    spoken = np.flatnonzero(said >= 0)
    rows[np.ix_(spoken, [list(wanted).index(name) for name in names])] = values[said[spoken]]
    return rows


def _empty(count: int) -> np.ndarray:
    return np.full(count, "", object)


def view(rgb: np.ndarray, size: int | None) -> np.ndarray:
    """A camera's frame as the data set holds it: as the camera gave it, or the policy's view of ``size`` pixels.

    The latter is `prepare_image`, which training and serving call as well.
    """
    return rgb if size is None else prepare_image(rgb, size)


class Pictures:
    """Where the pictures of a recording come from. `frames` of different cameras may be read in different threads."""

    def __init__(self, source: Source, size: int | None) -> None:
        self._source, self._size = source, size

    @property
    def cameras(self) -> dict[str, Stream]:
        """Exposures by camera."""
        return self._source.cameras

    def frames(self, camera: str, part: Part) -> Iterator[np.ndarray]:
        """One uint8 [height, width, 3] per frame of ``part``, red first, prepared."""
        stream = self.cameras[camera]
        places = stream.index[part.pick[stream.name]]
        for message, repeats in _chosen(self._messages(camera), places):
            picture = view(picture_of(message, camera), self._size)
            for _ in range(repeats):
                yield picture

    def _messages(self, camera: str) -> Iterator[Any]:
        topic = self._source.image_topics[camera]
        return (message for _, message in self._source.reader.messages(topic))


def _chosen(messages: Iterator[Any], places: np.ndarray) -> Iterator[tuple[Any, int]]:
    """The messages at ``places`` (never falling), each with how often it is wanted."""
    wanted, counts = np.unique(places, return_counts=True)
    next_ = 0
    for place, message in enumerate(messages):
        if place == wanted[next_]:
            yield message, int(counts[next_])
            next_ += 1
            if next_ == len(wanted):
                return
    raise VigilError(f"{len(wanted) - next_} pictures that were there a moment ago cannot be read any more")


class Drawn(Pictures):
    """Pictures of a simulated rig that were not recorded: drawn from the recorded state, at the frames' own instants.

    Args:
        shapes: (height, width) by camera.
    """

    def __init__(self, source: Source, size: int | None, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(source, size)
        if source.states is None or not len(source.states):
            raise VigilError("has no sim/state to draw pictures from: it is not of a simulated rig")
        states = source.states
        self._shapes = dict(shapes)
        self._streams = {
            name: Stream(f"camera {name}", states.stamps, states.index, states.steps) for name in shapes
        }

    @property
    def cameras(self) -> dict[str, Stream]:
        return self._streams

    def frames(self, camera: str, part: Part) -> Iterator[np.ndarray]:
        from vigil.camera.simulated import SimulatedCamera  # loads OpenGL: only where it is drawn

        stream = self._streams[camera]
        height, width = self._shapes[camera]
        states = (message for _, message in self._source.reader.messages("sim/state"))
        with SimulatedCamera(camera, width, height) as drawer:
            for state, repeats in _chosen(states, stream.index[part.pick[stream.name]]):
                picture = view(drawer.render(state.qpos, state.appearance), self._size)
                for _ in range(repeats):
                    yield picture
