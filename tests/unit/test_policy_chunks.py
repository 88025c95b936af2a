"""The running chunk, how a new one is bound to it, and the choice among candidates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_bundle import COLUMNS, HORIZON, write_tiny_bundle
from vigil.arm.curves import SECOND, Steps
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.chunks import (
    DECAY,
    Running,
    Situation,
    check_scorer,
    continuation,
    first,
    guidance,
    medoid,
    overlap,
    scorer_of,
    select,
)

STEP_DT, STEP = 0.05, SECOND // 20
START = 1_000 * SECOND


def situation(running=(), scale=None):
    running = np.asarray(running, np.float32).reshape(-1, 8)
    scale = np.ones(8) if scale is None else np.asarray(scale)
    return Situation(COLUMNS, scale, STEP_DT, np.zeros(8, np.float32), np.zeros(3, np.float32), running)


def curved() -> Running:
    steps = np.arange(HORIZON)[:, None]
    return Running(START, STEP_DT, np.sin(0.4 * steps + np.arange(8)).astype(np.float32))


@pytest.mark.parametrize("steps", [0, 1, 4, 15, 16, 40])
def test_whole_steps_later_its_targets_are_the_chunks_own(steps):
    running = curved()
    positions, covered = running.at(START + steps * STEP, HORIZON)
    assert covered == max(0, HORIZON - steps)
    assert positions[:covered] == pytest.approx(running.positions[steps:])
    assert positions.shape == (HORIZON, 8) and positions.dtype == np.float32


def test_between_its_steps_its_targets_are_those_that_the_arm_goes_through():
    running, shift = curved(), int(3.3 * STEP)
    positions, covered = running.at(START + shift, HORIZON)
    curve = Steps(START, STEP, running.positions.astype(float))
    assert covered == 12, "steps at 3.3, ..., 14.3; the chunk ends at 15"
    for i in range(covered):
        assert positions[i] == pytest.approx(curve.at(START + shift + i * STEP)[0], abs=1e-6)


def test_a_clock_that_was_set_back_leaves_nothing_to_go_on_from():
    assert curved().at(START - 1, HORIZON)[1] == 0
    assert continuation(curved(), START - 1, HORIZON, 0.1) is None


def test_weights_are_those_of_the_paper():
    """Black et al. 2025, eq. 5, with H = 16, d = 5 and H - s = 12."""
    d, covered = 5, 12
    expected = []
    for i in range(HORIZON):
        c = (covered - i) / (covered - d + 1)
        expected.append(1.0 if i < d else c * (math.e**c - 1) / (math.e - 1) if i < covered else 0.0)
    assert guidance(HORIZON, d, covered) == pytest.approx(expected)


@given(st.integers(1, 64), st.integers(0, 80), st.integers(0, 64))
def test_weights_fall_from_one_to_zero(count, frozen, covered):
    weight = guidance(count, frozen, min(covered, count))
    assert ((weight >= 0) & (weight <= 1)).all() and (np.diff(weight) <= 0).all()
    assert (weight[: min(frozen, covered)] == 1).all() and (weight[covered:] == 0).all()


@pytest.mark.parametrize(("delay", "frozen"), [(0.0, 0), (0.05, 1), (0.051, 2), (0.26, 6)])
def test_what_is_over_when_the_chunk_arrives_is_kept_whole(delay, frozen):
    known = continuation(curved(), START + 4 * STEP, HORIZON, delay)
    assert (known.weight == 1).sum() == frozen and (known.weight > 0).sum() == 12
    assert known.positions[:12] == pytest.approx(curved().positions[4:])


def test_the_first_is_sample_0():
    samples = np.random.default_rng(0).normal(size=(5, HORIZON, 8)).astype(np.float32)
    assert select(samples, situation(), first) == 0


def test_the_medoid_is_a_sample_near_the_middle_and_no_outlier():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.01, (9, HORIZON, 8)).astype(np.float32)
    samples[6] = samples[[i for i in range(9) if i != 6]].mean(axis=0)
    assert select(samples, situation(), medoid) == 6
    samples[4] += 5.0
    assert select(samples, situation(), medoid) != 4


def test_the_medoid_weighs_columns_by_their_scale():
    samples = np.zeros((3, 2, 8), np.float32)
    samples[:, :, 0] = np.array([0.0, 1.0, 2.0])[:, None]  # rad: 1 is in the middle
    samples[:, :, 1] = np.array([0.01, 0.0, 0.02])[:, None]  # m: 0.01 is in the middle
    assert select(samples, situation(), medoid) == 1
    assert select(samples, situation(scale=[1.0, 0.001, *[1.0] * 6]), medoid) == 0


def test_overlap_takes_the_way_that_was_begun():
    """Two ways round an obstacle: the medoid may change between them, the overlap keeps to the one that runs."""
    left, right = (np.full((HORIZON, 8), value, np.float32) for value in (-1.0, 1.0))
    samples = np.stack([right, right, right, left])
    running = left[:12] + 0.3
    assert select(samples, situation(), medoid) != 3
    assert select(samples, situation(running), overlap) == 3
    assert select(samples, situation(), overlap) == select(samples, situation(), medoid), "where none runs"


def test_overlap_counts_only_what_both_cover_and_early_steps_most():
    running = np.zeros((4, 8), np.float32)
    early, late, beyond = np.zeros((3, HORIZON, 8), np.float32)
    early[0], late[3], beyond[4:] = 1.0, 1.0, 9.0
    assert select(np.stack([early, late]), situation(running), overlap) == 1
    assert select(np.stack([late, beyond]), situation(running), overlap) == 1
    scores = overlap(np.stack([early, late]), situation(running))
    assert scores == pytest.approx([-8.0, -8.0 * DECAY**3])


# A scorer of the user's ---------------------------------------------------------------------------------------


@pytest.fixture
def scorers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scorers.py").write_text(
        "import numpy as np\n"
        "answer = 42\n"
        "def slowest(samples, situation):\n"
        "    return -np.abs(np.diff(samples, axis=1)).sum(axis=(1, 2))\n"
        "def broken(samples, situation):\n"
        "    return samples.undefined\n"
        "def one_number(samples, situation):\n"
        "    return 1.0\n"
        "def nan(samples, situation):\n"
        "    return np.full(len(samples), np.nan)\n"
    )


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")).spec


def test_a_scorer_of_the_users_chooses(scorers, spec):
    scorer = scorer_of("my_scorers:slowest")
    check_scorer(scorer, spec)
    samples = np.random.default_rng(0).normal(size=(4, HORIZON, 8)).astype(np.float32)
    samples[2] = 0.0
    assert select(samples, situation(), scorer) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:f", "ModuleNotFoundError.*first, medoid, overlap"),
        ("my_scorers:no_such_function", "no_such_function"),
        ("my_scorers:answer", "is no function, but a int"),
        ("my_scorers:broken", "failed: AttributeError"),
        ("my_scorers:one_number", r"shape \[\] for 2 candidates"),
        ("my_scorers:nan", "finite"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_before_anything_moves(scorers, spec, name, reason):
    with pytest.raises(VigilError, match=reason):
        check_scorer(scorer_of(name), spec)
