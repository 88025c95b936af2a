"""``vigil monitor evaluate`` and ``vigil monitor import-fiper``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vigil.errors import VigilError
from vigil.monitor.calibrate import Recipe
from vigil.monitor.calibrate_command import (
    Delta,
    FitOption,
    ModeOption,
    Preset,
    RigOption,
    Seed,
    StyleOption,
    Windows,
    make_recipe,
)
from vigil.monitor.calibration import load_calibration, load_detector
from vigil.monitor.compare import (
    DEFAULT_METHOD,
    EXCHANGES,
    METHODS,
    FalseAlarms,
    Task,
    compare,
    false_alarms,
    size_curve,
)
from vigil.monitor.evaluate import (
    HOLDING,
    RESAMPLES,
    Row,
    by_group,
    first_alarm,
    measure,
    test_cases,
    to_csv,
    trivial_rows,
)
from vigil.monitor.features import rollout_features
from vigil.monitor.fiper_import import import_fiper_command
from vigil.monitor.inputs import by_task, check_rollout, kinematics_of, load, only_segment, rig_of
from vigil.policy.bundle import load_bundle
from vigil.record.rollout import Rollout

app = typer.Typer(no_args_is_help=True, help="Measure failure detection on roll-outs.")
app.command("import-fiper")(import_fiper_command)


@app.command()
def evaluate(
    rollouts: Annotated[list[Path], typer.Argument(metavar="ROLLOUTS", help="folders of roll-outs")],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="folder with successful roll-outs (may be repeated): every method is calibrated on them and compared"
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="bundle whose shipped monitor is judged; by default the rig's")
    ] = None,
    methods: Annotated[str, typer.Option(help="all, or names with commas between")] = "all",
    curve: Annotated[
        str,
        typer.Option(
            help="methods whose bound and whose need for calibration roll-outs are shown; none to leave it out"
        ),
    ] = DEFAULT_METHOD,
    delta: Delta = 0.05,
    rig: RigOption = "",
    fit: FitOption = "auto",
    mode: ModeOption = "joint",
    style: StyleOption = "constant",
    preset: Preset = "small",
    windows: Windows = "",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="folder for monitor.csv and the pictures")] = None,
) -> None:
    """Figures of failure detection: of the monitor as shipped, and, with --calibration, of every method.

    Intervals are 95 %, by bootstrap over roll-outs. Roll-outs of several tasks give a table each, and their mean.
    """
    console = Console()
    tests = load(rollouts, console, outcomes=("success", "failure"))
    if calibration is None:
        rows = _shipped(console, tests, bundle, rig)
    else:
        chosen = list(METHODS) if methods == "all" else methods.split(",")
        base = make_recipe(DEFAULT_METHOD, delta, fit, mode, style, preset, seed, windows)
        tasks = _tasks(tests, load(calibration, console, outcomes=("success",)), rig)
        rows = _compared(console, tasks, chosen, base, [] if curve == "none" else curve.split(","), out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "monitor.csv").write_text(to_csv(rows), encoding="utf-8")
        console.print(f"written: {', '.join(sorted(path.name for path in out.iterdir()))} in {out}")


def _shipped(console: Console, tests: list[Rollout], bundle: Path | None, rig: str) -> list[Row]:
    robot = rig_of(tests, rig)
    folder = load_bundle(bundle or robot.bundle_path(), robot.policy.sampler).monitor_path
    shipped = load_calibration(folder)
    detector = load_detector(folder, shipped)
    for rollout in tests:
        check_rollout(rollout, shipped.binding.model_dump())
    cases = test_cases(tests, [rollout_features(r, detector.kinematics) for r in tests])
    alarms, holds = first_alarm(detector), first_alarm(detector, hold_on=HOLDING)
    rows = [
        measure("as shipped: alarm", shipped.delta, cases, alarms, resamples=RESAMPLES),
        measure("as shipped: alarm or out of range", shipped.delta, cases, holds, resamples=RESAMPLES),
        *trivial_rows(cases, resamples=RESAMPLES),
    ]
    groups = by_group("alarm", shipped.delta, cases, alarms)
    console.print(rows_table("By perturbation", [row for _, row in groups], [name for name, _ in groups]))
    console.print(rows_table("Failure detection (failure is positive)", rows))
    return rows


def _tasks(tests: list[Rollout], calibration: list[Rollout], rig: str) -> list[Task]:
    successes = by_task(calibration)
    tasks = []
    for name, rollouts in by_task(tests).items():
        if name not in successes:
            raise VigilError(
                f"there are no successful roll-outs of task {name!r} to calibrate on; --calibration has "
                f"{', '.join(map(repr, successes))}"
            )
        kinematics = kinematics_of([*rollouts, *successes[name]], rig)
        tasks.append(
            Task(
                name,
                [only_segment(rollout, kinematics) for rollout in successes[name]],
                test_cases(rollouts, [rollout_features(r, kinematics) for r in rollouts]),
                kinematics,
            )
        )
    return tasks


def _compared(
    console: Console,
    tasks: list[Task],
    methods: list[str],
    base: Recipe,
    curve: list[str],
    out: Path | None,
) -> list[Row]:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        shown = progress.add_task("", total=None)

        def advance(what: str) -> None:
            progress.update(shown, description=what)

        rows, detectors = compare(tasks, methods, base, advance)
        bounds = [row for method in curve for row in false_alarms(tasks, method, base, advance)]
        if out is not None:
            from vigil.monitor import figures  # matplotlib takes a second to load

            out.mkdir(parents=True, exist_ok=True)
            advance("drawing")
            whole = "mean" if len(tasks) > 1 else tasks[0].name
            best = [row for row in rows if row.task == whole]
            figures.accuracy_against_time(out / "accuracy_vs_time.png", best, DEFAULT_METHOD)
            for i, task in enumerate(tasks):
                mine = {method: detectors[task.name, method] for method in methods}
                name = "score_order.png" if len(tasks) == 1 else f"score_order_{i}.png"
                figures.score_order(out / name, task, mine)
            if curve:
                points = {method: size_curve(tasks, method, base, advance=advance) for method in curve}
                figures.sizes(out / "calibration_size.png", points)
    for task in dict.fromkeys(row.task for row in rows):
        title = f"Failure detection, {task} (failure is positive; ± is half of the 95 % interval)"
        console.print(rows_table(title, [row for row in rows if row.task == task]))
    if bounds:
        console.print(_bounds_table(bounds))
    if out is not None and curve:
        console.print(_sizes_table(points))
    return rows


def rows_table(title: str, rows: Sequence[Row], labels: Sequence[str] | None = None) -> Table:
    """The figures of some detectors, or groups."""
    table = Table(title=title)
    table.add_column("perturbation" if labels else "method")
    for column in ("delta", "fail/succ", "TPR", "TNR", "accuracy", "TWA", "DT"):
        table.add_column(column, justify="right")
    for label, row in zip(labels or [row.method for row in rows], rows, strict=True):
        table.add_row(
            label,
            _figure(row.delta),
            f"{row.failures}/{row.successes}",
            *(
                _figure(getattr(row, name), row.intervals.get(name))
                for name in ("tpr", "tnr", "accuracy", "twa", "detection_time")
            ),
        )
    return table


def _bounds_table(bounds: Sequence[FalseAlarms]) -> Table:
    table = Table(title="False alarms on held-out successes like the calibrated ones")
    for column in (
        "task",
        "method",
        "delta",
        "alarms",
        "rate",
        "delta + 2 sigma",
        f"mean of {EXCHANGES} draws",
    ):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    for row in bounds:
        rate = row.alarms / row.successes
        table.add_row(
            row.task,
            row.method,
            f"{row.delta:g}",
            f"{row.alarms} of {row.successes}",
            f"{rate:.1%}",
            f"{row.limit:.1%}",
            f"{row.exchanged:.1%}",
        )
    return table


def _sizes_table(curves: dict) -> Table:
    table = Table(title="TWA (accuracy) by the number of calibration roll-outs, mean over draws and tasks")
    table.add_column("method")
    some = next(iter(curves.values()))
    for point in some:
        table.add_column(f"{point.n} (delta {point.delta:.2g})", justify="right")
    for method, points in curves.items():
        table.add_row(method, *(f"{p.twa.mean():.3f} ({p.accuracy.mean():.3f})" for p in points))
    return table


def _figure(value: float, interval: tuple[float, float] | None = None) -> str:
    if value != value:
        return "-"
    return f"{value:.2f}" if interval is None else f"{value:.2f} ±{(interval[1] - interval[0]) / 2:.2f}"
