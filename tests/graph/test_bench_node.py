"""The policy node alone, as `vigil bench policy` measures it: sources, node and ear over real DDS."""

from __future__ import annotations

import pytest
from rich.console import Console

from support.tiny_bundle import write_tiny_bundle
from vigil.bench.policy import measure_node
from vigil.errors import VigilError
from vigil.rig import load_rig
from vigil.run.session import derive_rig

TICKS = 8


def rig(folder, bundle, **policy):
    settings = {"bundle": str(bundle), "candidates": 4, "period": 0.1, **policy}
    return derive_rig(load_rig("franka_sim"), folder, policy=settings)


def test_every_part_of_a_tick_has_its_time(tmp_path):
    seen = []
    wanted = rig(tmp_path, write_tiny_bundle(tmp_path / "tiny"))
    found = measure_node(wanted, 16, TICKS, tmp_path / "bench", Console(quiet=True), seen.append)
    assert found.samples == 16 and seen[-1] == TICKS
    for timing in (found.chunk, found.evidence, found.complete, found.bare_chunk, found.bare_evidence):
        assert len(timing.seconds) == TICKS and (timing.seconds > 0).all()
    assert (found.evidence.seconds > found.chunk.seconds).all()
    assert (found.chunk.seconds > found.complete.seconds).all()
    assert (found.complete.seconds > found.given.seconds).all() and (found.given.seconds > 0).all()
    # An ordinary machine under tests: the order of magnitude, and that the clocks are of one kind.
    assert found.chunk.median < 100


def test_a_node_that_does_not_start_is_told_with_its_reason(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny", task="pour the tea")
    with pytest.raises(VigilError, match=r"node policy: .*does not fit rig"):
        measure_node(rig(tmp_path, folder), 1, TICKS, tmp_path / "bench", Console(quiet=True))
