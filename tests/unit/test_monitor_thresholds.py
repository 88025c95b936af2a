"""Windows and conformal thresholds: exact ranks, coverage by simulation, refusal of too little data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.errors import VigilError
from vigil.monitor import conformal
from vigil.monitor.calibrate import InsufficientRollouts, Recipe, calibrate_thresholds, split_rollouts
from vigil.monitor.conformal import InsufficientCalibration
from vigil.monitor.windows import Window, choose_window, windowed

finite = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=80), st.integers(1, 50))
def test_windows_agree_with_the_definition(scores, width):
    naive = [math.fsum(scores[max(0, t - width + 1) : t + 1]) for t in range(len(scores))]
    window = Window(width)
    np.testing.assert_allclose([window.push(s) for s in scores], naive, atol=1e-9)
    np.testing.assert_allclose(windowed(np.array(scores), width), naive, atol=1e-8)


def test_noise_calls_for_a_sum_and_no_window_is_a_clock():
    rng = np.random.default_rng(0)
    noisy = [rng.standard_normal(40) for _ in range(20)]
    assert choose_window(noisy) > 1
    ramps = [np.linspace(0, 1, 40) for _ in range(20)]
    assert choose_window(ramps) <= 20


@given(st.integers(1, 400), st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5]))
def test_the_rank_is_exact_or_refused(n, delta):
    rank = math.ceil((n + 1) * (100 - round(100 * delta)) / 100)
    if rank <= n:
        assert conformal.conformal_rank(n, delta) == rank
    else:
        with pytest.raises(InsufficientCalibration) as error:
            conformal.conformal_rank(n, delta)
        assert error.value.missing == conformal.required(delta) - n > 0
        assert f"{error.value.missing} more" in str(error.value)
    assert conformal.conformal_rank(conformal.required(delta), delta)


def test_known_requirements():
    assert [conformal.required(d) for d in (0.01, 0.05, 0.1, 0.2)] == [99, 19, 9, 4]
    with pytest.raises(InsufficientCalibration, match=r"10 support delta >= 0\.091"):
        conformal.conformal_rank(10, 0.05)
    for delta in (0.0, 1.0, -0.1, 2.0, math.nan):
        with pytest.raises(VigilError):
            conformal.check_delta(delta)


def walks(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Positive score curves of 20 to 30 ticks, one level per roll-out."""
    return [np.abs(rng.normal(1, 0.3, rng.integers(20, 31)) * rng.lognormal(0, 0.3)) for _ in range(n)]


@pytest.mark.parametrize("style", ["constant", "band"])
@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_alarms_on_new_successes_stay_within_delta(mode, style):
    """Over many calibrations the conjunction alarms on a fresh success with probability at most delta."""
    rng, delta, alarms, trials = np.random.default_rng(3), 0.2, 0, 300
    recipe = Recipe(delta=delta, mode=mode, style=style)
    for _ in range(trials):
        sets = [{name: walks(rng, n) for name in ("rnd", "ace")} for n in (5, 14, 1)]
        # Scores of one roll-out are as long as each other.
        for part in sets:
            part["ace"] = [np.resize(a, len(r)) for a, r in zip(part["ace"], part["rnd"], strict=True)]
        thresholds = calibrate_thresholds(sets[0], sets[1], recipe)
        new = sets[2]
        ticks = np.arange(len(new["rnd"][0]))
        above = [new[name][0] > conformal.at(thresholds[name], ticks) for name in recipe.names]
        alarms += bool(np.logical_and(*above).any())
    margin = 2 * math.sqrt(delta * (1 - delta) / trials)
    assert alarms / trials <= delta + margin
    if mode == "joint":  # the bound is used up: rank / (n + 1) of 14 is exactly 0.2
        assert alarms / trials >= delta - 2 * margin


def test_two_clauses_share_one_bound():
    rng, delta, alarms, trials = np.random.default_rng(4), 0.2, 0, 300
    recipe = Recipe(delta=delta, clauses=(("rnd", "ace"), ("clock",)))
    for _ in range(trials):
        scale, calibrate, new = (
            {name: [rng.lognormal(0, 0.4, 25) for _ in range(n)] for name in recipe.names} for n in (5, 14, 1)
        )
        thresholds = calibrate_thresholds(scale, calibrate, recipe)
        above = {name: new[name][0] > thresholds[name] for name in recipe.names}
        alarms += bool((above["rnd"] & above["ace"]).any() or above["clock"].any())
    assert abs(alarms / trials - delta) <= 3 * math.sqrt(delta * (1 - delta) / trials)


def test_per_step_thresholds_end_where_too_few_roll_outs_are_left():
    curves = [np.arange(n, dtype=float) for n in (5, 5, 8, 8, 8)]
    threshold = conformal.per_step_threshold(curves, 0.25)
    np.testing.assert_array_equal(threshold, np.arange(8.0))
    threshold = conformal.per_step_threshold(curves, 0.2)
    assert len(threshold) == 8 if conformal.required(0.2) <= 3 else 5
    assert conformal.at(threshold, 100) == threshold[-1]


def test_the_band_bounds_the_upper_side():
    rng = np.random.default_rng(0)
    low = [np.full(10, 1.0) + 0.01 * rng.standard_normal(10) for _ in range(10)]
    band = conformal.functional_band(low, [curve - 5 for curve in low[:9]], 0.1)
    assert (band < 1.0).all(), "curves far below the mean must not widen an upper band"


def test_splits_are_disjoint_and_always_leave_enough_to_calibrate():
    for n in (27, 40, 60, 200):
        split = split_rollouts(n, Recipe(fit="split"))
        parts = [*split.fit, *split.scale, *split.calibrate]
        assert sorted(parts) == list(range(n))
        assert len(split.calibrate) >= 19
        assert len(split.fit) >= 5
        split = split_rollouts(n, Recipe(clauses=(("kernel", "ace"),)))
        assert sorted([*split.scale, *split.calibrate]) == sorted(split.fit) == list(range(n))
        assert len(split_rollouts(n, Recipe(clauses=(("kernel",),))).calibrate) == n
    for recipe, n in (
        (Recipe(fit="split"), 26),
        (Recipe(clauses=(("kernel", "ace"),)), 21),
        (Recipe(clauses=(("kernel",),)), 18),
    ):
        with pytest.raises(InsufficientRollouts, match="1 more") as error:
            split_rollouts(n, recipe)
        assert error.value.missing == 1
        split_rollouts(n + 1, recipe)


def test_recipes_that_promise_too_much_are_refused():
    with pytest.raises(VigilError, match="fit split"):
        Recipe(fit="cross")
    with pytest.raises(VigilError, match="per_step"):
        Recipe(style="per_step")
    with pytest.raises(VigilError, match="one clause only"):
        Recipe(clauses=(("rnd", "ace"), ("rnd",)))
    with pytest.raises(VigilError, match="between 0 and 1"):
        Recipe(delta=0.0)
