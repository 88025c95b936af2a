"""Preparation of images, and joining inputs by their stamps."""

import zlib
from array import array

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.joints import JointSource
from vigil.policy.observation import ObservationBuffer, Rejected, frame_view, prepare_image

MS = 1_000_000
FRAME = np.zeros((480, 640, 3), np.uint8)


def buffer(max_skew: float = 0.04) -> ObservationBuffer:
    source = JointSource("arm/joint_states")
    source.add(("j1", "j2", "gripper"), ("j1", "j2", "gripper"))
    cameras = {"wrist": (480, 640), "scene": (480, 640)}
    return ObservationBuffer(cameras, ("j1", "j2", "gripper"), [source], max_skew)


def test_images_are_averaged_over_the_whole_view():
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, :320] = (200, 100, 0)
    small = prepare_image(image, 96)
    assert small.shape == (96, 96, 3) and small.dtype == np.uint8
    assert (small[:, :48] == (200, 100, 0)).all() and (small[:, 48:] == 0).all()


def test_preparation_is_pinned():
    """Training, serving and export depend on these very bytes."""
    rows, columns = np.mgrid[0:480, 0:640]
    image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    exact = image.reshape(96, 5, 640, 3).mean(axis=1)  # rows divide evenly; columns fall on thirds of a pixel
    exact = np.einsum("ij,rjc->ric", overlaps(640, 96), exact)
    assert np.abs(prepare_image(image, 96) - exact).max() <= 0.5 + 1e-4
    assert zlib.crc32(prepare_image(image, 96).tobytes()) == 0xE4D6901B


@pytest.mark.parametrize(
    ("size", "made"),
    [((480, 640), (96, 96)), ((480, 848), (96, 96)), ((480, 640), (120, 160)), ((720, 1280), (90, 128))],
    ids=str,
)
def test_pictures_are_those_of_opencv_but_for_halves(size, made):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = cv2.resize(picture, made[::-1], interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(prepare_image(picture, made) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 2**32 - 1),
)
def test_any_size_is_averaged_or_interpolated(size, made, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    small = prepare_image(picture, made)
    assert (small.shape, small.dtype, small.flags.c_contiguous) == ((*made, 3), np.uint8, True)
    if made[0] <= size[0] and made[1] <= size[1]:
        exact = np.einsum(
            "ir,jc,rcx->ijx", *(overlaps(*pair) for pair in zip(size, made, strict=True)), picture
        )
        assert np.abs(small - exact).max() <= 0.5 + 1e-4


def overlaps(size: int, made: int) -> np.ndarray:
    """Share of each of ``size`` pixels in each of ``made``."""
    edges = np.arange(made + 1) * size / made
    left = np.maximum.outer(edges[:-1], np.arange(size))
    right = np.minimum.outer(edges[1:], np.arange(1, size + 1))
    return np.clip(right - left, 0.0, None) * made / size


def test_a_prepared_image_is_left_alone():
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    assert np.array_equal(prepare_image(image, 96), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        [1],
    ],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(Rejected, match=r"image"):
        prepare_image(image, 96)


def test_frame_view_does_not_copy():
    data = array("B", range(24))
    view = frame_view("rgb8", 2, 4, 12, data)
    assert view.shape == (2, 4, 3)
    data[0] = 99
    assert view[0, 0, 0] == 99


@pytest.mark.parametrize(
    ("encoding", "step", "size", "reason"),
    [("bgr8", 12, 24, "bgr8"), ("rgb8", 16, 32, "step of 16"), ("rgb8", 12, 23, "23 bytes")],
)
def test_frames_of_another_layout_are_refused(encoding, step, size, reason):
    with pytest.raises(Rejected, match=reason):
        frame_view(encoding, 2, 4, step, bytes(size))


def test_a_set_is_joined_by_stamps_and_names():
    inputs = buffer()
    assert "wrist, scene" in inputs.missing()
    inputs.add_frame("wrist", 100 * MS, FRAME)
    inputs.add_frame("scene", 100 * MS, FRAME)
    assert inputs.missing() == "no joint state"
    inputs.add_joints(90 * MS, ["j2", "other", "gripper", "j1"], [2.0, 9.0, 0.08, 1.0])
    assert inputs.newest() is None and "10 ms older" in inputs.missing()
    inputs.add_joints(101 * MS, ["gripper", "j1", "j2"], [0.04, 3.0, 4.0])
    observation = inputs.newest()
    assert observation.state.tolist() == pytest.approx([3.0, 4.0, 0.04])
    assert observation.stamp == 101 * MS and observation.skew == 1 * MS
    assert set(observation.images) == {"wrist", "scene"} and inputs.missing() == ""


@pytest.mark.parametrize("last", ["wrist", "scene", "joints"])
def test_a_set_is_complete_when_the_last_of_its_own_inputs_was_received(last):
    inputs, received = buffer(), {"wrist": 5, "scene": 6, "joints": 7, last: 9}
    inputs.add_joints(90 * MS, NAMES, [0.0, 0.0, 0.0], received=1)
    inputs.add_joints(100 * MS, NAMES, [0.0, 0.0, 0.0], received=received["joints"])
    inputs.add_joints(110 * MS, NAMES, [0.0, 0.0, 0.0], received=20)  # of a later instant: not in the set
    for camera in ("wrist", "scene"):
        inputs.add_frame(camera, 100 * MS, FRAME, received[camera])
    assert inputs.newest().complete == 9


@given(st.permutations(range(12)))
def test_cameras_that_expose_together_are_paired_in_any_order_of_arrival(order):
    """Three exposures 33 ms apart; messages of different sources overtake each other, within one source they do not."""
    inputs = buffer()
    queues = {
        source: [(source, 100 + 33 * i, i) for i in range(n)]
        for source, n in (("wrist", 3), ("scene", 3), ("joints", 6))
    }
    names = [name for name, queue in queues.items() for _ in queue]
    for index in order:
        source, stamp, number = queues[names[index]].pop(0)
        if source == "joints":
            inputs.add_joints((100 + 20 * number) * MS, ["j1", "j2", "gripper"], [number, 0, 0])
        else:
            inputs.add_frame(source, stamp * MS, np.full((480, 640, 3), number, np.uint8))
        observation = inputs.newest()
        if observation is not None:
            seen = {int(frame.rgb[0, 0, 0]) for (frame,) in observation.images.values()}
            assert len(seen) == 1, "frames of two exposures in one set"
    assert observation is not None and observation.images["wrist"][0].rgb[0, 0, 0] == 2


def test_frames_that_were_faster_than_their_joint_state_await_it():
    inputs, names = buffer(), ["j1", "j2", "gripper"]
    inputs.add_joints(90 * MS, names, [0.0, 0.0, 0.0])
    for camera in ("wrist", "scene"):
        assert not inputs.awaits_joints
        inputs.add_frame(camera, 100 * MS, FRAME)
    assert inputs.awaits_joints and inputs.newest() is None
    inputs.add_joints(100 * MS, names, [0.0, 0.0, 0.0])
    assert not inputs.awaits_joints and inputs.newest().stamp == 100 * MS


def test_inputs_too_far_apart_make_no_set():
    inputs = buffer(max_skew=0.02)
    inputs.add_frame("wrist", 100 * MS, FRAME)
    inputs.add_frame("scene", 130 * MS, FRAME)
    inputs.add_joints(130 * MS, ["j1", "j2", "gripper"], [0, 0, 0])
    assert inputs.newest() is None
    assert "camera wrist is 30 ms older than" in inputs.missing() and "max_skew of 20 ms" in inputs.missing()


@pytest.mark.parametrize(
    ("names", "positions", "reason"),
    [
        (["j1", "j2", "gripper"], [0.0, float("nan"), 0.0], "j2.*not finite"),
        (["j1", "j2", "gripper"], [float("inf"), 0.0, 0.0], "j1.*not finite"),
        (["j1", "gripper"], [0.0, 0.0], r"\['j2'\] are missing"),
        (["a", "b", "c"], [0.0, 0.0, 0.0], r"\['j1', 'j2', 'gripper'\] are missing"),
        (["j1", "j2", "gripper"], [0.0, 0.0], "3 names and 2 positions"),
        ([], [], "missing"),
    ],
)
def test_bad_joint_states_are_refused(names, positions, reason):
    inputs = buffer()
    with pytest.raises(Rejected, match=reason):
        inputs.add_joints(0, names, positions)
    assert inputs.newest() is None


def test_a_bad_joint_state_after_good_ones_makes_no_set():
    inputs = buffer()
    good = ["j1", "j2", "gripper"]
    inputs.add_joints(95 * MS, good, [0, 0, 0])
    with pytest.raises(Rejected):
        inputs.add_joints(100 * MS, good, [0, float("nan"), 0])
    for camera in ("wrist", "scene"):
        inputs.add_frame(camera, 100 * MS, FRAME)
    assert inputs.newest() is None


def test_frames_of_wrong_size_or_camera_are_refused():
    inputs = buffer()
    with pytest.raises(Rejected, match=r"camera wrist.*\[240, 320, 3\].*\[480, 640, 3\]"):
        inputs.add_frame("wrist", 0, np.zeros((240, 320, 3), np.uint8))
    with pytest.raises(Rejected, match="'front'"):
        inputs.add_frame("front", 0, FRAME)


def test_a_clock_that_is_set_back_starts_anew():
    inputs = buffer()
    for stamp in (1000, 10):
        for camera in ("wrist", "scene"):
            inputs.add_frame(camera, stamp * MS, FRAME)
        inputs.add_joints(stamp * MS, ["j1", "j2", "gripper"], [stamp, 0, 0])
    assert inputs.newest().stamp == 10 * MS and inputs.newest().state[0] == 10


# Histories ----------------------------------------------------------------------------------------------------

NAMES = ["j1", "j2", "gripper"]


def history(frames=range(0, 400, 33), joints=range(0, 400, 10), steps=3, dt=0.1, begin=0, max_skew=0.02):
    """Frames and joint states that say their own time [ms]; the newest joint state is as new as the newest frame."""
    source = JointSource("arm/joint_states")
    source.add(("j1", "j2", "gripper"), ("j1", "j2", "gripper"))
    cameras = {"wrist": (480, 640), "scene": (480, 640)}
    made = ObservationBuffer(cameras, ("j1", "gripper"), [source], max_skew, steps, dt)
    made.begin(begin * MS)
    for stamp in frames:
        for camera in cameras:
            made.add_frame(camera, stamp * MS, np.full((480, 640, 3), stamp % 256, np.uint8))
    for stamp in [*(j for j in joints if j < max(frames)), max(frames)]:
        made.add_joints(stamp * MS, NAMES, [stamp, 0.0, 0.0])
    return made


def times(observation, camera="wrist"):
    return [int(frame.rgb[0, 0, 0]) for frame in observation.images[camera]], observation.state[:, 0].tolist()


def test_a_history_is_made_of_what_lies_nearest_to_each_of_its_due_times():
    observation = history().newest()  # newest frame at 396: due at 196, 296, 396
    pictures, states = times(observation)
    assert pictures == [198, 297 % 256, 396 % 256] and states == [200.0, 300.0, 396.0]
    assert observation.state.shape == (3, 2) and observation.stamp == 396 * MS and observation.skew == 0
    prepared = observation.prepared((48, 64))
    assert prepared["scene"].shape == (3, 48, 64, 3) and prepared["scene"][0, 0, 0, 0] == 198


def test_a_policy_without_history_gets_no_dimension_for_it():
    observation = history(steps=1).newest()
    assert observation.state.shape == (2,) and observation.prepared(96)["wrist"].shape == (96, 96, 3)


def test_at_the_start_the_first_observation_is_repeated():
    assert times(history(frames=[0]).newest()) == ([0, 0, 0], [0.0, 0.0, 0.0])
    pictures, states = times(history(frames=[0, 33, 66, 99, 132]).newest())  # due at -68, 32, 132
    assert pictures == [0, 33, 132] and states == [0.0, 30.0, 132.0]


def test_what_was_seen_before_the_episode_began_is_not_its_history():
    pictures, states = times(history(begin=250).newest())  # the first frame since then is at 264
    assert pictures == [264 % 256, 297 % 256, 396 % 256] and states == [250.0, 300.0, 396.0]


def test_a_hole_in_the_history_makes_no_set_and_is_named():
    inputs = history(
        frames=[*range(0, 150, 33), *range(264, 400, 33)]
    )  # due at 196: 132 and 264 are 64 ms off
    assert inputs.newest() is None
    assert (
        "camera wrist" in inputs.missing()
        and "hole" in inputs.missing()
        and "max_skew 20 ms" in inputs.missing()
    )


def test_no_more_is_kept_than_the_history_needs():
    inputs = history(frames=range(0, 10_000, 10), joints=range(0, 10_000, 1), steps=2, dt=0.1)
    assert max(len(frames) for frames in inputs._frames.values()) <= 22 and len(inputs._joints[0]) <= 602
