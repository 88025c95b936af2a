"""The policy node by itself over real DDS: from the stamp of an observation to the chunk and the evidence made of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from vigil.bench.ticks import SETTLING, NodeTimes, node_times
from vigil.bringup import Options, dds_environment, environment
from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.run.session import Session, derive_rig
from vigil.run.supervisor import ProcessSpec, Supervisor, last_error

if TYPE_CHECKING:
    from vigil.bench.node import Ear

JOINTS = "joints"  # the source that is no camera
PATIENCE = 3.0  # times the time that ticks should take, after which they count as lost


class PolicyAlone(Session):
    """The policy node of a rig, and no other."""

    def __init__(self, rig: RigConfig, logs: Path, console: Console) -> None:
        super().__init__(rig, Options(record=False), logs, console)
        self.specs = [dataclasses.replace(spec, after=()) for spec in self.specs if spec.room == "policy"]


def measure_node(
    rig: RigConfig,
    samples: int,
    ticks: int,
    folder: Path,
    console: Console,
    advance: Callable[[int], None] = lambda ticks: None,
) -> NodeTimes:
    """What one K costs in the node, and right after it in the bare graph, while cameras and joint states go on.

    Args:
        rig: whose bundle, sampler, threads and period are used.
        samples: K.
        ticks: of the node, and of the bare graph.
        folder: for logs.
        advance: called with the number of ticks so far, of both together.

    Raises:
        VigilError: the node does not start, or stays silent.
    """
    derived = derive_rig(rig, folder, policy={"samples": samples})
    from vigil.bench.node import Ear  # DDS reads its settings when it is loaded

    with Supervisor(_sources(derived), folder / "sources", os.environ) as sources:
        with PolicyAlone(derived, folder / "log", console) as session, Ear(derived) as ear:
            _wait_for_ticks(session, ear, derived, sources, ticks, advance)
            heard = ear.ticks.counted()[:ticks]
        bare = _bare(derived, ticks)
        advance(2 * ticks)
    return node_times(samples, heard, derived.policy.period, bare)


def _sources(rig: RigConfig) -> list[ProcessSpec]:
    """A process per camera, and one for the joint states, each with the DDS profile that it has in a rig."""
    env, local = environment(rig, os.environ), rig.sim is not None
    command = [sys.executable, "-m", "vigil.bench.node", "--rig", str(rig.path), "--part"]
    parts = {camera.name: "camera" for camera in rig.cameras} | {JOINTS: ""}
    return [
        ProcessSpec(
            part, [*command, part], env={**env, **dds_environment(os.environ, local=local, room=room)}
        )
        for part, room in parts.items()
    ]


def _wait_for_ticks(
    session: Session,
    ear: Ear,
    rig: RigConfig,
    sources: Supervisor,
    ticks: int,
    advance: Callable[[int], None],
) -> None:
    until = time.monotonic() + 10.0 + PATIENCE * (ticks + SETTLING) * rig.policy.period
    while (counted := len(ear.ticks.counted())) < ticks:
        session.check()
        for status in sources.statuses():
            if status.exit_code is not None:
                raise VigilError(
                    f"source {status.name} {status.ending()}: {last_error(sources.log(status.name))}"
                )
        if time.monotonic() > until:
            raise VigilError(
                f"the policy node made {counted} of {ticks} chunks: {last_error(session.log('policy')) or 'it said nothing'}; "
                f"see {session.log('policy')}"
            )
        advance(counted)
        time.sleep(0.2)


def _bare(rig: RigConfig, ticks: int) -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", "vigil.bench.graph", "--rig", str(rig.path), "--ticks", str(ticks)]
    env = {**os.environ, **environment(rig, os.environ)}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise VigilError(f"the bare graph could not be run: {said[-1] if said else 'it said nothing'}")
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}
