"""Alarms in the middle of motion, and how soon the arm begins to brake, by the stamps in the recordings.

    .venv/bin/python tests/bench/bench_alarms.py [--alarms 200] [--seed 0]

About 3 s each; the monitor's own alarms of interrupted scenes come on top, and are counted as well. The whole simulated rig
runs, with both cameras, policy and monitor; the alarms are sent at random moments on the monitor's own topic, by this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from recorded_commands import Commands, transitions
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from vigil_msgs.msg import FailureStatus

from vigil.bringup import Options
from vigil.errors import VigilError
from vigil.node import EVENTS, to_stamp
from vigil.record.reader import EpisodeReader
from vigil.rig import RigConfig, load_rig
from vigil.run.client.node import RigClient
from vigil.run.episodes import engage, new_scene
from vigil.run.session import Session, derive_rig
from vigil.scheduling import ALARMING, ask_for_priority

ANSWER = 3.0  # [s]
PER_SCENE = 4
AWAY = 0.03  # rad
MOVING = 0.05  # rad/s: a slower arm has nothing to brake


class Alarms:
    """A publisher beside the monitor's own."""

    def __init__(self, rig: RigConfig) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node("bench_alarms", namespace=rig.namespace, context=self._context)
        self._topic = self._node.create_publisher(FailureStatus, "monitor/status", EVENTS)
        ask_for_priority(ALARMING, all_threads=True)  # as the monitor does

    def send(self) -> None:
        """One alarm, now."""
        message = FailureStatus(verdict=FailureStatus.ALARM, verdict_name="ALARM", alarm=True, reason="bench")
        message.header.stamp = to_stamp(time.time_ns())
        self._topic.publish(message)

    def close(self) -> None:
        """Leave the graph."""
        self._node.destroy_node()
        self._context.try_shutdown()


def moved(client: RigClient, start: np.ndarray) -> bool:
    """Whether a joint is away from ``start`` [N]."""
    return bool(np.abs(np.array(client.arm.measured) - start)[:-1].max() > AWAY)


def stop_amid_motion(client: RigClient, alarms: Alarms, rng: np.random.Generator) -> None:
    """Engage, and send an alarm at a random moment after the arm began to move."""
    # A scene that was interrupted looks strange to the monitor: its own alarm may stand, and ends with its windows.
    client.reset_monitor()
    start = np.array(client.arm.measured)
    client.wait_until(lambda c: c.arm.ready, ANSWER, "the rig gets ready")
    engage(client)
    client.wait_until(
        lambda c: moved(c, start) or c.arm.authority_name == "HOLD", ANSWER, "the arm moves or is held"
    )
    time.sleep(rng.uniform(0.0, 0.5))
    alarms.send()
    client.wait_until(lambda c: c.arm.authority_name == "HOLD", ANSWER, "the arm holds")
    time.sleep(0.3)  # so that the recording holds the end of the motion


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--alarms", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    console, rng = Console(), np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # The monitor's own alarms, of scenes that were stopped and begun anew, would mix with these.
        changes = {"record": {"directory": str(folder / "episodes")}, "monitor": {"hold_on": ["ALARM"]}}
        rig = derive_rig(load_rig("franka_sim"), folder, **changes)
        with (
            Session(rig, Options(), folder / "log", console) as session,
            Progress(console=console) as progress,
        ):
            alarms = Alarms(rig)
            shown = progress.add_task("alarms", total=arguments.alarms)
            client, sent, scene = session.client, 0, 0
            while sent < arguments.alarms:
                scene += 1
                new_scene(client, 97_000 + arguments.seed + scene)
                client.start_episode(f"alarms_{scene}")
                for _ in range(PER_SCENE):
                    try:
                        stop_amid_motion(client, alarms, rng)
                    except VigilError:
                        break  # the task is done, or the monitor held the arm by itself: a new scene
                    sent += 1
                    progress.advance(shown)
                client.end_episode("success", "bench")
            alarms.close()
        report(console, rig, sorted((folder / "episodes").rglob("*.mcap")))


def report(console: Console, rig: RigConfig, paths: list[Path]) -> None:
    answers, brakes, slower, ages = [], [], [], []
    for path in paths:
        commands, reader = Commands(path, rig), EpisodeReader(path)
        # The monitor's own alarms count as well; two publishers' messages are not recorded in the order of publication.
        sent = sorted(
            published
            for (_, _, published, _), (_, status) in zip(
                reader.raw(["monitor/status"]), reader.messages("monitor/status"), strict=True
            )
            if status.alarm
        )
        for authority, event, _, made in transitions(path):
            before = [at for at in sent if at <= made]
            if authority != "HOLD" or event != "alarm" or not before:
                continue
            at = int(np.searchsorted(commands.sent, made))
            if at == 0 or commands.speeds[at - 1] < MOVING:
                continue
            raised = before[-1]
            ages.append((made - raised) / 1e6)
            answers.append((commands.first_after(made) - raised) / 1e6)
            # Whoever decelerates already when the alarm comes has nothing to show.
            if commands.speeds[at - 1] >= commands.speeds[max(at - 2, 0)]:
                slower.append((commands.slower_after(made) - raised) / 1e6)
            brakes.append(commands.speeds[at - 1])
    period = 1e3 / rig.control_rate
    table = Table(title=f"{len(answers)} alarms at {np.median(brakes):.2f} rad/s (median), times in ms")
    for column in ("from the alarm's publication", "n", "median", "p99", "most", "period"):
        table.add_column(column, justify="left" if column.startswith("from") else "right")
    for name, values in (
        ("until HOLD", ages),
        ("until the stop was sent", answers),
        ("until a setpoint slower than the last was sent", slower),
    ):
        figures = (np.median(values), np.percentile(values, 99), np.max(values))
        table.add_row(name, str(len(values)), *(f"{figure:.1f}" for figure in figures), f"{period:g}")
    console.print(table)


if __name__ == "__main__":
    main()
