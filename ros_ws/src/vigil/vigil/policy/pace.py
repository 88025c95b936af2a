"""How often the policies of a rig look at the world in lock step, where frames that nobody reads are not drawn."""

from __future__ import annotations

import math

from vigil.errors import VigilError
from vigil.policy.spec import read_spec
from vigil.rig import RigConfig


def frame_period(rig: RigConfig) -> float:
    """[s] between two frames: the policy's period, or a part of it that hits every observation of a history."""
    periods = {round(rig.policy.period * 1e9)}
    for task in rig.tasks:
        try:
            spec = read_spec(rig.bundle_path(task))
        except VigilError:
            continue  # the policy node refuses it, and says why
        if spec.observation_steps > 1:
            periods.add(round((spec.observation_dt or spec.step_dt) * 1e9))
    return math.gcd(*periods) / 1e9
