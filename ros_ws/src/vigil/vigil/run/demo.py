"""``vigil demo``: four episodes over the live graph in real time, and a report of what happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.policy.bundle import bundle_of
from vigil.rig import RigConfig, load_rig, resolve
from vigil.run import report
from vigil.run.episodes import Resumer, clear, engage, new_scene, require_simulation, wait_for_end
from vigil.run.session import Session, derive_rig
from vigil.run.stories import SCRIPTS, Script, tell, untold
from vigil.run.story import Story

if TYPE_CHECKING:
    from vigil.run.client.node import RigClient

TIME_LIMIT = 40.0  # [s] of one episode, the operator's part included
TAKEOVER_S = 8.0  # how long the demonstration waits for the operator after an alarm [s]
HAND_BACK_S = 6.0  # and for the hand-back after the task is done
ATTEMPTS = 2  # takes of one story
AFTERWARDS_S = 0.6  # of the policy's time after the hand-back that are recorded

NOTES = (
    "Alarm to hold: from the monitor's sending of the alarm to the arm's change of authority. Joint step: largest "
    "difference, over the joints, of the first command after the takeover from the measured pose.",
    "Scores are drawn over their thresholds, on a logarithmic axis. The monitor raises an alarm when all scores of a "
    "clause are above their thresholds at the same tick; one score alone may be a clause. Calibration on successful "
    "episodes bounds false alarms; it bounds no misses.",
    "A story that goes otherwise is played once more, and then says so. This page shows what happens, not how often.",
    "The robot is simulated; the operator is a script that sees the alarm on the topic and uses the simulator's ground "
    "truth. All figures are from the stamps in the recordings beside this page.",
)


def demo(
    rig: Annotated[str, typer.Argument(help="name or file of a simulated rig")] = "franka_sim",
    seed: Annotated[int, typer.Option(help="added to the seed of each scene; 0: the shipped scenes")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for recordings and report")] = None,
) -> None:
    """Four episodes in simulation: nominal, benign shift, and two failures that are caught and saved."""
    console = Console()
    folder = (out or resolve("out") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    stories = run_demo(load_rig(rig), seed, folder, console)
    console.print(result_table(stories))
    console.print(f"report: {folder / 'report.html'}")
    if failed := [f"{s.facts['name']}: {'; '.join(s.problems)}" for s in stories if not s.told]:
        raise VigilError("not every story went as told: " + "\n".join(failed))


def run_demo(rig: RigConfig, seed: int, folder: Path, console: Console) -> list[Story]:
    """Play all scripts and write ``report.json`` and ``report.html`` into ``folder``.

    Raises:
        VigilError: the rig does not start.
    """
    require_simulation(rig, "the demonstration")
    bundle = bundle_of(rig)
    derived = derive_rig(
        rig, folder, record={"directory": str(folder), "images": "jpeg"}, sim={"time_limit": TIME_LIMIT}
    )
    stories = []
    # The scripted operator answers to alarms by itself.
    with Session(derived, Options(), folder / "log", console, {"teleop": {"on_alarm": True}}) as session:
        for number, script in enumerate(SCRIPTS, 1):
            with console.status(f"{number} of {len(SCRIPTS)}: {script.title.lower()}"):
                stories.append(_play(session, script, script.seed + seed, number))
            story = stories[-1]
            mark = "[green]as told[/]" if story.told else "[red]not as told[/]"
            console.print(f"{number} of {len(SCRIPTS)}: {script.title}: {story.facts['outcome']}, {mark}")
            for problem in story.facts["earlier_takes"]:
                console.print(f"   [yellow]take 2[/]; in the first one {problem}")
    about = {
        "title": "Vigil: four episodes, watched",
        "rig": rig.name,
        "task": rig.task,
        "policy": f"{bundle.name} ({bundle.content_hash[:12]})",
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "notes": list(NOTES),
    }
    report.write(folder, stories, about)
    return stories


def _play(session: Session, script: Script, seed: int, number: int) -> Story:
    """One story; played once more if it went otherwise, or, on a rig brought up anew, if the system broke off.

    The policy is good but not perfect, and its calibration grants false alarms: a demonstration shows what the stack does
    when the policy does its part, and says how many takes that took. Rates are what ``vigil evaluate`` is for.
    """
    name, folder = f"{number}_{script.name}", Path(session.rig.record.directory)
    earlier: list[str] = []
    while True:
        try:
            clear(folder, name)
            recording, outcome, reason = drive(session.client, script, seed, name)
            session.check()
            story = tell(script, seed, recording, session.rig, outcome, reason)
            problem = "; ".join(story.problems)
        except VigilError as error:
            problem = f"the episode broke off: {error}"
            session.recover(error)
            story = untold(script, seed, problem)
        if story.told or len(earlier) + 1 == ATTEMPTS:
            story.facts["earlier_takes"] = earlier
            return story
        earlier.append(problem)


def drive(client: RigClient, script: Script, seed: int, name: str) -> tuple[Path, str, str]:
    """One episode, with an operator who answers alarms; gives its recording, outcome and termination reason.

    Raises:
        VigilError: a node is missing, refuses, or stands still.
    """
    client.set_operator(False)
    new_scene(client, seed, script.perturbation)
    client.start_episode(name, operator_id="scripted")
    try:
        engage(client)
        outcome, reason = wait_for_end(client, _Operated(TAKEOVER_S))
        if operated(client):
            if outcome == "success":
                outcome = "intervened_success"
                _await_hand_back(client)
            else:
                client.set_operator(False)
    except BaseException:
        client.end_quietly()
        raise
    return Path(client.end_episode(outcome, reason)), outcome, reason


def operated(client: RigClient) -> bool:
    """An operator had control in this episode."""
    return any(state.authority_name == "OPERATOR" for state in client.transitions)


def _await_hand_back(client: RigClient) -> None:
    def handed_back(c: RigClient) -> bool:
        names = [state.authority_name for state in c.transitions]
        return "POLICY" in names[names.index("OPERATOR") :]

    try:
        client.wait_until(handed_back, HAND_BACK_S, "the operator hands back")
    except VigilError:
        return  # not an error of the system: the story's check reports it
    time.sleep(AFTERWARDS_S)


class _Operated(Resumer):
    """Ends an episode in which an alarm holds the arm and nobody comes."""

    def __init__(self, patience: float) -> None:
        super().__init__(hold_on_alarm=False)
        self._patience = patience
        self._held: float | None = None

    def __call__(self, client: RigClient) -> str | None:
        if client.arm.authority_name != "HOLD" or client.arm.event != "alarm":
            self._held = None
            return None if operated(client) else super().__call__(client)
        self._held = time.monotonic() if self._held is None else self._held
        return "nobody_took_over" if time.monotonic() - self._held > self._patience else None


def result_table(stories: list[Story]) -> Table:
    """The report's summary, for the terminal."""
    table = Table(title="four episodes")
    for column in (
        "episode",
        "outcome",
        "first\nalarm",
        "alarm to\nhold",
        "step at\ntakeover",
        "handed\nback",
    ):
        table.add_column(column, no_wrap=True)
    for story in stories:
        facts = story.facts
        table.add_row(
            facts["name"],
            f"[{'green' if story.told else 'red'}]{facts['outcome']}[/]",
            report.shown(facts["first_alarm_s"], "s", 1),
            report.shown(facts["alarm_to_hold_ms"], "ms", 1),
            report.shown(facts["takeover_joint_step_rad"], "rad", 4),
            "–" if facts["takeover_joint_step_rad"] is None else report.shown(facts["handed_back"]),
        )
    return table
