"""Inference with the real ONNX Runtime on a tiny bundle, choice among samples, and the tick schedule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_bundle import HORIZON, NOISE_GAIN, SIZE, write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.chunks import select
from vigil.policy.observation import Rejected
from vigil.policy.runtime import PROVIDERS, PolicyRuntime
from vigil.policy.schedule import Schedule
from vigil.policy.telemetry import Troubles, Window

STATE = np.linspace(-0.4, 0.4, 8, dtype=np.float32)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    return PolicyRuntime(load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")))


@pytest.fixture
def images():
    return {"scene": np.full((SIZE, SIZE, 3), 51, np.uint8), "wrist": np.full((SIZE, SIZE, 3), 255, np.uint8)}


def test_images_are_fed_by_name_and_state_in_columns(runtime, images):
    encoded = runtime.encode(images, STATE)
    assert encoded.memory is None and encoded.embedding == pytest.approx([1.0, 0.2, *STATE])
    samples = runtime.draw(encoded, 4, np.random.default_rng(1))
    assert samples.shape == (4, HORIZON, 8) and samples.dtype == np.float32
    noise = np.random.default_rng(1).standard_normal((4, HORIZON, 8), dtype=np.float32)
    assert samples == pytest.approx(STATE + NOISE_GAIN * noise, abs=1e-6)


def test_the_same_generator_gives_the_same_chunks_and_the_next_tick_others(runtime, images):
    generator = np.random.default_rng(7)
    encoded = runtime.encode(images, STATE)
    first = runtime.draw(encoded, 3, generator)
    assert np.array_equal(first, runtime.draw(encoded, 3, np.random.default_rng(7)))
    assert not np.array_equal(first, runtime.draw(encoded, 3, generator))


def test_the_first_few_and_the_others_are_the_chunks_of_one_call(runtime, images):
    encoded, generator = runtime.encode(images, STATE), np.random.default_rng(7)
    parts = [runtime.draw(encoded, k, generator) for k in (2, 5)]
    assert np.concatenate(parts) == pytest.approx(
        runtime.draw(encoded, 7, np.random.default_rng(7)), abs=1e-6
    )


def test_k_is_free(runtime, images):
    for k in (1, 2, 32):
        assert len(runtime.draw(runtime.encode(images, STATE), k, np.random.default_rng(0))) == k


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({"wrist": None}, STATE, "no image of camera wrist"),
        ({"wrist": np.zeros((SIZE, SIZE, 3), np.float32)}, STATE, "image of camera wrist is float32"),
        ({"scene": np.zeros((64, SIZE, 3), np.uint8)}, STATE, r"camera scene is uint8 \[64, 96, 3\]"),
        ({}, STATE[:7], r"shape \[7\].*fr3_joint1"),
        ({}, np.where(np.arange(8) == 3, np.nan, STATE), "finite"),
    ],
)
def test_bad_inputs_are_refused(runtime, images, change, state, reason):
    images = {name: image for name, image in {**images, **change}.items() if image is not None}
    with pytest.raises(Rejected, match=reason):
        runtime.encode(images, state)


def test_outputs_that_are_not_finite_are_refused(tmp_path, images):
    broken = PolicyRuntime(load_bundle(write_tiny_bundle(tmp_path / "nan", offset=float("nan"))))
    with pytest.raises(
        Rejected, match=f"{2 * HORIZON * 8} values of {2 * HORIZON * 8} in chunks that are not finite"
    ):
        broken.draw(broken.encode(images, STATE), 2, np.random.default_rng(0))


def test_the_provider_is_the_one_that_really_runs(runtime):
    used = runtime.providers.name
    assert used in PROVIDERS
    assert set(runtime.providers.not_used) >= set(PROVIDERS[: PROVIDERS.index(used)])
    assert all(runtime.providers.not_used.values()), "each provider that is not used has its reason"


def test_an_unknown_sampler_is_refused(runtime):
    with pytest.raises(VigilError, match="no sampler 'euler'"):
        load_bundle(runtime.bundle.path, "euler")


def test_the_medoid_is_a_sample_near_the_middle_and_no_outlier():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.01, (9, HORIZON, 8)).astype(np.float32)
    samples[6] = samples[[i for i in range(9) if i != 6]].mean(axis=0)
    assert select(samples, [1.0] * 8, "medoid") == 6
    assert select(samples, [1.0] * 8, "first") == 0
    samples[4] += 5.0
    assert select(samples, [1.0] * 8, "medoid") != 4
    with pytest.raises(VigilError, match="first or medoid"):
        select(samples, [1.0] * 8, "best")


def test_the_medoid_weighs_columns_by_their_scale():
    samples = np.zeros((3, 2, 2), np.float32)
    samples[:, :, 0] = np.array([0.0, 1.0, 2.0])[:, None]  # rad: 1 is in the middle
    samples[:, :, 1] = np.array([0.01, 0.0, 0.02])[:, None]  # m: 0.01 is in the middle
    assert select(samples, [1.0, 1.0], "medoid") == 1
    assert select(samples, [1.0, 0.001], "medoid") == 0


def ticks(stamps, period, tolerance):
    schedule = Schedule(period, tolerance)
    return [stamp for stamp in stamps if schedule.due(stamp)]


def test_ticks_fall_on_frames_and_keep_their_mean_rate():
    frames = [round(i * 33.333) for i in range(300)]
    chosen = ticks(frames, 200, 16)
    assert set(np.diff(chosen)) <= {199, 200, 201}
    del frames[12]  # a lost frame: this tick is late, the next is in time again
    late = ticks(frames, 200, 16)
    assert len(late) == len(chosen) and late[3:] == chosen[3:]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200))
def test_ticks_are_never_closer_than_the_frames_allow(gaps):
    frames = np.cumsum(gaps).tolist()
    chosen = ticks(frames, 200, 16)
    assert chosen[0] == frames[0] and set(chosen) <= set(frames)
    for earlier, later in zip(chosen, chosen[2:], strict=False):
        assert later - earlier >= 200 - 16, "two ticks in one period"


def test_after_a_gap_or_a_clock_set_back_the_grid_starts_anew():
    assert ticks([0, 200, 2000, 2010, 2200, 50, 60, 250], 200, 16) == [0, 200, 2000, 2200, 50, 250]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=100))
def test_what_is_expected_is_due_and_asking_changes_nothing(stamps):
    schedule = Schedule(200, 16)
    for stamp in stamps:
        asked = [schedule.expects(stamp) for _ in range(3)]
        assert asked == [schedule.due(stamp)] * 3
        assert not schedule.due(stamp)


def test_in_lock_step_every_new_stamp_is_a_tick():
    assert ticks([0, 0, 10, 10, 20], 0, 16) == [0, 10, 20]


def test_a_window_summarises_in_ms():
    window = Window()
    assert window.summary("age") == {}
    for i in range(101):
        window.add(i / 1e3)
    assert window.summary("age") == {"age_median_ms": "50.00", "age_p99_ms": "99.00"}


def test_troubles_are_counted_and_told_once():
    troubles = Troubles()
    assert troubles.add("image", "a") and not troubles.add("image", "b")
    assert troubles.take_fresh() == {"image": "b"} and troubles.take_fresh() == {}
    assert troubles.add("image", "c") and troubles.counts() == {"image": 3}
