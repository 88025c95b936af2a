"""Verdicts: online as offline, alarms on failures, nothing nominal about broken evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.monitor_rollouts import CARTESIAN, HASH, make_rollouts
from vigil.errors import VigilError
from vigil.monitor.calibrate import Recipe, build_detector, fit_scores, split_rollouts
from vigil.monitor.compare import DELTAS, METHODS, Task, compare, false_alarms, size_curve
from vigil.monitor.conformal import required
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
from vigil.monitor.evaluate import first_alarm, measure, to_csv, trivial_rows
from vigil.monitor.evaluate import test_cases as make_cases
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


BASE = Recipe(delta=0.1)
QUICK = [name for name in METHODS if not name.startswith("fiper-published")]


@pytest.fixture(scope="module")
def successes():
    return [rollout_features(r, CARTESIAN)[0] for r in make_rollouts(40, seed=5)]


def build(successes, method: str) -> Detector:
    recipe = METHODS[method].recipe(BASE)
    split = split_rollouts(len(successes), recipe)
    return build_detector(fit_scores(successes, recipe.names, recipe, split), recipe, split, CARTESIAN)


@pytest.fixture(scope="module")
def shared(successes) -> Detector:
    return build(successes, "fiper")


@pytest.fixture(scope="module")
def kernel(successes) -> Detector:
    return build(successes, "kernel_dwell")


@pytest.fixture
def detector(shared) -> Detector:
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def task(successes) -> Task:
    tests = make_rollouts(60, seed=2) + make_rollouts(40, seed=3, failing=True)
    return Task(
        "made up", successes, make_cases(tests, [rollout_features(r, CARTESIAN) for r in tests]), CARTESIAN
    )


def test_failures_are_found_and_successes_left_alone(task):
    rows, detectors = compare([task], QUICK, BASE)
    by_name = {row.method: row for row in rows}
    for name in ("fiper", "kernel", "kernel_actions", "kernel_dwell", "kernel+ace"):
        assert by_name[name].tpr >= 0.9, name
        assert by_name[name].tnr >= 0.9 - 2 * np.sqrt(0.1 * 0.9 / 60) - 0.05, name
        assert by_name[name].detection_time < by_name["clock"].detection_time, name
    for trivial in ("always", "never"):
        assert by_name[trivial].accuracy == by_name[trivial].twa == 0.5
    for row in rows:
        for name, (low, high) in row.intervals.items():
            assert low - 1e-9 <= getattr(row, name) <= high + 1e-9 or np.isnan(getattr(row, name))
    assert len(to_csv(rows).splitlines()) == len(QUICK) + 3
    assert set(detectors) == {("made up", name) for name in QUICK}


def test_false_alarms_on_new_successes_are_delta_on_average_over_calibrations():
    """Any one calibration may have more or fewer; leaving one out must not make them too few or too many."""
    sets = [[rollout_features(r, CARTESIAN)[0] for r in make_rollouts(30, seed=s)] for s in range(40, 46)]
    alarms = []
    for i, successes in enumerate(sets):
        detector = build(successes, "kernel")
        fresh = [f for j, other in enumerate(sets) if j != i for f in other[::5]]
        alarms.append(np.mean([detector.judge(f).alarm.any() for f in fresh]))
    assert 0.02 <= np.mean(alarms) <= 0.2, alarms


def test_several_tasks_have_a_mean_row_each(task):
    other = replace(task, name="other", cases=task.cases[30:])
    rows, _ = compare([task, other], ["kernel", "clock"], BASE)
    first, second, mean = (row for row in rows if row.method == "kernel")
    assert (first.task, second.task, mean.task) == ("made up", "other", "mean")
    assert mean.twa == pytest.approx((first.twa + second.twa) / 2)
    assert mean.accuracy == pytest.approx((first.accuracy + second.accuracy) / 2)
    assert mean.intervals["twa"][0] <= mean.twa <= mean.intervals["twa"][1]


def test_few_roll_outs_are_used_at_the_delta_that_they_support(task):
    points = size_curve([task], "kernel", BASE, draws=2)
    assert [point.n for point in points] == [2, 4, 6, 8, 10, 20]
    assert points[0].delta == pytest.approx(1 / 3, abs=1e-3)
    assert points[-1].delta == 0.1
    assert points[-1].twa.mean() - points[4].twa.mean() < 0.1


def test_bounds_are_checked_on_undisturbed_successes_alone(task):
    disturbed = [replace(case, ood=i % 2 == 0) for i, case in enumerate(task.cases)]
    rows = false_alarms([replace(task, cases=disturbed)], "kernel", BASE)
    assert [row.delta for row in rows] == [
        delta for delta in DELTAS if required(delta) <= len(task.calibration)
    ]
    assert {row.successes for row in rows} == {30}, "60 succeeded, every other one undisturbed"
    assert [row.alarms for row in rows] == sorted(row.alarms for row in rows)
    for row in rows:
        assert row.alarms / row.successes <= row.limit and 0.3 * row.delta <= row.exchanged <= 1.3 * row.delta
        assert row.limit == pytest.approx(row.delta + 2 * np.sqrt(row.delta * (1 - row.delta) / 30))


def test_unknown_methods_are_named(task):
    with pytest.raises(VigilError, match="unknown method 'fibber'"):
        compare([task], ["fibber"], BASE)


def test_figures_by_hand():
    tests = make_rollouts(2, seed=2) + make_rollouts(2, seed=3, failing=True)
    cases = make_cases(tests, [rollout_features(r, CARTESIAN) for r in tests])
    row = measure("hand", 0.1, cases, lambda case: 59 // 2 if case is cases[2] else None)
    assert (row.tpr, row.tnr, row.accuracy) == (0.5, 1.0, 0.75)
    assert row.detection_time == pytest.approx(29 / 59)
    assert row.twa == pytest.approx((0.5 * (1 - 29 / 59) + 1) / 2)
    assert np.isnan(trivial_rows([c for c in cases if not c.failed])[0].tpr)


@pytest.mark.parametrize("method", ["fiper", "kernel_dwell", "kernel_actions", "kernel+ace", "overlap"])
def test_online_agrees_with_offline(successes, detector, method):
    rollout = make_rollouts(1, seed=5, failing=True)[0]
    for chosen in (detector if method == "fiper" else build(successes, method),):
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


def test_a_verdict_does_not_flicker_at_the_threshold():
    low, above, near = 0.5, 1.02, 0.95
    verdicts = scripted((near, low), (above, low), (near, low), (above, low), (low, 0.6))
    assert verdicts == [NOMINAL, BENIGN_OOD, BENIGN_OOD, BENIGN_OOD, NOMINAL]
    verdicts = scripted((low, 0.6), (above, 1.03), (near, 0.96), (near, low))
    assert verdicts == [NOMINAL, ALARM, ALARM, BENIGN_OOD]
    # Near is not above: only scores that are above at the same tick raise an alarm.
    assert scripted((low, 0.6), (above, low), (near, above)) == [NOMINAL, BENIGN_OOD, UNCERTAIN]


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
    size=st.one_of(st.integers(0, 70), st.sampled_from([4, 8, 12, 16, 32, 48, 64])),
    dim=st.sampled_from([0, 1, 32]),
    value=st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 1e38]),
    names=st.sampled_from([("x", "y", "z", "gripper"), (), ("x",)]),
)
def test_fuzzed_evidence_never_raises_and_is_never_nominal(
    shared, kernel, k, horizon, size, dim, value, names
):
    good = make_rollouts(1, seed=9)[0]
    evidence = replace(
        evidence_of(good, 0),
        k=k,
        horizon=horizon,
        names=names,
        embedding=np.full(dim, value, np.float32),
        samples=np.full(size, value, np.float32),
    )
    for detector in (shared, kernel):
        detector.reset()
        assert detector.update(evidence).verdict != NOMINAL


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
