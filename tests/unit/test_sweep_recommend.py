"""Which sampler is recommended, why, and when the answer says that it rests on too little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.errors import VigilError
from vigil.run.statistics import wilson
from vigil.sweep.recommend import Measured, episodes_needed, recommend, require_one_inside
from vigil.sweep.report import label_levels


def rolled(name, latency, successes, n=100, p99=None, **more):
    return Measured(name, latency, latency if p99 is None else p99, successes=successes, n=n, **more)


def compared(name, latency, error, low, high, episodes=10):
    return Measured(
        name, latency, latency, error=error, error_low=low, error_high=high, error_episodes=episodes
    )


def test_the_fastest_within_the_interval_of_the_best_is_taken():
    best, good, bad = rolled("ddim_20", 40, 96), rolled("ddim_4", 10, 92), rolled("ddim_1", 4, 60)
    assert wilson(96, 100)[0] < 0.92
    answer = recommend([best, good, bad], 100)
    assert answer.name == "ddim_4" and answer.caveats == ()
    assert "92 of 100" in answer.why and "ddim_20" in answer.why and "96 of 100" in answer.why


def test_a_faster_one_that_is_worse_is_not():
    answer = recommend([rolled("ddim_20", 40, 96), rolled("ddim_1", 4, 89)], 100)
    assert wilson(96, 100)[0] > 0.89
    assert answer.name == "ddim_20" and "most often" in answer.why


def test_the_budget_counts_at_the_99th_percentile():
    late = rolled("late", 5, 96, p99=31)
    assert recommend([late, rolled("slow", 20, 96)], 30).name == "slow"
    assert recommend([late, rolled("slow", 20, 96)], 31).name == "late"


def test_where_the_best_is_too_slow_the_loss_is_told():
    answer = recommend([rolled("slow", 80, 100), rolled("fast", 5, 70), rolled("faster", 2, 60)], 30)
    assert answer.name == "fast" and "worse than slow" in answer.caveats[0] and "80.0 ms" in answer.caveats[0]


def test_no_sampler_inside_the_budget_is_an_error_that_names_the_nearest():
    with pytest.raises(
        VigilError, match=r"no sampler is inside 3 ms: b comes nearest with 5\.0 ms.*--budget"
    ):
        require_one_inside([rolled("a", 9, 1), rolled("b", 5, 1)], 3)
    with pytest.raises(VigilError, match="no sampler is inside"):
        recommend([rolled("a", 9, 1)], 3)


def test_a_streaming_sampler_has_to_keep_up_with_its_own_steps():
    stream = rolled("stream", 60, 100, limit_ms=50)
    assert recommend([stream, rolled("ddim", 70, 100)], 100).name == "ddim"
    with pytest.raises(VigilError, match="no sampler is inside 50 ms: stream"):
        recommend([stream], 100)


def test_few_episodes_are_called_few_and_told_how_many_it_takes():
    answer = recommend([rolled("a", 5, 5, n=5), rolled("b", 2, 5, n=5)], 100)
    assert answer.name == "b"
    (caveat,) = answer.caveats
    assert "too few episodes" in caveat and "57 %" in caveat and "About 35 each" in caveat
    assert recommend([rolled("a", 5, 35, n=35)], 100).caveats == ()


@pytest.mark.parametrize("rate", [0.0, 0.31, 0.5, 0.9, 1.0])
def test_as_many_episodes_as_are_called_for_show_the_margin(rate):
    n = episodes_needed(rate)
    successes = round(rate * n)
    assert successes / n - wilson(successes, n)[0] <= 0.1
    assert rate == 0.0 or n > 20


def test_without_episodes_the_action_error_decides_and_is_called_weak():
    answer = recommend([compared("a", 9, 0.10, 0.08, 0.12), compared("b", 4, 0.115, 0.1, 0.13)], 100)
    assert answer.name == "b" and len(answer.caveats) == 1 and "action error alone" in answer.caveats[0]
    answer = recommend([compared("a", 9, 0.10, 0.08, 0.12, 2), compared("b", 4, 0.13, 0.1, 0.15, 2)], 100)
    assert answer.name == "a" and "too few demonstrations: 2" in answer.caveats[1]
    answer = recommend([compared("a", 9, 0.10, 0.08, 0.12), compared("b", 4, 0.2, 0.1, 0.3)], 5)
    assert answer.name == "b" and "a has 0.100, but is outside" in answer.why


def test_one_sampler_alone_is_called_the_only_one():
    assert "the only one" in recommend([rolled("a", 5, 35, n=35)], 100).why
    assert "the only one" in recommend([compared("a", 9, 0.10, 0.08, 0.12)], 100).why


def test_nothing_measured_is_nothing_to_choose_by():
    with pytest.raises(VigilError, match="nothing to choose by"):
        recommend([Measured("a", 1, 1)], 10)


@given(
    st.lists(st.tuples(st.floats(0.1, 200), st.integers(0, 40)), min_size=1, max_size=8),
    st.floats(0.1, 200),
)
def test_the_answer_is_inside_the_budget_and_nothing_faster_is_as_good(found, budget):
    measured = [rolled(str(i), latency, successes, n=40) for i, (latency, successes) in enumerate(found)]
    inside = [m for m in measured if m.p99_ms <= budget]
    if not inside:
        with pytest.raises(VigilError):
            recommend(measured, budget)
        return
    chosen = {m.name: m for m in measured}[recommend(measured, budget).name]
    low = wilson(max(m.successes for m in measured), 40)[0]
    assert chosen.p99_ms <= budget
    good = [m for m in inside if m.rate >= low]
    if good:
        assert chosen.rate >= low and chosen.latency_ms == min(m.latency_ms for m in good)
    else:
        assert chosen.rate == max(m.rate for m in inside)


def test_names_of_near_neighbours_are_written_below_each_other():
    assert label_levels([3.6, 22.0, 3.5, 7.9]) == [1, 0, 0, 0]
    assert label_levels([1.0, 1.4, 1.9, 9.0]) == [0, 1, 2, 0]
    assert label_levels([5.0, 5.0]) == [0, 1]
