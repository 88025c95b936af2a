"""Rates and intervals of evaluated episodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.run.statistics import summarise, wilson


def episode(outcome="success", perturbation="none", alarms=0, first_alarm_s=None, reason="task_success"):
    return {
        "outcome": outcome,
        "perturbation": perturbation,
        "alarms": alarms,
        "first_alarm_s": first_alarm_s,
        "termination_reason": reason,
    }


def test_wilson_agrees_with_published_values():
    # Brown, Cai & DasGupta's formula evaluated by hand for 45 of 50: centre 0.8714, half width 0.0851.
    low, high = wilson(45, 50)
    assert low == pytest.approx(0.7864, abs=2e-4)
    assert high == pytest.approx(0.9565, abs=2e-4)


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_stays_within_0_and_1(counts):
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= (successes / n if n else 0.5) + 1e-12
    assert (successes / n if n else 0.5) - 1e-12 <= high <= 1


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.n"):
        wilson(3, 2)


def test_rates_by_perturbation():
    summary = summarise(
        [
            episode(),
            episode(alarms=1, first_alarm_s=1.0),
            episode("failure", "object_moved", 1, 2.0, "timeout"),
            episode("failure", "object_moved", 0, None, "timeout"),
        ]
    )
    assert summary["n"] == 4 and summary["successes"] == 2 and summary["success_rate"] == 0.5
    nominal, moved = summary["per_perturbation"]["none"], summary["per_perturbation"]["object_moved"]
    assert nominal["alarm_rate_on_success"] == 0.5 and nominal["alarm_rate_on_failure"] is None
    assert moved["alarm_rate_on_success"] is None and moved["alarm_rate_on_failure"] == 0.5
    assert moved["mean_detection_s"] == 2.0
    assert next(iter(summary["per_perturbation"])) == "none"


def test_a_broken_system_is_a_failure_but_not_a_missed_alarm():
    summary = summarise([episode("failure", alarms=0, reason="system_error"), episode()])
    assert summary["success_rate"] == 0.5
    assert summary["alarm_rate_on_failure"] is None
    assert summary["system_errors"] == 1


def test_no_episodes():
    summary = summarise([])
    assert summary["success_rate"] is None and (summary["wilson_low"], summary["wilson_high"]) == (0.0, 1.0)
