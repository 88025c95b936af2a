"""Inference with the real ONNX Runtime on tiny bundles, and the tick schedule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_bundle import HORIZON, NOISE_GAIN, SIZE, write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.policy.observation import Rejected
from vigil.policy.providers import PROVIDERS
from vigil.policy.runtime import Known, PolicyRuntime
from vigil.policy.schedule import Aligned, Schedule
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


def test_in_lock_step_every_multiple_of_the_period_is_due_once():
    schedule = Aligned(200)
    due = [stamp for stamp in (0, 50, 200, 200, 250, 400, 200, 200, 450) if schedule.due(stamp)]
    assert due == [0, 200, 400, 200]


# What some policies have beside the plain case ----------------------------------------------------------------


def made(folder, **options):
    return PolicyRuntime(load_bundle(write_tiny_bundle(folder / "tiny", **options)))


def test_a_history_is_read_newest_last(tmp_path):
    runtime = made(tmp_path, history=3)
    pictures = np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in (0, 51, 102)])
    states = np.stack([STATE - 2, STATE - 1, STATE])
    encoded = runtime.encode({"wrist": pictures, "scene": pictures}, states)
    assert encoded.embedding == pytest.approx([0.2, 0.2, *STATE])
    assert runtime.draw(encoded, 1, np.random.default_rng(0)) == pytest.approx(
        np.broadcast_to(STATE, (1, HORIZON, 8)), abs=6 * NOISE_GAIN
    )
    with pytest.raises(Rejected, match=r"the policy takes uint8 \[3, 96, 96, 3\]"):
        runtime.encode({"wrist": pictures[:2], "scene": pictures}, states)
    with pytest.raises(Rejected, match=r"shape \[8\]"):
        runtime.encode({"wrist": pictures, "scene": pictures}, STATE)


def test_memory_begins_at_zero_and_is_carried_by_the_caller(tmp_path, images):
    runtime = made(tmp_path, memory=True)
    encoded = runtime.encode(images, STATE)
    assert encoded.embedding[-1] == 0 and encoded.memory.tolist() == [1.0]
    again = runtime.encode(images, STATE, encoded.memory)
    assert again.embedding[-1] == 1 and again.memory.tolist() == [2.0]


def test_samplers_read_the_context_where_there_is_one(tmp_path, images):
    runtime = made(tmp_path, context=True, memory=True)
    encoded = runtime.encode(images, STATE)
    assert encoded.embedding.shape == (11,) and encoded.read.shape() == [1, 2, 11]
    noise = np.random.default_rng(1).standard_normal((2, HORIZON, 8), dtype=np.float32)
    drawn = runtime.draw(encoded, 2, np.random.default_rng(1))
    assert drawn == pytest.approx(STATE + NOISE_GAIN * noise, abs=1e-6)


def test_known_targets_are_kept_by_their_weight_and_by_samplers_that_take_them_alone(tmp_path, images):
    folder = write_tiny_bundle(tmp_path / "tiny", inpaint=True)
    runtime = PolicyRuntime(load_bundle(folder, "inpaint"))
    encoded = runtime.encode(images, STATE)
    free = runtime.draw(encoded, 3, np.random.default_rng(2))
    known = Known(np.full((HORIZON, 8), 5.0, np.float32), np.linspace(1, 0, HORIZON, dtype=np.float32))
    kept = runtime.draw(encoded, 3, np.random.default_rng(2), known)
    weight = known.weight[:, None]
    assert kept == pytest.approx(weight * 5.0 + (1 - weight) * free, abs=1e-5)
    plain = PolicyRuntime(load_bundle(folder))
    assert np.array_equal(free, plain.draw(encoded, 3, np.random.default_rng(2))), (
        "weight 0 leaves chunks free"
    )
    with pytest.raises(VigilError, match="sampler ddim of bundle tiny takes no known targets"):
        plain.draw(encoded, 3, np.random.default_rng(2), known)


def test_a_stream_goes_on_where_it_was(tmp_path, images):
    runtime = made(tmp_path, emitted=4)
    encoded, rng = runtime.encode(images, STATE), np.random.default_rng(3)
    chunks, buffer = runtime.stream(encoded, 2, rng, None)
    row = [np.random.default_rng(3).standard_normal((2, HORIZON, 8), dtype=np.float32)]
    assert chunks == pytest.approx(STATE + NOISE_GAIN * row[0], abs=1e-6)
    for _ in range(3):
        following, buffer = runtime.stream(encoded, 2, rng, buffer)
        assert following[:, :-4] == pytest.approx(chunks[:, 4:], abs=1e-6), "what was forecast becomes final"
        chunks = following
    with pytest.raises(VigilError, match="sampler ddim of bundle tiny does not stream"):
        made(tmp_path / "other").stream(encoded, 2, rng, None)
