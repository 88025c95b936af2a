"""Targets that want to break the arm's limits, and the check that they did not."""

from __future__ import annotations

import numpy as np

PERIOD = 0.01
EPS = 1e-9


def assert_inside(columns, positions, period=PERIOD):
    """All limits, from the given-out positions [T, N] alone, as a bag would be checked."""
    positions = np.asarray(positions)
    assert np.isfinite(positions).all()
    assert (positions >= columns.lower).all() and (positions <= columns.upper).all()
    for order, limit in ((1, columns.velocity), (2, columns.acceleration), (3, columns.jerk)):
        rate = np.abs(np.diff(positions, order, axis=0)) / period**order
        assert (rate <= limit * (1 + EPS)).all(), f"derivative {order}: {(rate / limit).max()} of its limit"


def hostile_targets(columns, rng, steps):
    """Changing moods: noise, fixed targets, the limits themselves, huge values, NaN and inf."""
    n, mood, left = len(columns), 0, 0
    span = columns.upper - columns.lower
    for _ in range(steps):
        if left == 0:
            mood, left = rng.integers(7), rng.integers(1, 60)
            goal = rng.uniform(columns.lower - span, columns.upper + span)
            speed = 3 * columns.velocity * rng.normal(size=n)
        left -= 1
        if mood == 0:
            yield rng.uniform(columns.lower - span, columns.upper + span), speed * rng.normal(size=n)
        elif mood == 1:
            yield goal, speed
        elif mood == 2:
            yield np.where(goal > 0, columns.upper, columns.lower), speed
        elif mood == 3:
            yield np.copysign(1e300, goal), np.copysign(1e300, speed)
        elif mood == 4:
            yield np.where(rng.random(n) < 0.2, rng.choice([np.nan, np.inf, -np.inf]), goal), speed
        elif mood == 5:
            yield goal, np.zeros(n)
        else:
            yield goal * 1e-9, speed * 1e-9
