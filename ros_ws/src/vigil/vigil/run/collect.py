"""``vigil collect``: demonstrations of the scripted operator, through the stack's own teleop topic, arm and recorder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.rig import RigConfig, load_rig
from vigil.run.episodes import READY_S, clear, new_scene, wait_for_end
from vigil.run.ledger import Ledger
from vigil.run.progress import progress_bar
from vigil.run.session import Session, derive_rig

if TYPE_CHECKING:
    from vigil.run.client.node import RigClient

# An expert that fails this often has a broken task; recording on would only fill the disk.
ENOUGH_TO_JUDGE, LOWEST_SUCCESS = 20, 0.5


def collect(
    rig: Annotated[str, typer.Argument(help="name or file of a simulated rig")],
    episodes: Annotated[int, typer.Option(min=1, help="successful demonstrations wanted")] = 200,
    seed: Annotated[int, typer.Option(help="seed of the first scene; the others count up from it")] = 0,
    disturbance: Annotated[
        float, typer.Option(min=0.0, max=0.05, help="noise on executed commands [m], 0 for none")
    ] = 0.010,
    speed: Annotated[str, typer.Option(help="max: as fast as the machine allows; real: real time")] = "max",
    out: Annotated[Path, typer.Option(help="folder for the recordings")] = Path("out/demonstrations"),
) -> None:
    """Record demonstrations of the scripted operator; a stopped run goes on where it was."""
    check_speed(speed)
    record_demonstrations(load_rig(rig), Collection(episodes, seed, disturbance, speed, out), Console())


def check_speed(speed: str) -> None:
    """VigilError unless ``speed`` is one there is."""
    if speed not in ("max", "real"):
        raise VigilError(f"--speed is {speed!r}: choose max (lock step) or real (real time)")


@dataclass(frozen=True)
class Collection:
    """What to collect.

    Attributes:
        episodes: how many successful demonstrations.
        seed: the first scene's seed; the following scenes count up from it.
        disturbance: amplitude [m] of the slow noise on executed commands (DART); the recorded command is the clean one.
        speed: ``max``: lock step; ``real``: paced by the wall clock.
        out: folder for the recordings.
    """

    episodes: int
    seed: int
    disturbance: float
    speed: Literal["max", "real"]
    out: Path


def record_demonstrations(rig: RigConfig, wanted: Collection, console: Console) -> Path:
    """Record demonstrations until ``wanted.episodes`` successful ones are in ``wanted.out``; gives that folder.

    A stopped run goes on where it was. Unsuccessful attempts are noted in ``episodes.jsonl`` and not kept.

    Raises:
        VigilError: the rig does not start, a node is lost for good, or the expert fails too often.
    """
    out = wanted.out.resolve()
    settings = {
        "rig": rig.name,
        "seed": wanted.seed,
        "disturbance": wanted.disturbance,
        "speed": wanted.speed,
    }
    ledger = Ledger(out, settings)
    if successes(ledger) >= wanted.episodes:
        console.print(f"{successes(ledger)} demonstrations are already in {out}")
        return out
    recording_rig = derive_rig(rig, out, record={"directory": str(out), "images": "none"})
    options = Options(mode="collect", lockstep=wanted.speed == "max")
    with (
        Session(recording_rig, options, logs=out / "log", console=console) as session,
        progress_bar(console) as progress,
    ):
        bar = progress.add_task("demonstrations", total=wanted.episodes, completed=successes(ledger))
        while successes(ledger) < wanted.episodes:
            seed = wanted.seed + len(ledger.episodes)
            ledger.add(attempt(session, out, seed, wanted.disturbance))
            progress.update(bar, completed=successes(ledger))
            _check(ledger)
    console.print(f"{successes(ledger)} demonstrations from {len(ledger.episodes)} attempts in {out}")
    return out


def attempt(session: Session, folder: Path, seed: int, disturbance: float) -> dict[str, Any]:
    """One demonstration, repeated once if a node was lost meanwhile; gives its line of the ledger."""

    def once() -> dict[str, Any]:
        clear(folder, recording_name(seed))
        line = demonstrate(session.client, seed, disturbance)
        session.check()
        if line["outcome"] != "success":
            clear(folder, recording_name(seed))
        return line

    try:
        return once()
    except VigilError as error:
        session.recover(error)
        return once()


def demonstrate(client: RigClient, seed: int, disturbance: float) -> dict[str, Any]:
    """One recorded episode of the scripted operator.

    Raises:
        VigilError: a node is missing, refuses, or stands still.
    """
    client.set_operator(False)
    new_scene(client, seed, "none", disturbance)
    client.start_episode(recording_name(seed), operator_id="scripted")
    try:
        client.set_operator(True)
        client.wait_until(lambda c: c.arm.authority_name == "OPERATOR", READY_S, "the operator has control")
        outcome, reason = wait_for_end(client, watch=_lost_control)
        client.set_operator(False)
    except BaseException:
        client.end_quietly()
        raise
    kept = outcome == "success"
    path = Path(client.end_episode("success" if kept else "discarded", reason))
    return {
        "seed": seed,
        "outcome": outcome,
        "termination_reason": reason,
        "file": path.name if kept else None,
    }


def recording_name(seed: int) -> str:
    """Episode id of the demonstration in the scene of ``seed``."""
    return f"demo_{seed:06d}"


def _lost_control(client: RigClient) -> str | None:
    """An operator whom the envelope or a watchdog stopped gives no demonstration."""
    return None if client.arm.authority_name == "OPERATOR" else f"hold: {client.arm.reason}"


def successes(ledger: Ledger) -> int:
    """Demonstrations kept so far."""
    return sum(e["outcome"] == "success" for e in ledger.episodes)


def _check(ledger: Ledger) -> None:
    tried, good = len(ledger.episodes), successes(ledger)
    if tried >= ENOUGH_TO_JUDGE and good < LOWEST_SUCCESS * tried:
        reasons = sorted({e["termination_reason"] for e in ledger.episodes if e["outcome"] != "success"})
        raise VigilError(
            f"only {good} of {tried} demonstrations succeeded ({', '.join(reasons)}): lower --disturbance, "
            f"or look into {ledger.folder / 'log'}"
        )
