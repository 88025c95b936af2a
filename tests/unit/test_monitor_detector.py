"""Verdicts: online as offline, alarms on failures, nothing nominal about broken evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.monitor_rollouts import CARTESIAN, HASH, make_rollouts
from vigil.monitor.calibrate import Recipe, build_detector, fit_scores, split_rollouts
from vigil.monitor.detector import (
    ALARM,
    BENIGN_OOD,
    NOMINAL,
    OUT_OF_RANGE,
    STALE,
    UNCERTAIN,
    Channel,
    Detector,
)
from vigil.monitor.evaluate import (
    METHODS,
    compare,
    first_alarm,
    measure,
    to_csv,
    trivial_rows,
)
from vigil.monitor.evaluate import (
    test_cases as make_cases,
)
from vigil.monitor.features import Evidence, rollout_features
from vigil.monitor.score import ACTION, OBSERVATION, Score
from vigil.record.rollout import Rollout


def evidence_of(rollout: Rollout, tick: int) -> Evidence:
    return Evidence(
        stamp=float(rollout.stamps[tick]),
        tick=int(rollout.tick[tick]),
        bundle_hash=HASH,
        sampler="ddim",
        sampler_steps=10,
        names=rollout.names,
        step_dt=rollout.step_dt,
        embedding=rollout.embedding[tick],
        k=rollout.k,
        horizon=rollout.horizon,
        samples=rollout.samples[tick].ravel(),
    )


@pytest.fixture(scope="module")
def fitted():
    episodes = [rollout_features(r, CARTESIAN)[0] for r in make_rollouts(40, seed=1)]
    names = sorted({name for clauses in METHODS.values() for clause in clauses for name in clause})
    return fit_scores(episodes, names, split_rollouts(40, 0.1, seed=0))


@pytest.fixture(scope="module")
def shared(fitted) -> Detector:
    return build_detector(fitted, Recipe(delta=0.1), CARTESIAN)


@pytest.fixture
def detector(shared) -> Detector:
    shared.reset()
    return shared


def test_failures_are_found_and_successes_left_alone(fitted):
    tests = make_rollouts(60, seed=2) + make_rollouts(40, seed=3, failing=True)
    cases = make_cases(tests, [rollout_features(r, CARTESIAN) for r in tests])
    rows = {row.method: row for row in compare(fitted, CARTESIAN, cases, list(METHODS), Recipe(delta=0.1))}
    assert rows["fiper"].tpr >= 0.9
    assert rows["fiper"].tnr >= 0.9 - 2 * np.sqrt(0.1 * 0.9 / 60) - 0.05
    assert rows["fiper"].detection_time < rows["clock"].detection_time
    for trivial in ("always", "never"):
        assert rows[trivial].accuracy == rows[trivial].timewise_accuracy == 0.5
    assert len(to_csv(list(rows.values())).splitlines()) == len(METHODS) + 3


def test_figures_by_hand():
    tests = make_rollouts(2, seed=2) + make_rollouts(2, seed=3, failing=True)
    cases = make_cases(tests, [rollout_features(r, CARTESIAN) for r in tests])
    row = measure("hand", 0.1, cases, lambda case: 59 // 2 if case is cases[2] else None)
    assert (row.tpr, row.tnr, row.accuracy) == (0.5, 1.0, 0.75)
    assert row.detection_time == pytest.approx(29 / 59)
    assert row.timewise_accuracy == pytest.approx((0.5 * (1 - 29 / 59) + 1) / 2)
    assert np.isnan(trivial_rows([c for c in cases if not c.failed])[0].tpr)


def test_online_agrees_with_offline(fitted, detector):
    rollout = make_rollouts(1, seed=5, failing=True)[0]
    for chosen in (
        detector,
        build_detector(fitted, Recipe(delta=0.1, clauses=METHODS["rnd+overlap"]), CARTESIAN),
    ):
        offline = chosen.judge(rollout_features(rollout, CARTESIAN)[0])
        online = [chosen.update(evidence_of(rollout, t)) for t in range(len(rollout))]
        np.testing.assert_allclose([s.scores for s in online], offline.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([s.windowed for s in online], offline.windowed, rtol=1e-4, atol=1e-5)
        assert [s.verdict for s in online] == offline.verdict.tolist()
        assert online[-1].alarm


def test_the_alarm_is_latched_until_reset(detector):
    failing, good = make_rollouts(1, seed=6, failing=True)[0], make_rollouts(1, seed=7)[0]
    statuses = [detector.update(evidence_of(failing, t)) for t in range(len(failing))]
    first = next(i for i, s in enumerate(statuses) if s.verdict == ALARM)
    assert all(s.alarm == (i >= first) for i, s in enumerate(statuses))
    assert "rnd" in statuses[first].reason
    assert "ace" in statuses[first].reason
    assert detector.stale(0.0, 0, "silence").alarm, "a gap does not clear an alarm"
    detector.reset()
    assert not detector.update(evidence_of(good, 0)).alarm


def test_an_alarm_is_not_remembered_where_the_caller_says_so(detector):
    failing = make_rollouts(1, seed=6, failing=True)[0]
    statuses = [detector.update(evidence_of(failing, t), latch=False) for t in range(len(failing))]
    assert any(s.verdict == ALARM for s in statuses)
    assert not any(s.alarm for s in statuses)


class Scripted(Score):
    """Gives out what a test wrote into the embedding."""

    def __init__(self, name: str, kind: str, column: int) -> None:
        super().__init__()
        self.name, self.kind, self.column = name, kind, column

    def score(self, features):
        return features.embedding[:, self.column].astype(float)


def scripted(*rows: tuple[float, float], clauses=(("o", "a"),)) -> list[int]:
    channels = [
        Channel(Scripted("o", OBSERVATION, 0), 1, np.array([1.0]), 1.0),
        Channel(Scripted("a", ACTION, 1), 1, np.array([1.0]), 1.0),
    ]
    detector = Detector(channels, clauses, CARTESIAN, out_of_range_ticks=3)
    rollout = make_rollouts(1, seed=8)[0]
    verdicts = []
    for tick, row in enumerate(rows):
        embedding = np.array(row, np.float32)
        verdicts.append(detector.update(replace(evidence_of(rollout, tick), embedding=embedding)).verdict)
    return verdicts


def test_every_verdict():
    low, high = 0.5, 2.0
    assert scripted((low, 0.6), (high, low), (low, high), (high, 3.0)) == [
        NOMINAL,
        BENIGN_OOD,
        UNCERTAIN,
        ALARM,
    ]
    always = [(high, low)] * 4
    assert scripted(*always) == [BENIGN_OOD, BENIGN_OOD, OUT_OF_RANGE, OUT_OF_RANGE]
    assert scripted((low, 0.6), *always)[1:] == [BENIGN_OOD] * 4, "not since the start"
    assert scripted(*always, (low, 0.6), *always)[5:] == [BENIGN_OOD] * 4
    assert scripted((high, low), (high, low), (high, 3.0)) == [BENIGN_OOD, BENIGN_OOD, ALARM]
    assert scripted((high, low), (low, high), clauses=(("o",), ("a",))) == [ALARM, ALARM]


FLAWS = {
    "nan embedding": lambda e: replace(e, embedding=np.full_like(e.embedding, np.nan)),
    "one inf": lambda e: replace(e, embedding=np.r_[np.inf, e.embedding[1:]].astype(np.float32)),
    "empty embedding": lambda e: replace(e, embedding=np.empty(0, np.float32)),
    "constant embedding": lambda e: replace(e, embedding=np.zeros_like(e.embedding)),
    "nan sample": lambda e: replace(e, samples=np.where(np.arange(e.samples.size) == 3, np.nan, e.samples)),
    "short samples": lambda e: replace(e, samples=e.samples[:-1]),
    "no samples": lambda e: replace(e, samples=np.empty(0, np.float32), k=0),
    "identical samples": lambda e: replace(e, samples=np.tile(e.samples[: e.samples.size // e.k], e.k)),
    "one sample": lambda e: replace(e, samples=e.samples[: e.samples.size // e.k], k=1),
    "missing joint": lambda e: replace(e, names=("x", "y", "q", "gripper")),
    "bad step": lambda e: replace(e, step_dt=np.nan),
    "bad stamp": lambda e: replace(e, stamp=np.inf),
    "old stamp": lambda e: replace(e, stamp=e.stamp - 10),
    "same stamp": lambda e: replace(e, stamp=e.stamp - 0.2, tick=e.tick + 5),
    "same tick": lambda e: replace(e, tick=e.tick - 1),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flawed_evidence_is_stale_and_leaves_the_windows_alone(detector, flaw):
    rollout = make_rollouts(1, seed=9)[0]
    for t in range(5):
        before = detector.update(evidence_of(rollout, t))
    status = detector.update(FLAWS[flaw](evidence_of(rollout, 5)))
    assert status.verdict == STALE, status.reason
    assert status.reason
    after = detector.update(evidence_of(rollout, 5))
    assert after.verdict != STALE
    assert np.all(after.windowed <= before.windowed + after.scores + 1e-6)


def test_a_restarted_policy_is_judged_afresh(detector):
    rollout = make_rollouts(1, seed=9)[0]
    for t in range(10):
        detector.update(evidence_of(rollout, t))
    status = detector.update(replace(evidence_of(rollout, 10), tick=0))
    np.testing.assert_allclose(status.windowed, status.scores)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(0, 4),
    horizon=st.integers(0, 4),
    size=st.integers(0, 70),
    dim=st.sampled_from([0, 1, 32]),
    value=st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 1e38]),
    names=st.sampled_from([("x", "y", "z", "gripper"), (), ("x",)]),
)
def test_fuzzed_evidence_never_raises_and_is_never_nominal(shared, k, horizon, size, dim, value, names):
    shared.reset()
    good = make_rollouts(1, seed=9)[0]
    evidence = replace(
        evidence_of(good, 0),
        k=k,
        horizon=horizon,
        names=names,
        embedding=np.full(dim, value, np.float32),
        samples=np.full(size, value, np.float32),
    )
    assert shared.update(evidence).verdict != NOMINAL


def test_first_alarm_counts_ticks_over_segments(detector):
    failing, good = make_rollouts(1, seed=6, failing=True)[0], make_rollouts(1, seed=7)[0]
    cases = make_cases(
        [failing], [[rollout_features(good, CARTESIAN)[0], rollout_features(failing, CARTESIAN)[0]]]
    )
    alone = make_cases([failing], [rollout_features(failing, CARTESIAN)])
    find = first_alarm(detector)
    assert find(alone[0]) is not None
    if find(make_cases([good], [rollout_features(good, CARTESIAN)])[0]) is None:
        assert find(cases[0]) == find(alone[0]) + len(good)
