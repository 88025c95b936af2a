"""The ``vigil`` command. Every subcommand lives in a module of its own that is imported when it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import typer

from vigil.errors import VigilError


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        function: ``module:function``; its parameters are typer's, its docstring the help. Or a `typer.Typer` of several.
        summary: one line for ``vigil --help``.
        private: runs in a ROS domain of its own unless ROS_DOMAIN_ID is set.
    """

    function: str
    summary: str
    private: bool = False


COMMANDS = {
    "up": Command("vigil.run.up:up", "Bring a rig up and keep it up."),
    "demo": Command(
        "vigil.run.demo:demo", "Four episodes in simulation, and a report of them.", private=True
    ),
    "evaluate": Command(
        "vigil.run.evaluate:evaluate", "Closed-loop episodes: success and alarm rates.", private=True
    ),
    "collect": Command(
        "vigil.run.collect:collect", "Record demonstrations of the scripted expert.", private=True
    ),
    "train": Command("vigil.train.commands:train", "Train a policy bundle from demonstrations."),
    "export": Command(
        "vigil.train.commands:export", "Export a checkpoint, ours or LeRobot's, as a policy bundle."
    ),
    "calibrate": Command(
        "vigil.monitor.calibrate_command:calibrate", "Calibrate the failure monitor of a bundle."
    ),
    "dataset": Command("vigil.record.dataset.commands:app", "Data sets for training, made of recordings."),
    "policy": Command(
        "vigil.sweep.commands:app", "Policy bundles: compare samplers and choose one.", private=True
    ),
    "bench": Command("vigil.bench.commands:app", "What the rig costs on this machine.", private=True),
    "monitor": Command("vigil.monitor.evaluate_command:app", "Measure failure detection on roll-outs."),
}
# Modules that plain set-up leaves out, and the extra of pyproject.toml that brings each.
OPTIONAL = {
    "torch": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "pyrealsense2": "realsense",
    "av": "dataset",
    "h5py": "dataset",
    "pyarrow": "dataset",
    "rerun": "view",
}


def build_app(asked: str | None) -> typer.Typer:
    """The command line. Only the subcommand ``asked`` for is imported; of the others just the summary is known."""
    app = typer.Typer(
        name="vigil",
        help="Puts a learned visuomotor policy on a robot, watches it, holds it, and hands it over.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_callback)
    for name, command in COMMANDS.items():
        if name == asked:
            loaded = _load(command)
            if isinstance(loaded, typer.Typer):
                app.add_typer(loaded, name=name)
            else:
                app.command(name)(loaded)
        else:
            app.command(name, help=command.summary)(_never_called)
    return app


def main() -> None:
    """Run the command line; a VigilError becomes one clear message on stderr and exit code 1."""
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    command = COMMANDS.get(asked or "")
    try:
        if command is not None and command.private and not os.environ.get("ROS_DOMAIN_ID"):
            from vigil.run.domains import reserve_domain

            domain = reserve_domain()  # held until this process ends
            os.environ["ROS_DOMAIN_ID"] = str(domain.number)
        build_app(asked)()
    except VigilError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        print(
            f"error: this needs {error.name}: {sys.executable} -m pip install -e '.[{OPTIONAL[error.name]}]'",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _load(command: Command) -> Callable[..., None] | typer.Typer:
    module, function = command.function.split(":")
    return getattr(import_module(module), function)


def _callback() -> None:
    """Makes typer show subcommands even if there is only one."""


def _never_called() -> None:
    """Stands in ``vigil --help`` for a subcommand that was not asked for."""
