"""``vigil calibrate``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vigil.errors import VigilError
from vigil.monitor.calibrate import (
    Fit,
    Fitted,
    Mode,
    Recipe,
    Split,
    build_detector,
    describe_bound,
    fit_scores,
    split_rollouts,
)
from vigil.monitor.calibration import (
    FIPER_FOLDER,
    REPORT,
    Binding,
    Calibration,
    Data,
    ScoreEntry,
    binding_of,
    geometry_of,
    save_calibration,
)
from vigil.monitor.compare import DEFAULT_METHOD, METHODS
from vigil.monitor.conformal import InsufficientCalibration, check_delta
from vigil.monitor.detector import Detector
from vigil.monitor.features import Kinematics
from vigil.monitor.inputs import check_rollout, load, only_segment, rig_of
from vigil.monitor.parity import Style
from vigil.monitor.report import write_report
from vigil.monitor.scores import SCORES
from vigil.policy.bundle import Bundle, load_bundle
from vigil.record.rollout import Rollout
from vigil.rig import RigConfig

Roots = Annotated[list[Path], typer.Argument(metavar="ROLLOUTS", help="folders that `vigil evaluate` wrote")]
RigOption = Annotated[str, typer.Option("--rig", help="rig of the roll-outs; by default the one they name")]
Delta = Annotated[float, typer.Option(help="largest rate of false alarms on successful episodes")]
FitOption = Annotated[
    str,
    typer.Option(
        help="cross: roll-outs are scored by fits on the others; split: by one fit on some; auto: cross if possible"
    ),
]
ModeOption = Annotated[
    str, typer.Option(help="joint: the alarm itself is calibrated; separate: every score is")
]
StyleOption = Annotated[str, typer.Option(help="thresholds: constant, band, or (separate only) per_step")]
Seed = Annotated[int, typer.Option(help="of the split and of random networks")]
Preset = Annotated[str, typer.Option(help="size of the rnd networks: small, or fiper (as published)")]
Windows = Annotated[
    str, typer.Option(help="ticks summed by score, as rnd=3,ace=15; a score left out has its window chosen")
]


@dataclass(frozen=True)
class Result:
    """A finished calibration."""

    calibration: Calibration
    detector: Detector
    fitted: Fitted
    split: Split
    folder: Path


def calibrate(
    rollouts: Roots,
    bundle: Annotated[Path, typer.Option(help="the policy bundle that the roll-outs are of")],
    delta: Delta = 0.05,
    method: Annotated[str, typer.Option(help=f"detector: {', '.join(METHODS)}")] = DEFAULT_METHOD,
    rig: RigOption = "",
    sampler: Annotated[str, typer.Option(help="of the bundle; its first by default")] = "",
    fit: FitOption = "auto",
    mode: ModeOption = "joint",
    style: StyleOption = "constant",
    preset: Preset = "small",
    windows: Windows = "",
    seed: Seed = 0,
    fiper: Annotated[bool, typer.Option(help="calibrate FIPER beside it, for `monitor.level: fiper`")] = True,
) -> None:
    """Calibrate a bundle's failure monitor on its own successful roll-outs, and write it into the bundle.

    The roll-outs come from `vigil evaluate RIG --uncalibrated`, at the speed at which the rig will run: a policy that
    answers at once does not move as one that takes its time. Failed ones are left out.
    """
    console = Console()
    recipe = make_recipe(method, delta, fit, mode, style, preset, seed, windows)
    policy = load_bundle(bundle, sampler or None)
    successes = load(rollouts, console, outcomes=("success",))
    robot = rig_of(successes, rig)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        wanted = [(policy.monitor_path, recipe)]
        beside = policy.monitor_path / FIPER_FOLDER
        if beside.is_dir():
            shutil.rmtree(beside)  # of the calibration before
        if fiper and recipe.clauses != METHODS["fiper"].clauses:
            wanted.append((beside, METHODS["fiper"].recipe(replace(recipe, fit=fit))))
        for folder, chosen in wanted:
            progress.update(task, description=f"fitting {', '.join(chosen.names)}")
            try:
                result = calibrate_bundle(successes, policy, robot, chosen, folder)
            except InsufficientCalibration as error:
                if folder == policy.monitor_path:
                    raise
                console.print(f"[yellow]FIPER was not calibrated beside it:[/] {error}")
                continue
            write_report(folder / REPORT, result.calibration, result.detector, result.fitted, result.split)
            _print_calibration(console, result)


def calibrate_bundle(
    successes: Sequence[Rollout], bundle: Bundle, rig: RigConfig, recipe: Recipe, folder: Path
) -> Result:
    """Calibrate on successful roll-outs and write the calibration into ``folder``.

    Raises:
        VigilError: roll-outs of another policy, interrupted ones, or too few.
    """
    found = binding_of(bundle, rig)
    for rollout in successes:
        check_rollout(rollout, found)
    geometry = geometry_of(rig)
    kinematics = Kinematics(geometry)
    split = split_rollouts(len(successes), recipe)
    needing = [name for name in recipe.names if SCORES[name].least_k > found["k"]]
    if needing:
        raise VigilError(
            f"with K = {found['k']} samples per tick {', '.join(needing)} says nothing: raise policy.samples of rig "
            f"{rig.name} and record again"
        )
    episodes = [only_segment(rollout, kinematics) for rollout in successes]
    fitted = fit_scores(episodes, recipe.names, recipe, split)
    detector = build_detector(fitted, recipe, split, kinematics)
    calibration = save_calibration(
        folder,
        detector,
        lambda files: Calibration(
            binding=Binding(**found),
            delta=recipe.delta,
            mode=recipe.mode,
            style=recipe.style,
            clauses=recipe.clauses,
            scores=tuple(
                ScoreEntry(
                    name=channel.name,
                    kind=channel.score.kind,
                    window=channel.window,
                    settings=channel.score.settings.model_dump(mode="json"),
                )
                for channel in detector.channels
            ),
            out_of_range_ticks=recipe.out_of_range_ticks,
            end_effectors=geometry,
            data=Data(
                fit=recipe.fitting,
                successes=len(successes),
                fitted=len(split.fit),
                scaled=len(split.scale),
                calibrated=len(split.calibrate),
                seed=recipe.seed,
            ),
            bound=describe_bound(recipe, len(split.calibrate)),
            files=files,
        ),
    )
    return Result(calibration, detector, fitted, split, folder)


def make_recipe(
    method: str, delta: float, fit: str, mode: str, style: str, preset: str, seed: int, windows: str = ""
) -> Recipe:
    """A recipe from what was typed.

    Raises:
        VigilError: an unknown word; names what is allowed.
    """
    for word, allowed, what in (
        (method, tuple(METHODS), "method"),
        (fit, get_args(Fit), "fit"),
        (mode, get_args(Mode), "mode"),
        (style, get_args(Style), "style"),
        (preset, ("small", "fiper"), "preset"),
    ):
        if word not in allowed:
            raise VigilError(f"unknown {what} {word!r}: choose from {', '.join(allowed)}")
    base = Recipe(
        delta=check_delta(delta),
        fit=cast(Fit, fit),
        mode=cast(Mode, mode),
        style=cast(Style, style),
        settings={"rnd": {"preset": "fiper"}} if preset == "fiper" else {},
        seed=seed,
    )
    # What was typed goes before what the method brings.
    recipe = METHODS[method].recipe(base)
    return replace(recipe, windows={**recipe.windows, **parse_windows(windows)})


def parse_windows(text: str) -> dict[str, int]:
    """``rnd=3,ace=15`` as a mapping; VigilError names the part that cannot be read and the scores there are."""
    windows: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, width = part.strip().partition("=")
        if name not in SCORES or not width.isdigit() or int(width) < 1:
            raise VigilError(
                f"--windows has {part.strip()!r}: write SCORE=TICKS with at least 1 tick and a score among "
                f"{', '.join(sorted(SCORES))}"
            )
        windows[name] = int(width)
    return windows


def _print_calibration(console: Console, result: Result) -> None:
    calibration, split = result.calibration, result.split
    table = Table(title=f"Monitor of bundle {calibration.binding.bundle_hash[:12]}…")
    for column in ("score", "kind", "window [ticks]", "threshold", "out-of-range threshold"):
        table.add_column(column, justify="left" if column in ("score", "kind") else "right")
    for channel in result.detector.channels:
        low, high = channel.threshold.min(), channel.threshold.max()
        threshold = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        table.add_row(
            channel.name, channel.score.kind, str(channel.window), threshold, f"{channel.single:.4g}"
        )
    console.print(table)
    n = len(split.calibrate)
    console.print(
        f"{calibration.data.successes} successful roll-outs ({calibration.data.fit}): {len(split.fit)} to fit, "
        f"{len(split.scale)} to scale, {n} to calibrate (these support delta >= {1 / (n + 1):.3g})."
    )
    console.print(f"Bound: {calibration.bound}.")
    console.print(f"written: {result.folder} (open {REPORT})")
