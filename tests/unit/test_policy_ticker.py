"""What one tick does: memory, streams, real-time chunking and the evidence beside it, without ROS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from support.tiny_bundle import HORIZON, NOISE_GAIN, STEP_DT, write_tiny_bundle
from vigil.arm.curves import SECOND
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.chunks import DECAY, Running
from vigil.policy.observation import Frame, Observation, Rejected
from vigil.policy.runtime import PolicyRuntime
from vigil.policy.ticker import Late, Overtaken, Ticker
from vigil.rig import PolicyConfig, load_rig

STATE = np.linspace(-0.4, 0.4, 8, dtype=np.float32)
START, PERIOD = 1_000 * SECOND, SECOND // 5
STEP = round(STEP_DT * SECOND)
SAMPLES, CANDIDATES = 6, 2


def observation(stamp=START, state=STATE, grey=102):
    frame = np.full((480, 640, 3), grey, np.uint8)
    return Observation(stamp, 0, {"wrist": (Frame(frame),), "scene": (Frame(frame),)}, state)


@pytest.fixture
def make(tmp_path):
    """Tickers of tiny bundles: settings of the rig file first, then what the bundle has."""

    def made(sampler=None, settings=None, delay=None, lead=0.0, **bundle):
        folder = write_tiny_bundle(tmp_path / "tiny", **bundle)
        runtime = PolicyRuntime(load_bundle(folder, sampler))
        chosen = {"samples": SAMPLES, "candidates": CANDIDATES, "period": 0.2, **(settings or {})}
        return Ticker(runtime, PolicyConfig(bundle=str(folder), **chosen), lead, delay)

    return made


def run(ticker, stamp=START, age=0.02, driving=True, **changes):
    """One whole tick: (tick, samples)."""
    tick = ticker.begin(observation(stamp, **changes), driving=driving)
    ticker.sent(tick, age)
    return tick, ticker.finish(tick)


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# The plain case -----------------------------------------------------------------------------------------------


def test_the_chunk_is_one_of_the_first_samples_and_the_others_follow(make):
    ticker = make()
    for number in range(3):
        tick, samples = run(ticker, START + number * PERIOD)
        assert samples.shape == (SAMPLES, HORIZON, 8) and tick.chosen < CANDIDATES and tick.known is None
        assert np.array_equal(samples[tick.chosen], tick.chunk)
    drawn = noise(0, 3 * SAMPLES, HORIZON, 8)[2 * SAMPLES :]
    assert samples == pytest.approx(STATE + NOISE_GAIN * drawn, abs=1e-6), "chunk by chunk from one generator"


def test_after_seeding_the_same_chunks_come_again(make):
    ticker = make()
    first = [run(ticker, START + i * PERIOD)[1] for i in range(2)]
    ticker.seed()
    assert np.array_equal(first, [run(ticker, START + i * PERIOD)[1] for i in range(2)])


def test_what_was_observed_before_control_was_given_makes_no_chunk(make):
    ticker = make()
    ticker.restart(START)
    with pytest.raises(Late, match="before the policy was given control"):
        ticker.begin(observation(START - 1))
    run(ticker, START)


def test_a_chunk_whose_half_is_over_is_not_sent(make):
    ticker = make()
    tick = ticker.begin(observation())
    with pytest.raises(Late, match="half of it is over"):
        ticker.sent(tick, 0.41)
    assert ticker.delay == pytest.approx(0.41), "but its delay counts"


def test_a_tick_that_is_overtaken_by_a_new_beginning_is_begun_again(make):
    ticker = make(memory=True)
    run(ticker, START)
    tick = ticker.begin(observation(START + PERIOD))
    assert tick.encoded.embedding[-1] == 1
    ticker.restart(START + PERIOD)
    with pytest.raises(Overtaken):
        ticker.sent(tick, 0.02)
    assert ticker.begin(observation(START + PERIOD)).encoded.embedding[-1] == 0


def test_a_tick_of_the_time_before_is_gone(make):
    ticker = make()
    tick = ticker.begin(observation())
    ticker.restart(START + 1)
    with pytest.raises(Late) as raised:
        ticker.sent(tick, 0.02)
    assert not isinstance(raised.value, Overtaken)


# Memory and streams -------------------------------------------------------------------------------------------


def test_memory_counts_the_ticks_and_begins_anew(make):
    ticker = make(memory=True)
    assert [run(ticker, START + i * PERIOD)[0].encoded.embedding[-1] for i in range(3)] == [0, 1, 2]
    ticker.restart(START + 3 * PERIOD)
    assert run(ticker, START + 3 * PERIOD)[0].encoded.embedding[-1] == 0


def test_memory_of_a_tick_that_was_thrown_away_does_not_come_back(make):
    ticker = make(memory=True)
    under_way = ticker.begin(observation())
    ticker.restart(START)
    ticker.finish(under_way)
    assert run(ticker)[0].encoded.embedding[-1] == 0


EMITTED = 4  # of 0.05 s: the period of 0.2 s


def test_a_stream_follows_one_candidate_and_agrees_with_its_own_forecast(make):
    ticker = make(emitted=EMITTED)
    chunks, evidence, chosen = [], [], []
    for i in range(6):
        tick, samples = run(ticker, START + i * PERIOD)
        assert samples.shape == (SAMPLES, HORIZON, 8)
        chunks.append(tick.chunk)
        evidence.append(samples)
        chosen.append(tick.chosen)
    assert len(set(chosen)) == 1 and chosen[0] is not None
    for before, after in itertools.pairwise(evidence):
        assert after[:, :-EMITTED] == pytest.approx(before[:, EMITTED:], abs=1e-6), "each of the K goes on"
    assert np.array_equal(chunks[3], evidence[3][chosen[0]])


def test_a_stream_begins_anew_with_control_and_after_a_missing_tick(make):
    ticker = make(emitted=EMITTED)
    last = run(ticker)[0].chunk

    def goes_on(stamp):
        nonlocal last
        chunk = run(ticker, stamp)[0].chunk
        before, last = last, chunk
        return np.allclose(chunk[:-EMITTED], before[EMITTED:], atol=1e-6)

    assert goes_on(START + PERIOD)
    assert not goes_on(START + 3 * PERIOD), "one tick is missing"
    assert goes_on(START + 4 * PERIOD)
    ticker.restart(START + 5 * PERIOD)
    assert not goes_on(START + 5 * PERIOD)
    assert goes_on(START + 6 * PERIOD)


def test_a_streams_steps_stay_due_when_it_says_though_frames_come_a_little_off(make):
    """Step j of the chunk is due at its stamp + j * step_dt: what is told there is the stream at that very instant."""
    exact, jittered = make(emitted=EMITTED), make(emitted=EMITTED)
    off = 0.2 * STEP
    truth = [run(exact, START + i * PERIOD)[0].chunk for i in range(3)]
    for i, shift in enumerate((0, off, -off)):
        tick, _ = run(jittered, START + i * PERIOD + int(shift))
        if shift == 0:
            assert np.array_equal(tick.chunk, truth[i])
        else:
            due = i * PERIOD
            told = START + due + int(shift)
            assert tick.chosen is None
            expected = Running(START + due, STEP_DT, truth[i]).at(told, HORIZON)[0]
            assert tick.chunk == pytest.approx(expected, abs=1e-6)


def test_a_stream_whose_evidence_failed_makes_the_next_anyway(make):
    ticker = make(emitted=EMITTED)
    run(ticker)
    tick = ticker.begin(observation(START + PERIOD))
    ticker.sent(tick, 0.02)
    usual, ticker.runtime.stream = ticker.runtime.stream, lambda *_: (_ for _ in ()).throw(Rejected("nan"))
    with pytest.raises(Rejected):
        ticker.finish(tick)
    ticker.runtime.stream = usual
    tick, samples = run(ticker, START + 2 * PERIOD)
    assert samples.shape == (SAMPLES, HORIZON, 8)


# Real-time chunking -------------------------------------------------------------------------------------------

REAL_TIME = {"sampler": "inpaint", "settings": {"real_time_chunking": True}, "inpaint": True}


def test_a_new_chunk_keeps_what_will_be_over_when_it_arrives(make):
    ticker = make(**REAL_TIME, delay=0.15, lead=0.11)  # 0.26 s: 6 steps
    first, _ = run(ticker)
    tick, _ = run(ticker, START + PERIOD, state=STATE + 1)
    assert first.known is None and (tick.known.weight == 1).sum() == 6
    assert tick.chunk[:6] == pytest.approx(first.chunk[4:10], abs=1e-6), "4 steps later"
    assert tick.chunk[12:] == pytest.approx(np.tile(STATE + 1, (4, 1)), abs=6 * NOISE_GAIN), (
        "and is free at its end"
    )
    between = (tick.chunk[6:12] - STATE).mean(axis=1)
    assert (np.diff(between) > 0).all() and 0 < between[0] < 0.5 < between[-1] < 1


def test_the_delay_is_the_longest_of_the_last_ten(make):
    ticker = make(**REAL_TIME)
    assert ticker.delay == 0.0
    for i, age in enumerate([0.02, 0.09, *[0.03] * 9]):
        run(ticker, START + i * PERIOD, age=age)
    assert ticker.delay == pytest.approx(0.09)
    tick, _ = run(ticker, START + 11 * PERIOD, age=0.03)
    assert (tick.known.weight == 1).sum() == 2, "0.09 s are two steps"
    assert ticker.delay == pytest.approx(0.03), "the long one is forgotten"


def test_the_evidence_stays_free(make):
    ticker = make(**REAL_TIME, delay=0.15)
    run(ticker)
    tick, samples = run(ticker, START + PERIOD, state=STATE + 1)
    assert tick.chosen is None and samples.shape == (SAMPLES, HORIZON, 8)
    assert samples == pytest.approx(np.broadcast_to(STATE + 1, samples.shape), abs=6 * NOISE_GAIN)


def test_nothing_is_kept_unless_the_arm_follows_the_chunks(make):
    ticker = make(**REAL_TIME, delay=0.15)
    run(ticker, driving=False)
    tick, _ = run(ticker, START + PERIOD, driving=False)
    assert tick.known is None and tick.chosen is not None
    ticker.restart(START + 2 * PERIOD)
    assert run(ticker, START + 2 * PERIOD)[0].known is None, "the first chunk under a new authority is free"
    assert run(ticker, START + 3 * PERIOD)[0].known is not None


def test_a_chunk_that_was_not_sent_is_not_gone_on_from(make):
    ticker = make(**REAL_TIME, delay=0.15)
    sent, _ = run(ticker)
    late = ticker.begin(observation(START + PERIOD, state=STATE + 5), driving=True)
    with pytest.raises(Late):
        ticker.sent(late, 0.41)
    tick, _ = run(ticker, START + 2 * PERIOD)
    assert tick.chunk[:3] == pytest.approx(sent.chunk[8:11], abs=1e-6)


def test_after_a_gap_as_long_as_a_chunk_the_next_one_is_free(make):
    ticker = make(**REAL_TIME, delay=0.15)
    run(ticker)
    assert run(ticker, START + 16 * STEP)[0].known is None


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        ({}, "sampler ddim of bundle tiny takes no known targets; none of its samplers does: export"),
        ({"inpaint": True}, "takes no known targets; set policy.sampler to one that does: inpaint"),
        ({"emitted": 4}, "sampler stream .* goes on from its own chunk: turn real_time_chunking off"),
    ],
)
def test_real_time_chunking_needs_a_sampler_that_takes_known_targets(make, bundle, reason):
    with pytest.raises(VigilError, match=reason):
        make(settings={"real_time_chunking": True}, **bundle)


# Settings -----------------------------------------------------------------------------------------------------


def test_overlap_goes_on_with_the_way_that_was_begun(make):
    ticker = make(settings={"selection": "overlap", "candidates": SAMPLES})
    first, _ = run(ticker)
    tick, samples = run(ticker, START + PERIOD)
    apart = ((samples[:, :12] - first.chunk[4:]) ** 2).sum(axis=2) @ DECAY ** np.arange(12)
    assert tick.chosen == apart.argmin() and np.ptp(apart) > 0


def test_a_scorer_that_does_not_work_is_refused_at_the_start(make):
    with pytest.raises(VigilError, match="no_such_module"):
        make(settings={"selection": "no_such_module:f"})


@pytest.mark.parametrize("selection", ["best", "a:b:c", "module:", ":f", "a b:c"])
def test_a_selection_that_is_none_is_refused_by_the_rig_file(selection):
    with pytest.raises(ValueError, match="unknown selection: use first, medoid, overlap, or a scorer"):
        PolicyConfig(bundle="b", selection=selection)


def test_a_streaming_bundle_is_refused_at_another_period(tmp_path):
    rig = load_rig("franka_sim")
    fitting = load_bundle(write_tiny_bundle(tmp_path / "a", emitted=4))
    fitting.check_rig(rig)
    other = load_bundle(write_tiny_bundle(tmp_path / "b", emitted=2))
    with pytest.raises(
        VigilError, match=r"makes 2 steps of 0\.05 s final .* set policy\.period to 0\.1, it is 0\.2"
    ):
        other.check_rig(rig)
