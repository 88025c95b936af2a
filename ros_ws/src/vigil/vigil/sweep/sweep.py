"""The sweep itself: every sampler of every bundle, timed, compared with demonstrations, and rolled out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console

from vigil.errors import VigilError
from vigil.policy.bundle import Bundle, load_bundle
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.timing import Timing, sampler_timings
from vigil.rig import RigConfig
from vigil.run.evaluate import Evaluation, run_evaluation
from vigil.run.plan import plan
from vigil.run.progress import progress_bar
from vigil.run.report import replace_text
from vigil.run.session import derive_rig
from vigil.sweep.actions import ActionError, Drawing, chunk_errors, inference_period, periods, summarise
from vigil.sweep.held_out import data_identity, grid_rate, read_held_out
from vigil.sweep.recommend import Measured

ACTIONS_FILE = "actions.json"


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        rig: whose samples per tick, threads, period and scenes are used.
        data: held-out demonstrations; None: no action error.
        demonstrations: how many of them at most.
        episodes: closed-loop episodes of each sampler; 0: none.
        seed: of the first scene; the others count up. All samplers meet the same scenes.
        latency: lock step: chunks reach the arm so long after their observation [s].
        rounds: of the interleaved measurement of latency.
        out: folder; what an unfinished sweep has left there is used.
    """

    rig: RigConfig
    data: Path | None
    demonstrations: int
    episodes: int
    seed: int
    latency: float
    rounds: int
    out: Path

    def with_data(self, data: Path) -> Wanted:
        """The same with demonstrations that were recorded meanwhile."""
        return replace(self, data=data)


@dataclass
class Candidate:
    """One sampler of one bundle, and what is known of it so far."""

    bundle: Bundle
    name: str  # unique in the sweep
    rig: RigConfig  # that of the sweep, with this bundle and sampler
    timings: dict[int, Timing]  # by K: encoder and sampler
    error: ActionError | None = None
    successes: int = 0
    n: int = 0

    def measured(self) -> Measured:
        """For `recommend`."""
        timing, sampler, spec = self.timings[self.rig.policy.samples], self.bundle.sampler, self.bundle.spec
        # A streaming sampler that is slower than its steps falls behind for good.
        limit = {} if sampler.emitted is None else {"limit_ms": sampler.emitted * spec.step_dt * 1e3}
        error = (
            {}
            if self.error is None
            else {
                "error": self.error.executed,
                "error_low": self.error.low,
                "error_high": self.error.high,
                "error_episodes": self.error.episodes,
            }
        )
        return Measured(
            self.name, timing.median, timing.p99, successes=self.successes, n=self.n, **limit, **error
        )


def choose(bundles: Sequence[Path], samplers: Sequence[str]) -> list[Bundle]:
    """Every bundle with every sampler that is wanted and that it offers; no names: all that there are.

    Raises:
        VigilError: a bundle is broken, or no bundle offers a sampler that was asked for.
    """
    first = [load_bundle(path) for path in bundles]
    offered = {name for bundle in first for name in bundle.spec.samplers}
    if unknown := [name for name in samplers if name not in offered]:
        raise VigilError(
            f"no sampler {', '.join(unknown)} in {', '.join(str(bundle.path) for bundle in first)}: they offer "
            f"{', '.join(sorted(offered))}"
        )
    return [
        Bundle(bundle.path, bundle.spec, name)
        for bundle in first
        for name in bundle.spec.samplers
        if not samplers or name in samplers
    ]


def candidates(chosen: Sequence[Bundle], rig: RigConfig, out: Path) -> list[Candidate]:
    """One per bundle and sampler, with a rig file of its own.

    Raises:
        VigilError: a bundle does not fit the rig.
    """
    folders = {bundle.path.resolve() for bundle in chosen}
    made: list[Candidate] = []
    for bundle in chosen:
        name = (
            bundle.sampler_name
            if len(folders) == 1
            else f"{bundle.path.resolve().name}.{bundle.sampler_name}"
        )
        if name in [candidate.name for candidate in made]:
            raise VigilError(f"two bundles are called {bundle.path.resolve().name}: rename the folder of one")
        policy = {
            "bundle": str(bundle.path.resolve()),
            "sampler": bundle.sampler_name,
            "period": inference_period(bundle.sampler, bundle.spec, rig.policy.period),
        }
        own = derive_rig(rig, out / name, policy=policy)
        bundle.check_rig(own)
        made.append(Candidate(bundle, name, own, {}))
    return made


def measure_latency(found: Sequence[Candidate], wanted: Wanted, console: Console) -> None:
    """Time every sampler for one sample and for the rig's K, all in turns."""
    policy = wanted.rig.policy
    runtimes = [PolicyRuntime(candidate.bundle, threads=policy.threads) for candidate in found]
    with progress_bar(console) as progress:
        bar = progress.add_task("latency", total=wanted.rounds)
        samples = sorted({1, policy.samples})
        timings = sampler_timings(runtimes, samples, wanted.rounds, lambda: progress.advance(bar))
    for candidate, timing in zip(found, timings, strict=True):
        candidate.timings = timing


def measure_errors(found: Sequence[Candidate], wanted: Wanted, console: Console) -> None:
    """Compare every sampler's chunks with the demonstrations; what was compared before is read from disk."""
    if wanted.data is None:
        return
    identity = data_identity(wanted.data)
    keys = {c.name: _error_key(c, wanted, identity) for c in found}
    for candidate in found:
        candidate.error = _known_error(wanted.out / candidate.name / ACTIONS_FILE, keys[candidate.name])
    for path in dict.fromkeys(c.bundle.path for c in found if c.error is None):
        left = [c for c in found if c.bundle.path == path and c.error is None]
        for candidate, error in zip(left, _compare(left, wanted, console), strict=True):
            candidate.error = error
            kept = {"key": keys[candidate.name], **asdict(error)}
            replace_text(wanted.out / candidate.name / ACTIONS_FILE, json.dumps(kept, indent=2) + "\n")


def _compare(left: Sequence[Candidate], wanted: Wanted, console: Console) -> list[ActionError]:
    """Errors of samplers of one bundle, from one pass through the demonstrations."""
    spec, policy = left[0].bundle.spec, wanted.rig.policy
    rate = grid_rate(periods(spec, [c.bundle.sampler for c in left], policy.period))
    drawing = Drawing(policy.period, min(policy.candidates, policy.samples), policy.selection, wanted.seed)
    runtimes = [PolicyRuntime(c.bundle, threads=policy.threads) for c in left]
    errors: list[dict[str, np.ndarray]] = [{} for _ in left]
    with progress_bar(console) as progress:
        bar = progress.add_task(f"action error of {spec.name}", total=wanted.demonstrations)

        def told(why: str) -> None:
            progress.console.print(f"left out: {why}", style="yellow", highlight=False, markup=False)

        for number, episode in enumerate(read_held_out(wanted.data, spec, rate, wanted.demonstrations, told)):
            for runtime, found in zip(runtimes, errors, strict=True):
                found[f"{number} {episode.name}"] = chunk_errors(runtime, episode, drawing, number)
            progress.advance(bar)
    return [summarise(found) for found in errors]


def _error_key(candidate: Candidate, wanted: Wanted, identity: str) -> dict[str, Any]:
    policy = candidate.rig.policy
    return {
        "policy": candidate.bundle.content_hash,
        "data": identity,
        "demonstrations": wanted.demonstrations,
        "seed": wanted.seed,
        "drawing": [policy.period, policy.samples, policy.candidates, policy.selection],
    }


def _known_error(path: Path, key: dict[str, Any]) -> ActionError | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return ActionError(**kept) if kept.pop("key") == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or cut short: it is compared again


def roll_out(
    found: Sequence[Candidate], wanted: Wanted, console: Console, finished: Callable[[], None]
) -> None:
    """Closed-loop episodes of every sampler in lock step, the same scenes for all; finished ones are not repeated.

    Args:
        finished: called after each sampler.

    Raises:
        VigilError: the rig does not start, or the folder belongs to another sweep.
    """
    if not wanted.episodes:
        return
    planned = tuple(plan(wanted.episodes, wanted.seed, "none", {}))
    for candidate in found:
        console.print(f"closed loop: {candidate.name}", markup=False)
        settings = {
            "rig": wanted.rig.name, "sampler": candidate.bundle.sampler_name, "seed": wanted.seed, "perturb": "none",
            "speed": "max", "hold": False, "uncalibrated": True, "images": False, "episodes": wanted.episodes,
            "drawing": _drawing(candidate.rig),
        } | ({"latency": wanted.latency} if wanted.latency else {})  # fmt: skip
        summary = run_evaluation(
            candidate.rig, Evaluation(planned, settings, wanted.out / candidate.name), console
        )
        candidate.successes, candidate.n = summary["successes"], summary["n"]
        finished()


def _drawing(rig: RigConfig) -> dict[str, Any]:
    """What of the rig's settings changes how often a policy succeeds: a folder must not mix two of them."""
    return rig.policy.model_dump(mode="json", exclude={"bundle", "sampler", "threads"})


def surroundings(wanted: Wanted, found: Sequence[Candidate]) -> dict[str, Any]:
    """What the figures were measured with and on, for those who want to measure them again."""
    policy = wanted.rig.policy
    return {
        "rig": wanted.rig.name,
        "samples": policy.samples,
        "candidates": policy.candidates,
        "threads": policy.threads,
        "data": None if wanted.data is None else str(wanted.data),
        "demonstrations": wanted.demonstrations,
        "episodes": wanted.episodes,
        "seed": wanted.seed,
        "latency": wanted.latency,
        "rounds": wanted.rounds,
        "bundles": {str(c.bundle.path): c.bundle.spec.name for c in found},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, ONNX Runtime {ort.__version__}",
    }
