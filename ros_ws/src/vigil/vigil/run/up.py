"""``vigil up``: a rig brought up and kept up until Ctrl-C, with a table of its nodes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vigil.bringup import Options
from vigil.rig import load_rig, resolve
from vigil.run.session import NodeStatus, Session

REFRESH = 0.5  # [s]
STYLES = {"active": "green", "down": "bold red", "inactive": "yellow", "unconfigured": "yellow"}


def up(
    rig: Annotated[str, typer.Argument(help="a rig's name (launch/rigs/NAME.yaml) or a rig file")],
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="simulated time that waits for every node, as fast as it goes")
    ] = False,
    no_record: Annotated[bool, typer.Option("--no-record", help="without the recorder")] = False,
) -> None:
    """Bring a rig up and keep it up: restarts what dies, shows every node, and ends all on Ctrl-C."""
    console = Console()
    config = load_rig(rig)
    if sys.stdin.isatty():
        # Nodes have no stdin; a keyboard device opens this terminal by its name.
        os.environ.setdefault("VIGIL_TTY", os.ttyname(sys.stdin.fileno()))
    logs = resolve("out/logs") / time.strftime("%Y%m%d-%H%M%S")
    try:
        with Session(config, Options(lockstep=lockstep, record=not no_record), logs, console) as session:
            _watch(session, console, logs)
    except KeyboardInterrupt:
        console.print(f"{config.name} is down; its logs are in {escape(str(logs))}")


def _watch(session: Session, console: Console, logs: Path) -> None:
    """Show the nodes until KeyboardInterrupt; without a screen, print only what changes."""
    # A table that is redrawn and a keyboard operator cannot share one terminal.
    if console.is_terminal and session.rig.teleop.device != "keyboard":
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Group(table(session.rig.name, session.statuses()), _hint(logs)), refresh=True)
                time.sleep(REFRESH)
    known: dict[str, NodeStatus] = {}
    console.print(f"{session.rig.name} is up; logs are in {escape(str(logs))}")
    while True:
        for status in session.statuses():
            if status != known.get(status.name):
                known[status.name] = status
                note = f": {escape(status.note)}" if status.note else ""
                console.print(f"{status.name} is {status.state}{note}", soft_wrap=True)
        time.sleep(REFRESH)


def table(name: str, statuses: list[NodeStatus]) -> Table:
    """Nodes and their states, one row each."""
    result = Table(title=name, title_justify="left")
    for column, justify in (
        ("node", "left"),
        ("state", "left"),
        ("pid", "right"),
        ("restarts", "right"),
        ("note", "left"),
    ):
        result.add_column(column, justify=justify)
    for status in statuses:
        result.add_row(
            status.name,
            Text(status.state, style=STYLES.get(status.state, "cyan")),
            str(status.pid or ""),
            str(status.restarts or ""),
            Text(status.note),
        )
    return result


def _hint(logs: Path) -> Text:
    return Text(f"Ctrl-C ends it. Logs: {logs}", style="dim")
