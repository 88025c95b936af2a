"""The command line: every subcommand exists, help is quick, errors are one line."""

import inspect
import resource
import subprocess
import sys
from importlib import import_module

import pytest
from typer.testing import CliRunner

from vigil import cli
from vigil.errors import VigilError


def vigil(*arguments, **kwargs):
    code = "import sys; from vigil.cli import main; sys.argv[0] = 'vigil'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_exists_and_explains_itself(name):
    module, function = cli.COMMANDS[name].function.split(":")
    assert inspect.getdoc(getattr(import_module(module), function)), "its docstring is its help"
    result = CliRunner().invoke(cli.build_app(name), [name, "--help"])
    assert result.exit_code == 0, result.output


def test_help_names_every_subcommand_without_importing_them():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = vigil("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert all(f" {name} " in result.stdout for name in cli.COMMANDS)
    # Processor time: on a machine without other work the same as what a person waits.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_help_needs_neither_ros_nor_numpy():
    code = (
        "import sys; from vigil.cli import build_app; build_app(None)\n"
        "print(sorted({'rclpy', 'numpy', 'pydantic', 'mujoco', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def fail():
        """Fail."""
        raise VigilError("the rig file x is missing: name another")

    monkeypatch.setattr(cli, "_load", lambda command: fail)
    monkeypatch.setattr(sys, "argv", ["vigil", "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the rig file x is missing: name another\n"


def test_what_plain_setup_leaves_out_is_told_with_its_extra(monkeypatch, capsys):
    def fail():
        """Fail."""
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "_load", lambda command: fail)
    monkeypatch.setattr(sys, "argv", ["vigil", "train"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "this needs torch" in (said := capsys.readouterr().err)
    assert ".[train]" in said


def test_an_unknown_subcommand_is_refused():
    result = vigil("fly")
    assert result.returncode == 2
    assert "fly" in result.stderr
    assert "Traceback" not in result.stderr
