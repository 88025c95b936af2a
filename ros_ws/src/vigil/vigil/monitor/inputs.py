"""Roll-outs for the monitor's commands: read with a progress bar, sorted by task, refused where they do not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vigil.errors import VigilError
from vigil.monitor.calibration import Binding, geometry_of
from vigil.monitor.features import Features, Kinematics, rollout_features
from vigil.record.rollout import Rollout, find_rollouts, iter_rollouts, load_episode
from vigil.rig import RigConfig, load_rig


def load(roots: Sequence[Path], console: Console, outcomes: tuple[str, ...]) -> list[Rollout]:
    """Roll-outs with one of the outcomes, without images.

    Raises:
        VigilError: none found, or one is damaged.
    """
    folders = find_rollouts(roots)
    shown = track(folders, "reading roll-outs", console=console, transient=True)
    loaded = list(iter_rollouts(shown, outcomes=outcomes))
    if not loaded:
        found = sorted({load_episode(folder).outcome for folder in folders})
        raise VigilError(
            f"none of the {len(folders)} roll-outs ended in {' or '.join(outcomes)}; they ended in {', '.join(found)}"
        )
    return loaded


def by_task(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Roll-outs by the task that they name."""
    tasks: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        tasks[rollout.episode.task or rollout.episode.rig or "unnamed"].append(rollout)
    return dict(tasks)


def rig_of(rollouts: Sequence[Rollout], given: str) -> RigConfig:
    """The rig given, or the one that the roll-outs name.

    Raises:
        VigilError: they name none, or several.
    """
    if given:
        return load_rig(given)
    names = {rollout.episode.rig for rollout in rollouts} - {""}
    if len(names) != 1:
        said = "name no rig" if not names else f"are of several rigs: {', '.join(sorted(names))}"
        raise VigilError(f"the roll-outs {said}: say which with --rig")
    return load_rig(names.pop())


def kinematics_of(rollouts: Sequence[Rollout], rig: str = "") -> Kinematics:
    """How the roll-outs' columns become positions: as they say themselves, else as their rig file says.

    Raises:
        VigilError: they say different things.
    """
    said = {rollout.episode.end_effectors for rollout in rollouts}
    if len(said) > 1:
        raise VigilError(
            "the roll-outs of one task have different `end_effectors` in their episode.json: judge them one by one"
        )
    return Kinematics(said.pop() or geometry_of(rig_of(rollouts, rig)))


def check_rollout(rollout: Rollout, binding: dict) -> None:
    """VigilError unless the roll-out is of the policy described by ``binding`` (fields of `Binding`)."""
    found = {
        "bundle_hash": rollout.episode.bundle_hash,
        "sampler": rollout.episode.sampler,
        "sampler_steps": rollout.episode.sampler_steps,
        "k": rollout.k,
        "horizon": rollout.horizon,
        "step_dt": rollout.step_dt,
        "names": rollout.names,
        "embedding_dim": rollout.embedding.shape[1],
    }
    if recorded := rollout.episode.camera_calibration_hash:
        found["camera_calibration_hash"] = recorded
    if differences := Binding(**binding).differences(found):
        said = (
            "; ".join(differences).replace("calibrated", "of the bundle").replace("found", "of the roll-out")
        )
        raise VigilError(
            f"roll-out {rollout.label} is of another policy: {said}. Use roll-outs of this bundle alone"
        )


def only_segment(rollout: Rollout, kinematics: Kinematics) -> Features:
    """The features of an uninterrupted roll-out.

    Raises:
        VigilError: the policy's control was interrupted. Leaving such a roll-out out would bias the calibration.
    """
    segments = rollout_features(rollout, kinematics)
    if len(segments) > 1:
        raise VigilError(
            f"in roll-out {rollout.label} the policy was interrupted {len(segments) - 1} times: calibrate on roll-outs "
            "recorded with `vigil evaluate RIG --uncalibrated`, where no alarm holds the arm"
        )
    return segments[0]
