"""The import rules hold, and a violation of each is caught."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vigil.rig import root

LINT = Path(sys.executable).with_name("lint-imports")
PACKAGE = root() / "ros_ws" / "src" / "vigil" / "vigil"


def lint(folder):
    """Check the package ``vigil`` that lies in ``folder``, with the rules of pyproject.toml."""
    return subprocess.run(
        [LINT, "--config", root() / "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package's modules without their code: import-linter reads source, and these are its namespaces."""
    folder = tmp_path_factory.mktemp("imports")
    shutil.copytree(PACKAGE, folder / "vigil", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return folder


def test_the_package_keeps_the_rules(copy):
    result = lint(copy)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("arm/envelope.py", "import rclpy", "Only node.py imports ROS"),
        ("run/session.py", "from vigil_msgs.msg import ActionChunk", "Only node.py imports ROS"),
        ("policy/node.py", "from vigil.arm.node import main", "Nobody imports a room's node.py"),
        ("monitor/score.py", "import torch", "Only train imports torch"),
        ("policy/bundle.py", "import vigil.train.config", "Nothing that runs on a robot imports train"),
    ],
)
def test_a_violation_is_caught(copy, module, line, rule):
    path = copy / "vigil" / module
    before = path.read_text()
    path.write_text(
        before.replace("from __future__ import annotations", f"from __future__ import annotations\n{line}", 1)
    )
    try:
        result = lint(copy)
    finally:
        path.write_text(before)
    assert result.returncode == 1
    assert any(rule in text and "BROKEN" in text for text in result.stdout.splitlines()), result.stdout
