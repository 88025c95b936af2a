"""How one episode is run over a live rig: new scene, recording, control given away, the end, the recording closed.

Collecting, evaluating and demonstrating are made of these steps. They call services and wait for topics of the rig;
everything that is measured is read afterwards from the recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vigil.errors import VigilError
from vigil.rig import RigConfig

if TYPE_CHECKING:
    from vigil.run.client.node import RigClient

READY_S = 20.0  # longest wait for the rig to accept control after a new scene, wall time
RESUMES = 3  # how often an arm that held for another reason than an alarm is given back to the policy
AT_HOME = 0.03  # [rad, m] how far from home the arm may be measured in a new scene
STILL_S = 15.0  # simulated time that does not advance for so long (wall time) means that something hangs


def require_simulation(rig: RigConfig, what: str) -> None:
    """VigilError unless ``rig`` is simulated: scenes, perturbations and the task's truth come from the simulation."""
    if rig.sim is None:
        raise VigilError(
            f"{what} needs a simulation, and rig {rig.name} has no `sim` section: use a simulated rig"
        )


def clear(folder: Path, name: str) -> None:
    """Remove what an attempt that did not count has left of the recording ``name``: its id is to be free again."""
    for path in folder.glob(f"{name}.*"):
        path.unlink(missing_ok=True)


def new_scene(client: RigClient, seed: int, perturbation: str = "none", disturbance: float = 0.0) -> None:
    """Take control from whoever has it, make a new scene, and wait until the whole rig has seen it.

    Raises:
        VigilError: a node is missing or refuses.
    """
    arm = client.wait_until(lambda c: c.arm, READY_S, "the arm reports its state")
    if arm.authority_name == "ESTOP":
        client.reset_arm()
    elif arm.authority_name != "HOLD":
        client.hold()
    client.wait_until(lambda c: c.arm.authority_name == "HOLD", READY_S, "the arm holds before the new scene")
    scene = client.reset_sim(seed, perturbation, disturbance)
    client.forget()
    first = client.wait_until(
        lambda c: c.task is not None and c.task.scene == scene and c.task,
        READY_S,
        f"the simulation shows scene {scene}",
    )
    begun = _seconds(first.header.stamp)
    home = client.rig.home

    def settled(c: RigClient) -> bool:
        # Later, not at that instant: lock step may show one instant twice, before and after the reset.
        away = max(abs(m - home[name]) for name, m in zip(c.arm.names, c.arm.measured, strict=True))
        return _seconds(c.arm.header.stamp) > begun and c.arm.authority_name == "HOLD" and away < AT_HOME

    client.wait_until(settled, READY_S, "the arm holds at home in the new scene")


def engage(client: RigClient) -> None:
    """Give control to the policy, once it has looked at the present scene.

    Raises:
        VigilError: the arm does not become ready (says what blocks it), or refuses.
    """
    begun = _seconds(client.arm.header.stamp)
    end = time.monotonic() + READY_S

    def ready(c: RigClient) -> bool:
        # A later control state, so that a recording that has just begun holds one from before the change.
        later = _seconds(c.arm.header.stamp) > begun
        return later and c.arm.ready and c.chunk is not None and _seconds(c.chunk.header.stamp) >= begun

    while True:
        try:
            client.wait_until(ready, max(end - time.monotonic(), 0.0), "the rig gets ready for the policy")
        except VigilError as error:
            blocked = client.arm.blocked_by
            raise VigilError(f"{error}; the arm says: {blocked}" if blocked else str(error)) from None
        if client.rig.monitor.level != "none":
            client.reset_monitor()
        try:
            client.engage()
            break
        except VigilError:
            # Readiness is judged afresh at every control tick, and may lapse between the look and the call.
            if time.monotonic() > end:
                raise
    client.wait_until(lambda c: c.arm.authority_name == "POLICY", READY_S, "the policy has control")


def wait_for_end(
    client: RigClient, watch: Callable[[RigClient], str | None] = lambda _: None
) -> tuple[str, str]:
    """Wait until the task succeeded or failed; gives outcome and termination reason.

    Args:
        watch: looked at whenever something was heard; text ends the episode as a failure for that reason.

    Raises:
        VigilError: simulated time stands still; says which node is silent.
    """
    elapsed, advanced = -1.0, time.monotonic()
    while True:
        task = client.task
        if task.success:
            return "success", "task_success"
        if task.failure:
            return "failure", task.failure_reason or "task_failure"
        if reason := watch(client):
            return "failure", reason
        if task.elapsed > elapsed:
            elapsed, advanced = task.elapsed, time.monotonic()
        seen = task.header.stamp

        def news(c: RigClient, seen=seen) -> bool:
            return c.task.header.stamp != seen or watch(c) is not None

        left = advanced + STILL_S - time.monotonic()
        client.wait_until(news, max(left, 0.0), "simulated time advances")


class Resumer:
    """A watch for `wait_for_end`: plays an attentive person who gives a held arm back to the policy.

    A hold by an alarm is never resumed; any other (a late chunk on a busy machine, say) at most `RESUMES` times.
    """

    def __init__(self, hold_on_alarm: bool) -> None:
        """``hold_on_alarm``: a hold by an alarm ends the episode."""
        self._hold_on_alarm = hold_on_alarm
        self._resumed: set[int] = set()  # numbers of the transitions to HOLD that were answered

    def __call__(self, client: RigClient) -> str | None:
        arm = client.arm
        if arm.authority_name == "POLICY":
            return None
        if self._hold_on_alarm and arm.event == "alarm":
            return "held_on_alarm"
        if arm.authority_name != "HOLD" or arm.event == "alarm":
            return None
        if arm.transition in self._resumed:
            return None  # the answer is on its way
        if len(self._resumed) >= RESUMES:
            return f"hold: {arm.reason}"
        if arm.ready:
            with suppress(VigilError):  # readiness lapsed between the look and the call: look again
                client.engage()
                self._resumed.add(arm.transition)
        return None


def _seconds(stamp) -> float:
    return stamp.sec + stamp.nanosec * 1e-9
