"""What robots report of themselves, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vigil.rig import ArmConfig

FRANKA_STOPPED = {4: "a reflex stopped it", 5: "the user stop is pressed"}
"""``franka_msgs/FrankaRobotState.robot_mode``, where the robot does not move on its own accord."""


@dataclass(frozen=True)
class Report:
    """One status of ``diagnostic_msgs/DiagnosticArray``; ``failed``: its level is ERROR or STALE."""

    name: str
    failed: bool
    message: str


class DiagnosticFaults:
    """Joins the statuses that concern one arm into one fault: it has one as long as one of them has failed."""

    def __init__(self, arm: ArmConfig) -> None:
        self._beginnings = arm.diagnostics
        self._failed: dict[str, str] = {}

    def update(self, reports: Iterable[Report]) -> str | None:
        """The fault in words, empty if there is none; None if no report concerns the arm."""
        concerned = False
        for report in reports:
            if not report.name.startswith(self._beginnings):
                continue
            concerned = True
            if report.failed:
                self._failed[report.name] = report.message
            else:
                self._failed.pop(report.name, None)
        if not concerned:
            return None
        return "; ".join(f"{name}: {message}" for name, message in self._failed.items())


def franka_fault(mode: int, errors: Sequence[str]) -> str:
    """The fault of a Franka in ``mode`` with the named ``errors``; empty if it can move."""
    if mode not in FRANKA_STOPPED:
        return ""
    return FRANKA_STOPPED[mode] + (f" ({', '.join(errors)})" if errors else "")
