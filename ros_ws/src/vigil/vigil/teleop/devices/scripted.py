"""The simulator's expert as an operator, through the same topic as any person."""

from __future__ import annotations

import numpy as np

from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.sim import scene
from vigil.sim.appearance import decode
from vigil.sim.expert import Expert
from vigil.teleop.device import Device, DeviceOptions, Mode, Reading, Surroundings
from vigil.teleop.operator import ScriptedOperator


class ScriptedDevice(Device):
    """Takes over without a jump: until it is given control, it commands the measured pose.

    Raises:
        VigilError: the rig has other joints than the simulated robot.
    """

    name = "scripted"

    def __init__(self, rig: RigConfig, options: DeviceOptions) -> None:
        columns = rig.arm.columns
        if set(columns) != set(scene.COLUMNS):
            raise VigilError(
                f"the scripted operator drives {', '.join(scene.COLUMNS)}, rig {rig.name} has {', '.join(columns)}: "
                "choose another teleop device"
            )
        self._to_expert = [columns.index(name) for name in scene.COLUMNS]
        self._from_expert = [scene.COLUMNS.index(name) for name in columns]
        self._operator = ScriptedOperator(options.on_alarm, options.reaction)
        self._expert = Expert()
        self._period = options.period
        self._driving = False

    def set_active(self, active: bool) -> str:
        self._operator.ask(active)
        return ""

    def poll(self, now: float, around: Surroundings) -> Reading:
        act = self._operator.step(now, around)
        if not act.deadman or around.measured is None or around.world is None:
            self._driving = False
            return Reading(False, None, Mode.ABSOLUTE, act.hand_back)
        if not act.drive:
            self._driving = False
            return Reading(True, around.measured, Mode.ABSOLUTE)
        measured = around.measured[self._to_expert]
        if not self._driving:
            self._expert.start(measured[:7])
            self._driving = True
        half = decode(around.world.appearance).get("object_half")
        command = self._expert.command(
            measured, around.world.qpos, None if half is None else np.array(half), self._period
        )
        return Reading(True, np.asarray(command)[self._from_expert], Mode.ABSOLUTE)

    @property
    def state(self) -> str:
        return self._operator.phase.value
