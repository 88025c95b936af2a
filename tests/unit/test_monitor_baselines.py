"""Other papers' detectors: agreement with plain definitions, storage, degenerate data."""

from __future__ import annotations

import numpy as np
import pytest

from vigil.monitor.baselines import (
    BASELINES,
    CLIP,
    LogpZO,
    Mahalanobis,
    PcaKmeans,
    Stac,
    Standardiser,
    cluster,
    mean_discrepancy,
    shrunk_covariance,
)
from vigil.monitor.features import Features
from vigil.monitor.score import OBSERVATION

PERIOD, STEP_DT, E = 0.2, 0.05, 12
QUICK = {"logpzo": {"hidden": (32, 32), "epochs": 20}}
OBSERVING = [name for name, score in BASELINES.items() if score.kind == OBSERVATION]


def make(name, **changes):
    return BASELINES[name](BASELINES[name].Settings(**QUICK.get(name, {}), **changes))


def segment(rng, ticks=20, k=6, horizon=8, away=0.0, arms=1, jump=0.0):
    """A path on a three-dimensional surface in the embedding; ``away`` leaves it, ``jump`` [m] is between chunks."""
    phase = np.linspace(0, 2, ticks)[:, None] + rng.uniform(0, 1, 3)
    mixing = np.random.default_rng(3).standard_normal((6, E))
    embedding = np.concatenate([np.sin(phase), np.cos(phase)], axis=1) @ mixing
    embedding += away * np.random.default_rng(4).standard_normal(E) + 0.02 * rng.standard_normal((ticks, E))
    at = (np.arange(ticks) * PERIOD / STEP_DT)[:, None] + np.arange(horizon)
    path = np.stack([0.01 * at, np.sin(0.1 * at), np.zeros_like(at)], axis=-1)
    path = path + jump * rng.standard_normal((ticks, 1, 3))
    positions = path[:, None, :, None] + 0.01 * rng.standard_normal((ticks, k, 1, arms, 3))
    return Features(
        PERIOD * np.arange(ticks), embedding.astype(np.float32), positions.astype(np.float32), STEP_DT
    )


def with_embedding(features, embedding):
    return Features(features.elapsed, np.asarray(embedding, np.float32), features.positions, features.step_dt)


@pytest.fixture(scope="module")
def successes():
    rng = np.random.default_rng(0)
    return [segment(rng) for _ in range(10)]


@pytest.fixture(scope="module")
def fitted(successes):
    scores = {name: make(name) for name in BASELINES}
    for score in scores.values():
        score.fit(successes, seed=0)
    return scores


# ---------------------------------------------------------------- every one


@pytest.mark.parametrize("name", BASELINES)
def test_what_was_learnt_survives_storage(name, fitted, successes):
    score = fitted[name]
    again = BASELINES[name](BASELINES[name].Settings.model_validate(score.settings.model_dump(mode="json")))
    again.load({key: array.copy() for key, array in score.arrays().items()})
    result = score.score(successes[0])
    assert result.dtype == np.float64
    assert result.shape == (len(successes[0]),)
    np.testing.assert_array_equal(again.score(successes[0]), result)


@pytest.mark.parametrize("name", BASELINES)
def test_one_tick_scores_as_in_a_batch(name, fitted):
    score, features = fitted[name], segment(np.random.default_rng(7))
    batch = score.score(features)
    single = [score.score(features[max(t - score.context, 0) : t + 1])[-1] for t in range(len(features))]
    np.testing.assert_allclose(single, batch, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OBSERVING)
def test_an_unseen_observation_scores_higher(name, fitted):
    rng = np.random.default_rng(11)
    on = np.concatenate([fitted[name].score(segment(rng)) for _ in range(4)])
    off = np.concatenate([fitted[name].score(segment(rng, away=1.5)) for _ in range(4)])
    assert np.median(off) > np.quantile(on, 0.95)


@pytest.mark.parametrize("name", ["logpzo", "pca_kmeans"])
def test_fit_is_reproducible_by_seed(name, successes):
    first, second, other = make(name), make(name), make(name)
    for score, seed in ((first, 1), (second, 1), (other, 2)):
        score.fit(successes[:4], seed=seed)
    np.testing.assert_array_equal(first.score(successes[5]), second.score(successes[5]))
    assert not np.array_equal(first.score(successes[5]), other.score(successes[5]))


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("case", ["constant feature", "constant embedding", "one tick", "one feature"])
def test_degenerate_data_stay_finite(name, case):
    rng = np.random.default_rng(5)
    episodes = [segment(rng, k=2)]
    if case == "constant feature":
        episodes = [
            with_embedding(f, np.c_[f.embedding, np.full(len(f), 3.0)])
            for f in [segment(rng, k=2), segment(rng, k=2)]
        ]
    elif case == "constant embedding":
        episodes = [with_embedding(episodes[0], np.full((len(episodes[0]), E), 0.7))]
    elif case == "one tick":
        episodes = [segment(rng, ticks=1, k=2)]
    elif case == "one feature":
        episodes = [with_embedding(episodes[0], episodes[0].embedding[:, :1])]
    score = make(name)
    score.fit(episodes, seed=0)
    probe = segment(rng, k=2)
    size = episodes[0].embedding.shape[1]
    for scale in (0.0, 1.0, 1e6):
        result = score.score(with_embedding(probe, scale * np.resize(probe.embedding, (len(probe), size))))
        assert np.isfinite(result).all()
        assert (result >= 0).all()


# ---------------------------------------------------------------- STAC


def plain_discrepancy(x, y):
    x, y = x.astype(float), y.astype(float)

    def squares(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    pooled = np.concatenate([x, y])
    apart = squares(pooled, pooled)
    gamma = 1 / (2 * np.median(apart[apart > 0]))
    return sum(
        sign * np.exp(-gamma * squares(a, b)).mean() for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2))
    )


@pytest.mark.parametrize("k", [2, 3, 40])
def test_discrepancy_agrees_with_the_plain_sum_also_far_from_the_origin(k):
    rng = np.random.default_rng(k)
    x, y = rng.standard_normal((k, 9)), rng.standard_normal((k, 9)) + 0.5
    assert mean_discrepancy(x, y) == pytest.approx(plain_discrepancy(x, y), abs=1e-5)
    assert mean_discrepancy(1e-3 * x + 5, 1e-3 * y + 5) == pytest.approx(plain_discrepancy(x, y), abs=1e-4)


def test_discrepancy_is_zero_for_the_same_samples_and_bounded():
    x = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    assert mean_discrepancy(x, x[::-1]) == pytest.approx(0, abs=1e-6)
    assert mean_discrepancy(x[:1].repeat(30, 0), x[:1].repeat(30, 0)) == 0
    # Two points: the only distance is the median, so the kernel between them is exp(-1/2).
    two = mean_discrepancy(np.zeros((5, 3)), np.ones((5, 3)))
    assert two == pytest.approx(2 - 2 * np.exp(-0.5), abs=1e-6)


def test_stac_compares_the_same_instants(successes):
    """Shift of four steps: [4:] of the last tick's chunks against [:4] of this tick's."""
    features = successes[0]
    result = Stac().score(features)
    assert result[0] == 0
    for tick in (1, 7):
        before, now = features.positions[tick - 1][:, 4:], features.positions[tick][:, :4]
        expected = plain_discrepancy(before.reshape(len(before), -1), now.reshape(len(now), -1))
        assert result[tick] == pytest.approx(expected, abs=1e-4)


def test_stac_rises_where_successive_chunks_disagree():
    rng = np.random.default_rng(2)
    steady, erratic = Stac().score(segment(rng, k=16)), Stac().score(segment(rng, k=16, jump=0.05))
    assert np.median(erratic[1:]) > steady[1:].max()


def test_stac_counts_every_arm():
    features = segment(np.random.default_rng(2), k=16, arms=2)
    moved = features.positions.copy()
    moved[10, ..., 1, :] += 0.2
    disturbed = Features(features.elapsed, features.embedding, moved, features.step_dt)
    assert Stac().score(disturbed)[10] > 2 * Stac().score(features)[10]
    # Without the axis of the arms a position is a position all the same.
    flat = Features(features.elapsed, features.embedding, features.positions[..., 0, :], features.step_dt)
    assert np.isfinite(Stac().score(flat)).all()


@pytest.mark.parametrize("period", [0.4, 10.0])
def test_stac_says_nothing_where_nothing_overlaps(period):
    features = segment(np.random.default_rng(2))
    late = Features(period * np.arange(20), features.embedding, features.positions, STEP_DT)
    np.testing.assert_array_equal(Stac().score(late), np.zeros(20))


def test_stac_of_identical_samples_is_finite():
    features = segment(np.random.default_rng(2), k=2)
    same = np.broadcast_to(features.positions[:, :1], features.positions.shape)
    result = Stac().score(Features(features.elapsed, features.embedding, same, STEP_DT))
    assert np.isfinite(result).all()
    still = np.zeros_like(features.positions)
    assert not Stac().score(Features(features.elapsed, features.embedding, still, STEP_DT)).any()


# ---------------------------------------------------------------- logpZO


def test_logpzo_is_the_squared_distance_from_where_the_flow_leads(fitted, successes):
    score = fitted["logpzo"]
    o = score.standardise(successes[3].embedding)
    expected = []
    for row in o:
        inputs = np.concatenate([row, [0.0, 0.0, 1.0]]).astype(np.float32)  # t = 0: t, sin, cos
        hidden = inputs
        for weight, bias in zip(score.field.weights[:-1], score.field.biases[:-1], strict=True):
            hidden = hidden @ weight + bias
            hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        v = hidden @ score.field.weights[-1] + score.field.biases[-1]
        expected.append(((row + v) ** 2).sum())
    np.testing.assert_allclose(score.score(successes[3]), expected, rtol=1e-3, atol=1e-4)


def test_the_flow_learns_to_lead_to_the_mean_of_the_noise(successes):
    """At t = 0 the best velocity is E[z] - o = -o, so a fitted flow leaves less than the embedding itself."""
    score = LogpZO(LogpZO.Settings(hidden=(64, 64), epochs=60))
    score.fit(successes, seed=0)
    o = score.standardise(successes[0].embedding)
    assert np.median(score.score(successes[0])) < 0.3 * np.median((o**2).sum(axis=1))


# ---------------------------------------------------------------- PCA and k-means


def test_distance_to_the_nearest_centre(fitted, successes):
    score = fitted["pca_kmeans"]
    assert score.components.shape == (E, 10)
    np.testing.assert_allclose(score.components.T @ score.components, np.eye(10), atol=1e-9)
    x = (successes[2].embedding - score.mean) @ score.components
    expected = [min(np.linalg.norm(row - centre) for centre in score.centres) for row in x]
    np.testing.assert_allclose(score.score(successes[2]), expected, rtol=1e-9)


def test_components_are_those_of_largest_variance(successes):
    score = PcaKmeans(PcaKmeans.Settings(components=2))
    score.fit(successes, seed=0)
    ticks = np.concatenate([f.embedding for f in successes]).astype(float)
    values = np.linalg.eigvalsh(np.cov(ticks.T, bias=True))[::-1]
    kept = ((ticks - ticks.mean(0)) @ score.components).var(axis=0)
    np.testing.assert_allclose(kept, values[:2], rtol=1e-6)


def test_clusters_that_are_apart_are_found():
    rng = np.random.default_rng(1)
    truth = np.array([[0, 0], [10, 0], [0, 10], [10, 10.0]])
    x = np.concatenate([c + 0.1 * rng.standard_normal((50, 2)) for c in truth])
    centres, spread = cluster(x, 4, rng)
    np.testing.assert_allclose(sorted(np.round(centres).tolist()), sorted(truth.tolist()))
    assert spread < 0.05


def test_fewer_points_than_clusters():
    rng = np.random.default_rng(1)
    x = np.repeat(rng.standard_normal((3, 2)), 4, axis=0)
    centres, spread = cluster(x, 64, rng)
    assert len(centres) == 3
    assert spread == pytest.approx(0)
    score = PcaKmeans()
    score.fit([segment(rng, ticks=5)], seed=0)
    assert len(score.centres) == 5


# ---------------------------------------------------------------- Mahalanobis


def test_distance_by_the_inverse_covariance(fitted, successes):
    score = fitted["mahalanobis"]
    x = np.concatenate([score.standardise(f.embedding) for f in successes]).astype(float)
    precision = np.linalg.inv(shrunk_covariance(x - x.mean(0)))
    d = score.standardise(successes[4].embedding) - x.mean(0)
    expected = [np.sqrt(row @ precision @ row) for row in d]
    np.testing.assert_allclose(score.score(successes[4]), expected, rtol=1e-6)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    """The sums of the paper, one tick after the other."""
    x = np.random.default_rng(0).standard_normal((40, 6)) * np.arange(1, 7)
    x -= x.mean(0)
    m, size = x.shape
    sample = x.T @ x / m
    variance = np.trace(sample) / size
    d2 = ((sample - variance * np.eye(size)) ** 2).sum() / size
    b2 = sum(((np.outer(row, row) - sample) ** 2).sum() / size for row in x) / m**2
    share = min(b2, d2) / d2
    assert 0.01 < share < 0.99
    expected = share * variance * np.eye(size) + (1 - share) * sample
    np.testing.assert_allclose(shrunk_covariance(x), expected, rtol=1e-9)


def test_shrinkage_vanishes_with_ticks_and_takes_over_without():
    rng = np.random.default_rng(0)
    many = rng.standard_normal((20_000, 3)) * [1, 2, 3]
    np.testing.assert_allclose(shrunk_covariance(many), many.T @ many / 20_000, atol=0.05)
    np.testing.assert_array_equal(shrunk_covariance(np.zeros((4, 3))), np.eye(3))
    few = rng.standard_normal((3, 50))
    assert np.linalg.cond(shrunk_covariance(few - few.mean(0))) < 1e5


# ---------------------------------------------------------------- standardisation


def test_a_feature_that_never_varied_is_left_out_and_far_values_are_clipped(successes):
    standardise = Standardiser()
    ticks = np.concatenate([f.embedding for f in successes])
    standardise.fit(np.c_[ticks, np.full(len(ticks), 5.0)])
    assert standardise.used.tolist() == [True] * E + [False]
    x = standardise(np.c_[ticks, np.full(len(ticks), 1e9)])
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-3)
    assert np.abs(standardise(np.full((1, E + 1), 1e30))).max() == CLIP


def test_names_are_unique_and_kinds_known():
    assert list(BASELINES) == ["stac", "logpzo", "pca_kmeans", "mahalanobis"]
    assert [s.least_k for s in BASELINES.values()] == [2, 1, 1, 1]
    assert Mahalanobis().settings.model_dump() == {}
