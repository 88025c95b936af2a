"""Cost of one control tick, next to a bare clamp of the target into the position limits (what many stacks ship).

    python tests/bench/bench_arm.py

Prints medians over the tick and their ratio. The bound that matters is absolute: a tick of 10 ms has to leave room for
everything else, so the whole step may cost 1 ms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from vigil.arm.adapters.ros2_control import ForwardGripper, JointTrajectory
from vigil.arm.clutch import OperatorCommand
from vigil.arm.columns import Columns
from vigil.arm.controller import ArmController
from vigil.arm.curves import SECOND
from vigil.arm.envelope import Envelope
from vigil.arm.tracking import Chunk
from vigil.rig import load_rig

TICKS = 3000
BOUND = 1e-3


def medians(step: Callable[[int], None]) -> tuple[float, float]:
    """Median and 99th percentile [s] of one call."""
    costs = np.empty(TICKS)
    for i in range(TICKS):
        began = time.perf_counter()
        step(i)
        costs[i] = time.perf_counter() - began
    return float(np.median(costs)), float(np.percentile(costs, 99))


def main() -> int:
    rig = load_rig("franka_sim")
    columns = Columns.of(rig)
    home = np.array([rig.arm.home[name] for name in columns.names])
    still = np.zeros(8)

    def target(i: int) -> np.ndarray:
        return home + 0.3 * np.sin(0.02 * i) * (np.arange(8) < 7)

    def clamp(i: int) -> None:
        np.clip(target(i), columns.lower, columns.upper)

    envelope = Envelope(columns, 0.01)
    envelope.anchor(home)

    def limited(i: int) -> None:
        envelope.track(target(i), still, 0.05)

    controller = ArmController(rig, lockstep=False)
    outlets = (JointTrajectory(rig.arm, slice(0, 8)), ForwardGripper(rig.arm, slice(0, 8)))
    measured = home

    def whole(i: int) -> None:
        nonlocal measured
        now = 1000 * SECOND + i * SECOND // 100
        controller.on_joint_states(now, columns.names, measured, now)
        for camera in ("wrist", "scene"):
            controller.on_camera(camera, now)
        if i % 5 == 0:
            controller.on_operator(OperatorCommand(now, False, 0, (), np.zeros(0)), now)
        if i % 20 == 0:
            positions = np.stack([target(i + 5 * k) for k in range(16)])
            controller.on_chunk(Chunk(now - SECOND // 10, columns.names, 0.05, 16, positions.ravel()), now)
            controller.on_monitor(now, "NOMINAL", False, "", now)
        if i == 20:
            assert controller.engage(now).granted
        plan = controller.tick(now)
        if plan is not None:
            measured = plan.positions[0]
            for outlet in outlets:
                outlet.commands(plan)

    results = {
        "plain clamp": medians(clamp),
        "envelope": medians(limited),
        "whole control step": medians(whole),
    }
    reference = results["plain clamp"][0]
    print(f"{'':20} median [us]  p99 [us]  times a clamp")
    for name, (median, tail) in results.items():
        print(f"{name:20} {median * 1e6:11.1f} {tail * 1e6:9.1f} {median / reference:14.1f}")
    median = results["whole control step"][0]
    print(f"bound: {BOUND * 1e3:.0f} ms; the control step takes {median / BOUND:.0%} of it")
    return 0 if median <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
