"""Device ``web`` as a browser has it: how soon a hand is commanded, and how soon it is let go, whatever the reason.

    .venv/bin/python tests/bench/bench_web.py [--times 100] [--seed 0]

The real teleop node at 50 Hz with the default timeout, a simulated robot's joint states, and browsers on the same machine. Times
are from the event in the browser to the receipt of the first command that shows it, over real DDS; for a browser that falls
silent or vanishes that is the time for which the arm still believes in its hand. About three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from sensor_msgs.msg import JointState
from vigil_msgs.msg import TeleopCommand

from support.live_node import Graph, graph, process, wait_for
from support.rigs import real_rig
from support.web import Browser, free_port
from vigil.bringup import dds_environment
from vigil.joints import joint_sources, raw_width
from vigil.node import SENSOR, nanoseconds, to_stamp
from vigil.rig import RigConfig
from vigil.run.domains import reserve_domain

NAMESPACE = "bench_web"
HELD = 0.3  # [s] on average, before a hand lets go
MOST = 8  # browsers that watch
WINDOW = 10.0  # [s]
TICK = os.sysconf("SC_CLK_TCK")


class Robot:
    """A robot that stands: its joint states at 100 Hz."""

    def __init__(self, client: Graph, rig: RigConfig) -> None:
        said = {
            **rig.home,
            rig.arm.gripper_column: raw_width(rig.arm.gripper, rig.home[rig.arm.gripper_column]),
        }
        self._topics = [
            (client.node.create_publisher(JointState, source.topic, SENSOR), source.joints,
             [said[column] for column in source.columns])
            for source in joint_sources(rig)
        ]  # fmt: skip
        client.node.create_timer(0.01, self._tell)

    def _tell(self) -> None:
        for topic, names, positions in self._topics:
            message = JointState(name=names, position=positions)
            message.header.stamp = to_stamp(time.time_ns())
            topic.publish(message)


class Heard:
    """The commands: when they were made, and when the deadman in them changed as they came [s]."""

    def __init__(self, client: Graph) -> None:
        self.deadman, self.times = False, []
        client.node.create_subscription(TeleopCommand, "teleop/command", self._on, SENSOR)

    def _on(self, message: TeleopCommand) -> None:
        self.times.append(nanoseconds(message.header.stamp) / 1e9)
        if message.deadman != self.deadman:
            self.changed = time.monotonic()
            self.deadman = message.deadman

    def after(self, act: Callable[[], object], held: bool) -> float | None:
        """[s] from the act to the first command that shows it; None if it does not come."""
        begun = time.monotonic()
        act()
        while self.deadman != held:
            if time.monotonic() - begun > 1.0:
                return None
            time.sleep(0.0005)
        return self.changed - begun


def hold(browser: Browser, heard: Heard) -> float:
    """Hold the deadman; [s] to the first command. On a busy machine it may have to be pressed anew."""
    while True:
        browser.do(deadman=False)
        wait_for(lambda: not heard.deadman)
        time.sleep(0.15)
        # At once, as the page does, and not with the next state.
        if (took := heard.after(lambda: browser.tell(deadman=True), True)) is not None:
            return took


def measure(port: int, heard: Heard, times: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """[s] by what was done."""
    ways = {
        "lets go": lambda browser: browser.tell(deadman=False),
        "connection ends": Browser.vanish,
        "falls silent": lambda browser: setattr(browser, "mute", True),
    }
    found: dict[str, list[float]] = {"holds": [], **{way: [] for way in ways}}
    for way, act in track([item for item in ways.items() for _ in range(times)]):
        browser = Browser(port)
        browser.drive()
        found["holds"].append(hold(browser, heard))
        time.sleep(rng.uniform(0.5, 1.5) * HELD)
        if heard.deadman:  # a busy machine may have let go already
            took = heard.after(lambda act=act, browser=browser: act(browser), False)
            found[way].append(np.inf if took is None else took)
        browser.close()
    return found


def loop(pid: int, heard: Heard) -> tuple[float, float]:
    """(jitter of the commands [s], cores that the node uses) in a while."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    first, before = len(heard.times), used()
    time.sleep(WINDOW)
    return float(np.diff(heard.times[first:]).std()), (used() - before) / WINDOW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    domain = reserve_domain()
    os.environ.update(dds_environment({}, local=True), ROS_DOMAIN_ID=str(domain.number))
    console, rng = Console(), np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rig = real_rig(folder, {"device": "web", "rate": 50, "port": free_port()})
        with (
            graph(NAMESPACE) as client,
            process("vigil.teleop.node", "teleop", NAMESPACE, folder / "log", rig=rig.path) as node,
        ):
            robot, heard = Robot(client, rig), Heard(client)
            assert client.configure("teleop") and client.activate("teleop"), robot
            wait_for(lambda: len(heard.times) > 50)
            found = measure(rig.teleop.port, heard, arguments.times, rng)
            alone = loop(node.pid, heard)
            browsers = [Browser(rig.teleop.port) for _ in range(MOST)]
            browsers[0].drive()
            crowded = loop(node.pid, heard)
            for browser in browsers:
                browser.close()

    table = Table(title=f"event to command [ms], seed {arguments.seed}")
    for column in ("the browser", "n", "median", "99 %", "longest"):
        table.add_column(column, justify="left" if column == "the browser" else "right")
    for way, seconds in found.items():
        values = 1e3 * np.array(seconds)
        table.add_row(
            way, str(len(values)), *(f"{x:.0f}" for x in (*np.quantile(values, (0.5, 0.99)), values.max()))
        )
    console.print(table)
    limit = rig.watchdogs.operator
    late = sum(seconds > limit for way, all_ in found.items() if way != "holds" for seconds in all_)
    console.print(f"let go later than watchdogs.operator ({limit:g} s): {late}")
    for what, (jitter, cores) in (("no browser", alone), (f"one drives, {MOST - 1} watch", crowded)):
        console.print(
            f"{what}: jitter of the commands {1e3 * jitter:.2f} ms, {cores:.2f} cores, {WINDOW:g} s at 50 Hz"
        )


if __name__ == "__main__":
    main()
