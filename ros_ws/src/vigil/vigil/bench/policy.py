"""The policy node by itself over real DDS: from the stamp of an observation to the chunk and the evidence made of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from vigil.bench.ticks import SETTLING, NodeTimes, node_times, read_handed_over
from vigil.bringup import Options, dds_environment, environment
from vigil.errors import VigilError
from vigil.rig import RigConfig
from vigil.run.session import Session, derive_rig
from vigil.run.supervisor import ProcessSpec, Supervisor, last_error

if TYPE_CHECKING:
    from vigil.bench.node import Ear

JOINTS = "joints"  # the source that is no camera
PATIENCE = 3.0  # times the time that ticks should take, after which they count as lost
BARE_PATIENCE = 60.0  # [s] for the start of the bare graph's process, on a loaded machine


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
    """What one K costs in the node, and in the bare graph, which is run half a period after each of the node's ticks.

    So both are measured within the same moments, and neither keeps the other from a core while a tick fits half a period.

    Args:
        rig: whose bundle, sampler, threads and period are used.
        samples: K.
        ticks: of the node, and of the bare graph.
        folder: for logs.
        advance: called with the number of the node's ticks so far.

    Raises:
        VigilError: the node does not start, or stays silent.
    """
    derived = derive_rig(rig, folder, policy={"samples": samples})
    notes = {part: folder / f"{part}.txt" for part in (*(camera.name for camera in rig.cameras), JOINTS)}
    from vigil.bench.node import Ear  # DDS reads its settings when it is loaded

    with (
        Supervisor(_sources(derived, notes), folder / "sources", os.environ) as sources,
        PolicyAlone(derived, folder / "log", console) as session,
        Ear(derived) as ear,
    ):
        wait = partial(_wait_for_ticks, session, ear, derived, sources)
        wait(1)
        with _bare_graph(derived, ticks, ear.ticks.counted()[0].observed) as bare:
            first = len(ear.ticks.counted())
            wait(first + ticks, lambda counted: advance(max(0, counted - first)))
            advance(ticks)
            seconds = _seconds(bare, BARE_PATIENCE + ticks * derived.policy.period)
        heard = ear.ticks.counted()[-ticks:]
    return node_times(samples, heard, derived.policy.period, seconds, read_handed_over(notes.values()))


def _sources(rig: RigConfig, notes: Mapping[str, Path]) -> list[ProcessSpec]:
    """A process per camera, and one for the joint states, each with the DDS profile that it has in a rig, and the file for its notes."""
    env, local = environment(rig, os.environ), rig.sim is not None
    command = [sys.executable, "-m", "vigil.bench.node", "--rig", str(rig.path)]

    def profile(part: str) -> dict[str, str]:
        return dds_environment(os.environ, local=local, room="" if part == JOINTS else "camera")

    return [
        ProcessSpec(part, [*command, "--part", part, "--log", str(note)], env={**env, **profile(part)})
        for part, note in notes.items()
    ]


def _wait_for_ticks(
    session: Session,
    ear: Ear,
    rig: RigConfig,
    sources: Supervisor,
    ticks: int,
    advance: Callable[[int], None] = lambda ticks: None,
) -> None:
    """Until the node has made so many ticks since it was started."""
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


@contextmanager
def _bare_graph(rig: RigConfig, ticks: int, beside: int) -> Iterator[subprocess.Popen[str]]:
    """`vigil.bench.graph` in a process of its own, as the node is; ended with the block."""
    command = [sys.executable, "-m", "vigil.bench.graph", "--rig", str(rig.path)]
    command += ["--ticks", str(ticks), "--beside", str(beside)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ, start_new_session=True, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


def _seconds(bare: subprocess.Popen[str], timeout: float) -> dict[str, np.ndarray]:
    """What it measured."""
    try:
        said, errors = bare.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise VigilError(
            f"the bare graph has not ended after {timeout:.0f} s: does other work slow this machine down?"
        ) from None
    if bare.returncode:
        why = errors.strip().splitlines()
        raise VigilError(f"the bare graph could not be run: {why[-1] if why else 'it said nothing'}")
    return {name: np.array(values) for name, values in json.loads(said).items()}
