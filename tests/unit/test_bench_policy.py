"""What the benchmark of the policy makes of what it heard."""

import numpy as np
import pytest
from rich.console import Console

from support.sampler_bundle import write_sampler_bundle
from support.tiny_bundle import write_tiny_bundle
from vigil.bench import commands, graph
from vigil.bench.ticks import SETTLING, Tick, Ticks, interval, node_times, overhead, read_handed_over
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.timing import Timing, interleaved, sampler_timings
from vigil.rig import load_rig
from vigil.run.session import derive_rig

MS = 1_000_000


def ticks(count, chunk_ms=12.0, evidence_ms=30.0, inference_ms=9.0, lost=()):
    heard = Ticks()
    for i in range(count + SETTLING):
        at = 200 * MS * i
        if i in lost:
            continue
        heard.add(Tick(i, at, at + round(chunk_ms * MS), inference_ms / 1e3))
        heard.complete(i, at + round(evidence_ms * MS))
    return heard


def bare(count, encoder=0.002, first=0.005, rest=0.010):
    calls = {"resize": 0.001, "encoder": encoder, "first": first, "rest": rest}
    return {name: np.full(count, value) for name, value in calls.items()}


# Every input comes out of its source after a millisecond.
GIVEN = {200 * MS * i: 200 * MS * i + MS for i in range(100)}


def test_overhead_is_what_the_node_adds_to_the_graph():
    found = node_times(32, ticks(50).counted(), 0.2, bare(50), GIVEN)
    assert (found.given.median, found.chunk.median) == (pytest.approx(1.0), pytest.approx(12.0))
    assert overhead(found.response, found.bare_chunk) == (pytest.approx(4.0), pytest.approx(4.0))
    assert overhead(found.inside, found.bare_chunk) == (pytest.approx(2.0), pytest.approx(2.0))
    assert overhead(found.evidence_response, found.bare_evidence) == (
        pytest.approx(12.0),
        pytest.approx(12.0),
    )
    assert found.complete.median == pytest.approx(3.0) and found.missed == 0


def test_facts_of_the_node_name_the_worst_k_and_what_does_not_fit():
    good = node_times(1, ticks(50, chunk_ms=9.5, inference_ms=8.0).counted(), 0.2, bare(50), GIVEN)
    bad = node_times(32, ticks(50, lost=(20,)).counted(), 0.2, bare(49), GIVEN)
    late = node_times(256, ticks(50, chunk_ms=190.0, evidence_ms=210.0).counted(), 0.2, bare(50), GIVEN)
    said = commands.node_facts([good, bad, late])
    assert said[0].startswith("K = 256 does not fit the rig's period of 200 ms")
    assert said[1].startswith("overhead at 99 %: 4.0 ms at most, with K = 32") and "misses" in said[1]
    assert said[2].startswith("own overhead at 99 %: 2.0 ms at most") and "within 3 ms" in said[2]
    assert "95 % interval 4.0 to 4.0" in said[1], "ticks that are all alike leave no doubt"
    assert "resizing the pictures takes 1.0 ms" in said[3]
    assert len(commands.node_facts([late])) == 2
    console = Console(width=80)
    with console.capture() as shown:
        console.print(commands.chunk_table([good, bad, late], 8), commands.evidence_table([good, bad, late]))
    assert "…" not in shown.get() and "12.0 (12.0)" in shown.get() and "210 (210)" in shown.get()


def test_the_interval_holds_the_true_tail_about_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    added = np.log(
        100
    )  # [ms] 99th percentile of an exponential with a mean of 1 ms; with one of 2 ms it is twice that
    for _ in range(40):
        whole, alone = Timing(rng.exponential(2e-3, 1000)), Timing(rng.exponential(1e-3, 1000))
        low, high = interval(whole, alone)
        held += low <= added <= high
    assert 33 <= held < 41 and 0.2 < high - low < 4


def test_the_last_source_counts(tmp_path):
    for name, text in (("a", "0 5\n10 17\n"), ("b", "0 7\n10 11\n20 21\n")):
        (tmp_path / name).write_text(text)
    assert read_handed_over([tmp_path / "a", tmp_path / "b"]) == {0: 7, 10: 17, 20: 21}


def test_first_ticks_do_not_count_and_missed_ones_do():
    heard = ticks(50, lost=(20, 21))
    counted = heard.counted()
    assert counted[0].number == SETTLING and len(counted) == 48
    assert node_times(32, counted, 0.2, bare(48), GIVEN).missed == 2


def test_ticks_without_evidence_are_not_counted():
    heard = ticks(10)
    heard.add(Tick(99, 0, 1, 0.001))
    heard.complete(1234, 5)  # of a chunk that was never heard
    assert len(heard.counted()) == 10


def test_variants_are_timed_in_turns():
    order = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 5)
    assert order[-10:] == ["a", "b"] * 5 and len(found["a"].seconds) == 5
    assert (Timing(np.array([1.0, 2.0])) + Timing(np.array([3.0, 4.0]))).seconds.tolist() == [4.0, 6.0]
    with pytest.raises(VigilError, match="--rounds is 0"):
        interleaved({}, 0)


def test_a_slower_graph_is_seen_to_be_slower(tmp_path):
    folder = write_sampler_bundle(tmp_path / "several", {"exact": 0.0}, emitted=2)
    runtimes = [PolicyRuntime(load_bundle(folder, name)) for name in ("exact", "stream")]
    for found in sampler_timings(runtimes, (1, 512), 15):
        assert found[512].median > found[1].median > 0


def test_facts_are_told_against_their_bars():
    fixed = {"encoder": 2.0, "sampler, K = 1": 4.0, "sampler, K = 32": 16.0, "32 calls of K = 1": 128.0}
    fixed |= {"torch: encoder": 2.2, "torch: sampler, K = 32": 32.0}
    said = commands.graph_facts({name: Timing(np.array([ms / 1e3])) for name, ms in fixed.items()}, 32)
    assert (
        said[0].startswith("K = 32 costs 3.0 times K = 1, encoder once (within 6)") and "4.0 times" in said[0]
    )
    assert "1/8.0 of 32 single ones" in said[1]
    assert "encoder: the graph is 1.10 times" in said[2] and "misses" in said[2]
    assert "K = 32: the graph is 2.00 times" in said[3] and "within" in said[3]


def test_the_bare_graph_has_a_figure_for_every_call_of_a_tick(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    policy = {"bundle": str(bundle), "samples": 16, "candidates": 4, "period": 0.02}
    found = graph.paced(derive_rig(load_rig("franka_sim"), tmp_path, policy=policy), 6)
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("resize", "encoder", "first", "rest"), 6
    )
    assert all(value > 0 for values in found.values() for value in values)
    few = derive_rig(load_rig("franka_sim"), tmp_path, policy={**policy, "samples": 2})
    assert graph.paced(few, 3)["rest"] == [0.0] * 3


@pytest.mark.parametrize("given", ["1,x", "0", "1000", ""])
def test_numbers_of_samples_are_checked(given):
    with pytest.raises(VigilError, match="whole numbers from 1 to 512"):
        commands._numbers(given)
