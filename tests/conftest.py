"""Every test run has a ROS domain of its own on this host, and leaves no process behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vigil.bringup import dds_environment
from vigil.run.domains import reserve_domain

TESTS = Path(__file__).parent
# Inherited by every process that a test starts, whatever becomes of its parents.
MARK = "VIGIL_TEST_RUN"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything loads DDS: it reads these once."""
    if not os.environ.get("ROS_DOMAIN_ID"):
        domain = reserve_domain()
        config.add_cleanup(domain.release)
        os.environ["ROS_DOMAIN_ID"] = str(domain.number)
    os.environ.update(dds_environment({}, local=True))
    os.environ[MARK] = f"{os.getpid()}"
    for name, value in {"MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}.items():
        os.environ.setdefault(name, value)


def pytest_report_header() -> str:
    return f"ROS_DOMAIN_ID: {os.environ['ROS_DOMAIN_ID']}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the mark."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("graph", "e2e"):
            item.add_marker(getattr(pytest.mark, folder))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill what tests left behind, and fail the run for it."""
    left = _left_behind()
    for pid, command in left:
        print(f"\nleft behind by the tests, now killed: {pid} {command}")
        _kill(pid)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_behind() -> list[tuple[int, str]]:
    """Living processes of this run other than itself and its ancestors: (pid, command line)."""
    mark = f"{MARK}={os.getpid()}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # ended meanwhile, or another user's
        if marked and command:  # a zombie has no command line
            found.append((int(folder.name), command))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return
