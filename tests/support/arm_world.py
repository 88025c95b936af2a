"""The arm's controller among healthy inputs, in front of hardware that goes where its controller says; without ROS."""

from __future__ import annotations

import numpy as np

from vigil.arm.clutch import Mode, OperatorCommand
from vigil.arm.controller import ArmController
from vigil.arm.curves import SECOND
from vigil.arm.tracking import Chunk
from vigil.sim.controllers import JointTrajectoryController, Point

TICK = SECOND // 100
BEGIN = 1_000 * SECOND
HORIZON, STEP_DT = 16, 0.05


class World:
    """Healthy inputs at their usual rates, and hardware that goes where its controller says."""

    def __init__(self, rig, lockstep=False):
        self.arm = ArmController(rig, lockstep=lockstep)
        self.names = self.arm.columns.names
        self.home = np.array([rig.arm.home[name] for name in self.names])
        self.hardware = JointTrajectoryController(self.names, self.home)
        self.now = BEGIN
        self.silent: set[str] = set()
        self.offset = np.zeros(8)  # measured minus desired, as by gravity or a hand
        self.chunks_go_to = self.home + 0.3 * (np.arange(8) < 7)
        self.device, self.mode = self.home, Mode.ABSOLUTE
        self.deadman = self.hand_back = False
        self.verdict, self.alarm = "NOMINAL", False
        self.commands = []
        self.plans = []

    @property
    def measured(self):
        return self.hardware.sample(self.now)[0] + self.offset

    def chunk(self, **changes):
        """From where the arm is towards the goal at constant speed, seen 100 ms ago."""
        start = self.arm.commanded
        way = np.clip(self.chunks_go_to - start, -0.4, 0.4)
        positions = start + way * np.linspace(0, 1, HORIZON)[:, None]
        values = {
            "stamp": self.now - SECOND // 10,
            "names": self.names,
            "step_dt": STEP_DT,
            "horizon": HORIZON,
            "positions": positions.ravel(),
        }
        return Chunk(**{**values, **changes})

    def operator(self, **changes):
        values = {
            "stamp": self.now,
            "deadman": self.deadman,
            "mode": self.mode,
            "names": self.names,
            "positions": self.device,
            "request_hand_back": self.hand_back,
        }
        return OperatorCommand(**{**values, **changes})

    def feed(self):
        count = (self.now - BEGIN) // TICK
        arm, silent = self.arm, self.silent
        if "joint_states" not in silent:
            arm.on_joint_states(self.now, self.names, self.measured, self.now)
        if count % 3 == 0:
            for camera in ("wrist", "scene"):
                if camera not in silent:
                    arm.on_camera(camera, self.now)
        if count % 20 == 0 and "chunk" not in silent:
            arm.on_chunk(self.chunk(), self.now)
        if count % 20 == 0 and "monitor" not in silent:
            arm.on_monitor(self.now - SECOND // 10, self.verdict, self.alarm, "", self.now)
        if count % 5 == 0 and "operator" not in silent:
            arm.on_operator(self.operator(), self.now)

    def step(self, ticks=1):
        for _ in range(ticks):
            self.feed()
            plan = self.arm.tick(self.now)
            self.plans.append(plan)
            if plan is not None:
                self.send(plan)
            self.commands.append(self.hardware.sample(self.now + TICK)[0])
            self.now += TICK
        return self

    def send(self, plan):
        points = [
            Point(round(ahead * 1e9), position, velocity)
            for ahead, position, velocity in zip(plan.times, plan.positions, plan.velocities, strict=True)
        ]
        self.hardware.accept(self.names, points, plan.stamp, self.now)

    def engage(self):
        answer = self.arm.engage(self.now)
        assert answer.granted, answer.message
        return self

    def take_over(self):
        self.deadman = True
        if self.arm.on_operator(self.operator(), self.now):
            self.respond()
        return self

    def respond(self):
        """As the node does when the authority changed between two ticks."""
        plan = self.arm.respond(self.now)
        if plan is not None:
            self.send(plan)

    def assert_inside(self):
        columns, sent = self.arm.columns, np.array(self.commands)
        assert (sent >= columns.lower - 1e-12).all() and (sent <= columns.upper + 1e-12).all()
        for order, limit in ((1, columns.velocity), (2, columns.acceleration), (3, columns.jerk)):
            rate = np.abs(np.diff(sent, order, axis=0)) / 0.01**order
            assert (rate <= limit * (1 + 1e-6)).all(), (
                f"derivative {order}: {(rate / limit).max()} of its limit"
            )


class Lagging(World):
    """Hardware whose measured pose is 20 ms behind its commands, as a real arm's is."""

    @property
    def measured(self):
        return self.commands[-2] if len(self.commands) > 1 else super().measured


class Slow(World):
    """Hardware that is 80 ms behind."""

    @property
    def measured(self):
        return self.commands[-8] if len(self.commands) > 8 else super().measured


BROKEN = {
    "nan": {"positions": np.full(HORIZON * 8, np.nan)},
    "inf": {"positions": np.full(HORIZON * 8, np.inf)},
    "huge": {"positions": np.full(HORIZON * 8, 1e9)},
    "names": {"names": ("a", "b", "c", "d", "e", "f", "g", "h")},
    "shape": {"positions": np.zeros(5)},
    "horizon": {"horizon": 3},
    "step": {"step_dt": -1.0},
    "future": {"stamp": BEGIN * 2},
}
