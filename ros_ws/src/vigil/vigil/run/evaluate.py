"""``vigil evaluate``: closed-loop episodes of the policy through the same nodes that drive the robot.

Alarms are counted but do not end an episode, unless asked for (``--hold``): only so one learns how an episode with an
alarm would have ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.monitor.calibration import camera_calibration_hash
from vigil.policy.bundle import Bundle, bundle_of
from vigil.record.rollout import ARRAYS_FILE, EPISODE_FILE, Episode, save_rollout
from vigil.rig import RigConfig, load_rig, resolve
from vigil.run.collect import check_speed
from vigil.run.episodes import Resumer, clear, engage, new_scene, require_simulation, wait_for_end
from vigil.run.ledger import Ledger
from vigil.run.plan import Planned, plan
from vigil.run.progress import progress_bar
from vigil.run.recording import Recording
from vigil.run.report import replace_text
from vigil.run.rollouts import make_rollout
from vigil.run.session import Parameters, Session, derive_rig
from vigil.run.statistics import summarise
from vigil.sim.perturbations import REGISTRY

if TYPE_CHECKING:
    from vigil.run.client.node import RigClient

RECORDING_FILE, RECORDING_FACTS = "episode.mcap", "recording.json"


def evaluate(
    rig: Annotated[str, typer.Argument(help="name or file of a simulated rig")],
    episodes: Annotated[int, typer.Option(min=1, help="episodes in all")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the first scene; the others count up from it")] = 1000,
    perturb: Annotated[
        str, typer.Option(help="a perturbation's name, or none, benign, failing, all (take turns)")
    ] = "none",
    speed: Annotated[
        str, typer.Option(help="max: lock step, as fast as the machine allows; real: real time")
    ] = "max",
    latency: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.5, help="lock step: chunks reach the arm so long after their observation [s]"
        ),
    ] = 0.0,
    out: Annotated[Path | None, typer.Option(help="folder; an unfinished run in it goes on")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="an alarm holds the arm and ends the episode")] = False,
    uncalibrated: Annotated[
        bool, typer.Option("--uncalibrated", help="without the monitor's calibration (to make one)")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="pictures in recordings and roll-outs")
    ] = True,
) -> None:
    """Closed-loop episodes: roll-outs on disk, success and alarm rates with intervals in summary.json."""
    check_speed(speed)
    if latency and speed == "real":
        raise VigilError("--latency is for lock step: in real time chunks take what they take; leave it out")
    config = load_rig(rig)
    kinds = {
        name: "benign" if kind.benign else "failing" for name, kind in REGISTRY.items() if name != "none"
    }
    wanted = Evaluation(
        planned=tuple(plan(episodes, seed, perturb, kinds)),
        settings={"rig": config.name, "seed": seed, "perturb": perturb, "speed": speed, "hold": hold}
        | ({"latency": latency} if latency else {})
        | {"uncalibrated": uncalibrated, "images": images, "episodes": episodes},
        out=(out or resolve("out") / f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}").resolve(),
    )
    summary = run_evaluation(config, wanted, console := Console())
    console.print(summary_table(summary))
    console.print(f"roll-outs and summary.json: {wanted.out}")


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: the episodes, what they have in common (kept in ``settings.json``), and where they go."""

    planned: tuple[Planned, ...]
    settings: dict[str, Any]
    out: Path

    def folder(self, episode: Planned) -> Path:
        """Where one episode goes."""
        return self.out / f"episode_{episode.index:04d}"


def run_evaluation(rig: RigConfig, wanted: Evaluation, console: Console) -> dict[str, Any]:
    """Run the episodes that are not on disk yet; gives the summary over all, also written to ``summary.json``.

    Raises:
        VigilError: the rig does not start (again), or the folder belongs to another evaluation.
    """
    require_simulation(rig, "evaluation")
    bundle = bundle_of(rig)
    settings = {**wanted.settings, "bundle_hash": bundle.content_hash}
    ledger = Ledger(wanted.out, settings, may_change=("episodes",))
    done = {e["index"] for e in ledger.episodes}
    left = [p for p in wanted.planned if p.index not in done]
    if left:
        _run(rig, wanted, left, ledger, bundle, console)
    chosen = {p.index for p in wanted.planned}
    counted = [e for e in ledger.episodes if e["index"] in chosen]
    summary = {**settings, **summarise(counted)}
    replace_text(wanted.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _run(
    rig: RigConfig, wanted: Evaluation, left: list[Planned], ledger: Ledger, bundle: Bundle, console: Console
) -> None:
    settings, recordings = wanted.settings, wanted.out / "recordings"
    cameras = [camera.name for camera in rig.cameras] if settings["images"] else []
    derived = derive_rig(
        rig,
        wanted.out,
        record={"directory": str(recordings), "images": "jpeg" if settings["images"] else "none"},
        **({} if settings["hold"] else {"monitor": {"hold_on": []}}),
        **({"sim": {"latency": settings["latency"]}} if settings.get("latency") else {}),
    )
    calibration = camera_calibration_hash(rig, bundle.spec.cameras)
    parameters: Parameters = {"monitor": {"uncalibrated": True}} if settings["uncalibrated"] else {}
    options = Options(lockstep=settings["speed"] == "max")
    with (
        Session(derived, options, wanted.out / "log", console, parameters) as session,
        progress_bar(console) as progress,
    ):

        def once(episode: Planned) -> dict[str, Any]:
            folder = wanted.folder(episode)
            clear(recordings, folder.name)
            recording, outcome, reason = drive(session.client, episode, settings["hold"])
            session.check()
            about = {"seed": episode.seed, "perturbation": episode.perturbation, "outcome": outcome}
            about |= {"termination_reason": reason, "camera_calibration_hash": calibration}
            return keep(recording, rig, folder, about, cameras, bundle.spec.image_size)

        bar = progress.add_task(
            "episodes", total=len(wanted.planned), completed=len(wanted.planned) - len(left)
        )
        for episode in left:
            result = attempt(partial(once, episode), session, wanted.folder(episode), episode)
            ledger.add({"index": episode.index, **result})
            good = sum(e["outcome"] == "success" for e in ledger.episodes)
            progress.update(
                bar, advance=1, description=f"episodes ({good} of {len(ledger.episodes)} succeeded)"
            )


def attempt(
    once: Callable[[], dict[str, Any]], session: Session, folder: Path, episode: Planned
) -> dict[str, Any]:
    """One episode; repeated once on a rig brought up anew if the system broke; then it counts as a failure.

    Raises:
        VigilError: the rig does not come up again.
    """
    errors = []
    while len(errors) < 2:
        try:
            return {**once(), "errors": errors}
        except VigilError as error:
            errors.append(str(error))
            session.recover(error)
    about = Episode(
        rig=session.rig.name, task=session.rig.task, seed=episode.seed, perturbation=episode.perturbation,
        outcome="failure", termination_reason="system_error", duration_s=0.0, errors=errors,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (ARRAYS_FILE, EPISODE_FILE, RECORDING_FILE):
        (folder / stale).unlink(missing_ok=True)
    # Not under the roll-outs' file name: without ticks it is none.
    replace_text(folder / "error.json", about.model_dump_json(indent=2) + "\n")
    return about.model_dump(mode="json")


def drive(client: RigClient, episode: Planned, hold: bool) -> tuple[Path, str, str]:
    """One episode of the policy; gives its recording, outcome and termination reason.

    Raises:
        VigilError: a node is missing, refuses, or stands still.
    """
    new_scene(client, episode.seed, episode.perturbation)
    client.start_episode(f"episode_{episode.index:04d}")
    try:
        engage(client)
        outcome, reason = wait_for_end(client, Resumer(hold_on_alarm=hold))
    except BaseException:
        client.end_quietly()
        raise
    return Path(client.end_episode(outcome, reason)), outcome, reason


def keep(
    recording: Path, rig: RigConfig, folder: Path, about: dict[str, Any], cameras: list[str], image_size: int
) -> dict[str, Any]:
    """Move a recording to its episode's folder and write the roll-out beside it; gives what ``episode.json`` holds.

    ``rig`` is the one that was asked for: its ``monitor.hold_on`` says which verdicts are alarms.

    Raises:
        VigilError: the recording lacks something, or the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = recording.replace(folder / RECORDING_FILE)
        recording.with_suffix(".json").replace(folder / RECORDING_FACTS)
    except OSError as error:
        raise VigilError(f"cannot keep {recording} in {folder}: {error}") from None
    source = Recording(kept, rig)
    rollout = make_rollout(
        source.timeline(),
        source.topic("policy/evidence"),
        source.joints(),
        rig.columns,
        {camera: source.frames(camera) for camera in cameras},
        image_size,
        {"rig": rig.name, "task": rig.task, **about},
    )
    save_rollout(folder, rollout)
    return rollout.episode.model_dump(mode="json")


def summary_table(summary: dict[str, Any]) -> Table:
    """Rates by perturbation, as a table for the terminal."""
    table = Table(title=f"{summary['rig']}: {summary['successes']} of {summary['n']} episodes succeeded")
    table.add_column("perturbation", no_wrap=True)
    headings = ("n", "success", "95 %", "alarms if\nsuccess", "alarms if\nfailure", "first\nalarm")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in [*summary["per_perturbation"].items(), ("all", summary)]:
        table.add_row(
            name,
            str(row["n"]),
            _percent(row["success_rate"]),
            f"{100 * row['wilson_low']:.0f}–{_percent(row['wilson_high'])}",
            _percent(row["alarm_rate_on_success"]),
            _percent(row["alarm_rate_on_failure"]),
            "–" if row["mean_detection_s"] is None else f"{row['mean_detection_s']:.1f} s",
        )
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
