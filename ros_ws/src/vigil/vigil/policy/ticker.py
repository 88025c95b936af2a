"""What one tick of the policy does, without ROS: encode, draw candidates, choose the chunk; then the evidence.

What is carried from tick to tick (a recurrent policy's memory, a stream's buffers, the chunk that runs on the arm) begins
anew with `Ticker.restart`. A tick that was under way then ends without a trace: it writes into what was thrown away.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from vigil.arm.curves import SECOND
from vigil.errors import VigilError
from vigil.policy.chunks import Running, Situation, check_scorer, continuation, scorer_of, select
from vigil.policy.observation import Observation
from vigil.policy.runtime import Encoded, Known, PolicyRuntime
from vigil.rig import PolicyConfig

LATEST = 0.5
"""Share of a chunk's horizon that may be over when it is sent."""
DELAYS = 10
"""Delays that are remembered; the longest of them is expected (Black et al. 2025, algorithm 1)."""


class Late(VigilError):
    """A chunk that is not to be sent any more; not an error of the policy."""


class Overtaken(Late):
    """The policy began anew while a tick was under way whose observation is new enough: begin it again."""


@dataclass
class Stream:
    """Chunks that a streaming sampler carries on: the candidates, and the others that the monitor sees."""

    candidates: np.ndarray  # [k, H, D]
    others: np.ndarray | None  # [K - k, H, D]
    chosen: int
    due: int  # [ns] when step 0 of the next call's chunks is due


@dataclass
class Carried:
    """What goes from one tick to the next under the same authority."""

    memory: np.ndarray | None = None  # [M] float32
    stream: Stream | None = None
    running: Running | None = None


@dataclass
class Tick:
    """One tick between `Ticker.begin` and `Ticker.finish`.

    Attributes:
        stamp: of the observation [ns].
        chunk: [H, D] what the arm gets; rad, m.
        samples: [k, H, D] drawn so far for the evidence.
        chosen: index of the sample that is the chunk; None if none of them is.
    """

    stamp: int
    encoded: Encoded
    chunk: np.ndarray
    samples: np.ndarray
    chosen: int | None
    known: Known | None  # what the chunk was made to keep of the running one
    carried: Carried = field(repr=False)
    others: np.ndarray | None = field(default=None, repr=False)  # of a stream


class Ticker:
    """Runs one policy tick by tick. One worker may call `begin`, `sent` and `finish`; `restart` any thread.

    Args:
        runtime: the policy.
        settings: of the rig.
        lead: [s] by which the arm reads a chunk ahead of the present.
        delay: [s] from an observation to its chunk's arrival where that is known beforehand, as in lock step; None: measured.

    Attributes:
        lead: may be set anew as the robot's delay is measured.

    Raises:
        VigilError: the settings ask for what the sampler cannot do, or name a scorer that does not work.
    """

    def __init__(
        self, runtime: PolicyRuntime, settings: PolicyConfig, lead: float = 0.0, delay: float | None = None
    ) -> None:
        self.runtime, self.lead, self._settings = runtime, lead, settings
        self._check()
        self._scorer = scorer_of(settings.selection)
        check_scorer(self._scorer, runtime.bundle.spec)
        self._scale = np.array(runtime.bundle.spec.action_std, np.float32)
        self._nothing = np.empty((0, len(self._scale)), np.float32)
        self._rng = np.random.default_rng(settings.seed)
        self._known_delay = delay
        self._delays: deque[float] = deque(maxlen=DELAYS)
        self._lock = threading.Lock()  # guards the next two
        self._carried = Carried()
        self._not_before = 0

    def _check(self) -> None:
        bundle = self.runtime.bundle
        if not self._settings.real_time_chunking or bundle.sampler.inpaint:
            return
        able = [name for name, sampler in bundle.spec.samplers.items() if sampler.inpaint]
        if bundle.sampler.streams:
            remedy = "a streaming sampler goes on from its own chunk: turn real_time_chunking off"
        elif able:
            remedy = f"set policy.sampler to one that does: {', '.join(able)}"
        else:
            remedy = "none of its samplers does: export the bundle with one that does, or turn real_time_chunking off"
        raise VigilError(
            f"policy.real_time_chunking: sampler {bundle.sampler_name} of bundle {bundle.name} takes no known targets; {remedy}"
        )

    def seed(self) -> None:
        """Draw the same noise again as after the start, and forget all ticks."""
        self._rng = np.random.default_rng(self._settings.seed)
        self.restart(0)

    def restart(self, instant: int) -> None:
        """The policy was given control, or lost it, at ``instant`` [ns]: it begins anew with what is observed from then on."""
        with self._lock:
            self._carried, self._not_before = Carried(), instant

    @property
    def delay(self) -> float:
        """Expected time from an observation to its chunk's arrival [s]."""
        if self._known_delay is not None:
            return self._known_delay
        return max(self._delays, default=0.0)

    def begin(self, observation: Observation, *, driving: bool = False) -> Tick:
        """Encode an observation and choose its chunk among the first few candidates.

        Args:
            driving: the arm follows the chunks, so that the last one sent is the one that runs.

        Raises:
            Late: observed before `restart`.
            Rejected: an input or an output is not what it should be.
            VigilError: ONNX Runtime or the scorer failed.
        """
        with self._lock:
            carried = self._carried
        self._still_wanted(observation.stamp, carried)
        runtime, spec = self.runtime, self.runtime.bundle.spec
        encoded = runtime.encode(
            observation.prepared(spec.image_shape), observation.state, carried.memory if spec.memory else None
        )
        carried.memory = encoded.memory
        if runtime.sampler.streams:
            return self._stream(observation, encoded, carried)
        return self._draw(observation, encoded, carried, carried.running if driving else None)

    @property
    def _candidates(self) -> int:
        return min(self._settings.candidates, self._settings.samples)

    def _draw(
        self, observation: Observation, encoded: Encoded, carried: Carried, running: Running | None
    ) -> Tick:
        spec, stamp = self.runtime.bundle.spec, observation.stamp
        known, shared = None, self._nothing
        if running is not None:
            positions, covered = running.at(stamp, spec.horizon)
            shared = positions[:covered]
            if self._settings.real_time_chunking:
                known = continuation(running, stamp, spec.horizon, self.delay + self.lead)
        candidates = self.runtime.draw(encoded, self._candidates, self._rng, known)
        chosen = self._choose(candidates, observation, encoded, shared)
        chunk = candidates[chosen]
        if known is not None:  # the monitor was calibrated with chunks that were free
            return Tick(stamp, encoded, chunk, candidates[:0], None, known, carried)
        return Tick(stamp, encoded, chunk, candidates, chosen, None, carried)

    def _stream(self, observation: Observation, encoded: Encoded, carried: Carried) -> Tick:
        """The same candidate is followed from call to call: they differ, and only each by itself is smooth."""
        spec, stamp, old = self.runtime.bundle.spec, observation.stamp, carried.stream
        step = round(spec.step_dt * SECOND)
        if old is not None and abs(stamp - old.due) > step // 2:
            old = None  # a tick is missing, and with it the noise of the steps that it would have added
        candidates, buffer = self.runtime.stream(
            encoded, self._candidates, self._rng, old.candidates if old else None
        )
        chosen = old.chosen if old else self._choose(candidates, observation, encoded, self._nothing)
        due = old.due if old else stamp
        carried.stream = Stream(buffer, None, chosen, due + self.runtime.sampler.emitted * step)
        tick = Tick(stamp, encoded, candidates[chosen], candidates, chosen, None, carried)
        tick.others = old.others if old else None
        if due != stamp:
            # Frames come when they come: steps stay due when the stream says, and are told at the times that a chunk has.
            tick.chunk, tick.chosen = Running(due, spec.step_dt, tick.chunk).at(stamp, spec.horizon)[0], None
        return tick

    def _choose(
        self, candidates: np.ndarray, observation: Observation, encoded: Encoded, running: np.ndarray
    ) -> int:
        spec = self.runtime.bundle.spec
        situation = Situation(
            names=spec.action_names,
            scale=self._scale,
            step_dt=spec.step_dt,
            state=observation.state,
            embedding=encoded.embedding,
            running=running,
        )
        return select(candidates, situation, self._scorer)

    def sent(self, tick: Tick, age: float) -> None:
        """About to send the chunk, ``age`` [s] after its observation: it is the one that runs from now on.

        Raises:
            Late: it is not to be sent: too old, or observed before `restart`.
        """
        spec = self.runtime.bundle.spec
        self._delays.append(age)
        if age > LATEST * spec.horizon * spec.step_dt:
            raise Late(f"{age * 1e3:.0f} ms old when it was done: half of it is over")
        self._still_wanted(tick.stamp, tick.carried)
        tick.carried.running = Running(tick.stamp, spec.step_dt, tick.chunk)

    def finish(self, tick: Tick) -> np.ndarray:
        """All K samples for the evidence [K, H, D]: those there are and the others, drawn without known targets.

        Raises:
            Rejected, VigilError: as `begin`.
        """
        more = self._settings.samples - len(tick.samples)
        if not more:
            return tick.samples
        if self.runtime.sampler.streams:
            others, tick.carried.stream.others = self.runtime.stream(
                tick.encoded, more, self._rng, tick.others
            )
        else:
            others = self.runtime.draw(tick.encoded, more, self._rng, first=not len(tick.samples))
        return np.concatenate([tick.samples, others])

    def _still_wanted(self, stamp: int, carried: Carried) -> None:
        with self._lock:
            if stamp < self._not_before:
                raise Late("observed before the policy was given control, or before it lost it")
            if carried is not self._carried:
                raise Overtaken("the policy began anew meanwhile")
