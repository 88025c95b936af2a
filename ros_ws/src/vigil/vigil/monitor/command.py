"""``vigil calibrate`` and ``vigil monitor evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from vigil.errors import VigilError
from vigil.monitor.calibrate import (
    Fitted,
    Mode,
    Recipe,
    Style,
    build_detector,
    describe_bound,
    fit_scores,
    split_rollouts,
)
from vigil.monitor.calibration import (
    REPORT,
    Binding,
    Calibration,
    Data,
    ScoreEntry,
    binding_of,
    geometry_of,
    kinematics_of,
    load_calibration,
    load_detector,
    save_calibration,
)
from vigil.monitor.conformal import check_delta
from vigil.monitor.detector import Detector
from vigil.monitor.evaluate import (
    HOLDING,
    METHODS,
    Row,
    by_group,
    compare,
    first_alarm,
    measure,
    test_cases,
    to_csv,
    trivial_rows,
)
from vigil.monitor.features import Features, Kinematics, rollout_features
from vigil.monitor.report import write_report
from vigil.monitor.scores import SCORES
from vigil.policy.bundle import Bundle, load_bundle
from vigil.record.rollout import Rollout, find_rollouts, iter_rollouts, load_episode
from vigil.rig import RigConfig, load_rig

Roots = Annotated[list[Path], typer.Argument(metavar="ROLLOUTS", help="folders that `vigil evaluate` wrote")]
RigOption = Annotated[str, typer.Option("--rig", help="rig of the roll-outs; by default the one they name")]
Delta = Annotated[float, typer.Option(help="largest rate of false alarms on successful episodes")]
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
    folder: Path


def calibrate(
    rollouts: Roots,
    bundle: Annotated[Path, typer.Option(help="the policy bundle that the roll-outs are of")],
    delta: Delta = 0.05,
    method: Annotated[str, typer.Option(help=f"detector: {', '.join(METHODS)}")] = "fiper",
    rig: RigOption = "",
    mode: ModeOption = "joint",
    style: StyleOption = "constant",
    preset: Preset = "small",
    windows: Windows = "",
    seed: Seed = 0,
) -> None:
    """Calibrate a bundle's failure monitor on its own successful roll-outs, and write it into the bundle.

    The roll-outs come from `vigil evaluate RIG --uncalibrated`. Failed ones are left out.
    """
    console = Console()
    recipe = make_recipe(method, delta, mode, style, preset, seed, windows)
    policy = load_bundle(bundle)
    robot = rig_of(rollouts, rig)
    successes = load(rollouts, console, outcomes=("success",))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("fitting scores and thresholds", total=None)
        result = calibrate_bundle(successes, policy, robot, recipe)
        progress.update(task, description="writing the report")
        write_report(result.folder / REPORT, result.calibration, result.detector, result.fitted)
    _print_calibration(console, result)


def calibrate_bundle(successes: Sequence[Rollout], bundle: Bundle, rig: RigConfig, recipe: Recipe) -> Result:
    """Calibrate on successful roll-outs and write ``monitor/`` of the bundle.

    Raises:
        VigilError: roll-outs of another policy, interrupted ones, or too few.
    """
    found = binding_of(bundle, rig)
    for rollout in successes:
        check_rollout(rollout, found)
    geometry = geometry_of(rig)
    kinematics = kinematics_of(geometry)
    split = split_rollouts(len(successes), recipe.delta, recipe.seed)
    needing = [name for name in recipe.names if SCORES[name].least_k > found["k"]]
    if needing:
        raise VigilError(
            f"with K = {found['k']} samples per tick {', '.join(needing)} says nothing: raise policy.samples of rig "
            f"{rig.name} and record again"
        )
    episodes = [only_segment(rollout, kinematics) for rollout in successes]
    fitted = fit_scores(episodes, recipe.names, split, recipe.settings, recipe.seed)
    detector = build_detector(fitted, recipe, kinematics)
    calibration = save_calibration(
        bundle.monitor_path,
        detector,
        lambda sha256: Calibration(
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
            arm=geometry,
            data=Data(
                successes=len(successes),
                fitted=len(split.fit),
                scaled=len(split.scale),
                calibrated=len(split.calibrate),
                seed=recipe.seed,
            ),
            bound=describe_bound(recipe, len(split.calibrate)),
            arrays_sha256=sha256,
        ),
    )
    return Result(calibration, detector, fitted, bundle.monitor_path)


def monitor(
    action: Annotated[str, typer.Argument(help="evaluate: detection rates on roll-outs with known outcome")],
    rollouts: Roots,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="folder with successful roll-outs: every method is calibrated on them and compared"
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="bundle whose shipped monitor is judged; by default the rig's")
    ] = None,
    methods: Annotated[str, typer.Option(help="all, or names with commas between")] = "all",
    delta: Delta = 0.05,
    rig: RigOption = "",
    mode: ModeOption = "joint",
    style: StyleOption = "constant",
    preset: Preset = "small",
    windows: Windows = "",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="folder for monitor.csv")] = None,
) -> None:
    """Measure failure detection on roll-outs: the monitor as shipped, and, with --calibration, every method."""
    if action != "evaluate":
        raise VigilError(f"unknown action {action!r}: there is `vigil monitor evaluate ROLLOUTS`")
    console = Console()
    robot = rig_of(rollouts, rig)
    kinematics = kinematics_of(geometry_of(robot))
    tests = load(rollouts, console, outcomes=("success", "failure"))
    cases = test_cases(tests, [rollout_features(r, kinematics) for r in tests])
    rows: list[Row] = []
    if calibration is None:
        folder = load_bundle(bundle or robot.bundle_path()).monitor_path
        shipped = load_calibration(folder)
        detector = load_detector(folder, shipped)
        for rollout in tests:
            check_rollout(rollout, shipped.binding.model_dump())
        alarms, holds = first_alarm(detector), first_alarm(detector, hold_on=HOLDING)
        rows = [
            measure("as shipped: alarm", shipped.delta, cases, alarms),
            measure("as shipped: alarm or out of range", shipped.delta, cases, holds),
            *trivial_rows(cases),
        ]
        groups = by_group("alarm", shipped.delta, cases, alarms)
        console.print(rows_table("By perturbation", [row for _, row in groups], [name for name, _ in groups]))
    else:
        chosen = list(METHODS) if methods == "all" else methods.split(",")
        recipes = [make_recipe(name, delta, mode, style, preset, seed, windows) for name in chosen]
        names = list(dict.fromkeys(name for recipe in recipes for name in recipe.names))
        successes = load([calibration], console, outcomes=("success",))
        episodes = [only_segment(rollout, kinematics) for rollout in successes]
        split = split_rollouts(len(episodes), delta, seed)
        fitted = fit_scores(episodes, names, split, recipes[0].settings, seed)
        rows = compare(fitted, kinematics, cases, chosen, recipes[0])
    console.print(rows_table("Failure detection (failure is positive)", rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "monitor.csv").write_text(to_csv(rows), encoding="utf-8")
        console.print(f"written: {out / 'monitor.csv'}")


def make_recipe(
    method: str, delta: float, mode: str, style: str, preset: str, seed: int, windows: str = ""
) -> Recipe:
    """A recipe from what was typed.

    Raises:
        VigilError: an unknown word; names what is allowed.
    """
    for word, allowed, what in (
        (method, tuple(METHODS), "method"),
        (mode, get_args(Mode), "mode"),
        (style, get_args(Style), "style"),
        (preset, ("small", "fiper"), "preset"),
    ):
        if word not in allowed:
            raise VigilError(f"unknown {what} {word!r}: choose from {', '.join(allowed)}")
    return Recipe(
        delta=check_delta(delta),
        clauses=METHODS[method],
        mode=cast(Mode, mode),
        style=cast(Style, style),
        settings={"rnd": {"preset": "fiper"}} if preset == "fiper" else {},
        windows=parse_windows(windows),
        seed=seed,
    )


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


def load(roots: Sequence[Path], console: Console, outcomes: tuple[str, ...]) -> list[Rollout]:
    """Roll-outs with one of the outcomes, without images, with a progress bar.

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


def rig_of(roots: Sequence[Path], given: str) -> RigConfig:
    """The rig given, or the one that the roll-outs name.

    Raises:
        VigilError: they name none, or several.
    """
    if given:
        return load_rig(given)
    names = {load_episode(folder).rig for folder in find_rollouts(roots)} - {""}
    if len(names) != 1:
        said = "name no rig" if not names else f"are of several rigs: {', '.join(sorted(names))}"
        raise VigilError(f"the roll-outs {said}: say which with --rig")
    return load_rig(names.pop())


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


def rows_table(title: str, rows: Sequence[Row], labels: Sequence[str] | None = None) -> Table:
    """The figures of some detectors, or groups."""
    table = Table(title=title)
    table.add_column("perturbation" if labels else "method")
    for column in ("delta", "fail/succ", "TPR", "TNR", "accuracy", "TWA", "DT"):
        table.add_column(column, justify="right")
    for label, row in zip(labels or [row.method for row in rows], rows, strict=True):
        figures = (row.tpr, row.tnr, row.accuracy, row.timewise_accuracy, row.detection_time)
        table.add_row(
            label,
            _figure(row.delta),
            f"{row.failures}/{row.successes}",
            *(_figure(value) for value in figures),
        )
    return table


def _print_calibration(console: Console, result: Result) -> None:
    calibration, split = result.calibration, result.fitted.split
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
        f"{calibration.data.successes} successful roll-outs: {len(split.fit)} to fit, {len(split.scale)} to scale, "
        f"{n} to calibrate (these support delta >= {1 / (n + 1):.3g})."
    )
    console.print(f"Bound: {calibration.bound}.")
    console.print(f"written: {result.folder} (open {REPORT})")


def _figure(value: float) -> str:
    return f"{value:.2f}" if value == value else "-"
