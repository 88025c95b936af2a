"""Driving the simulated cell in a plain loop, without ROS."""

from __future__ import annotations

import numpy as np

from vigil.sim import scene
from vigil.sim.controllers import NS, JointTrajectoryController, Point
from vigil.sim.expert import Expert
from vigil.sim.physics import CONTROL_PERIOD, Simulation

PERIOD = round(CONTROL_PERIOD * NS)
STEP_DT = 0.05  # [s] between the operator's commands


class Operator:
    """The scripted expert at 20 Hz, its targets tracked by the trajectory controller at 100 Hz."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.expert = Expert()
        self.take_over()

    def take_over(self) -> None:
        """Begin, or begin anew, at the measured pose."""
        measured = self._simulation.positions
        self.expert.start(measured[:7])
        self._controller = JointTrajectoryController(scene.ARM_JOINTS, measured[:7])
        self._now = 0
        self.commands: list[np.ndarray] = []

    def drive(self, seconds: float, until=lambda status: status.success or status.failure) -> None:
        """Work for ``seconds`` of simulated time, or until the task's status satisfies ``until``."""
        simulation, end = self._simulation, self._simulation.time + seconds
        while simulation.time < end - 1e-9 and not until(simulation.status):
            if self._now % round(STEP_DT * NS) == 0:
                half = simulation.appearance.get("object_half")
                command = self.expert.command(simulation.positions, simulation.qpos, half, STEP_DT)
                self.commands.append(command)
                points = [Point(round(STEP_DT * NS), command[:7])]
                self._controller.accept(scene.ARM_JOINTS, points, 0, self._now)
            self._now += PERIOD
            simulation.step(*self._controller.sample(self._now), self.commands[-1][7])


def stay(simulation: Simulation, seconds: float, width: float = scene.MAX_WIDTH) -> None:
    """Hold the arm at home."""
    for _ in range(round(seconds / CONTROL_PERIOD)):
        simulation.step(scene.HOME, np.zeros(7), width)
