"""Drivers and the capture thread, without ROS."""

import threading
import time

import cv2
import numpy as np
import pytest

from support.cdr import encode, header
from vigil.camera.capture import Capture
from vigil.camera.driver import CameraDriver, DeviceLost, Frame
from vigil.camera.drivers import make_driver
from vigil.camera.replay import ReplayDriver
from vigil.camera.sim_driver import FrameClock, SimulatedDriver
from vigil.errors import VigilError
from vigil.record.definitions import full_definition
from vigil.record.writer import EpisodeWriter, Topic
from vigil.rig import CameraConfig

MS = 1_000_000
IMAGE = np.zeros((48, 64, 3), np.uint8)


def wait_for(condition, timeout=10.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


# Which states become frames ------------------------------------------------------------------------------------


def drawn(stamps, rate):
    clock = FrameClock(rate)
    return [stamp for stamp in stamps if clock.begins_frame(stamp * MS)]


def test_thirty_frames_a_second_of_a_hundred_states():
    frames = drawn(range(1003, 4003, 10), 30)
    assert 89 <= len(frames) <= 91
    assert set(np.diff(frames)) == {30, 40}


def test_in_lock_step_frames_fall_on_multiples_of_the_policys_period():
    assert drawn(range(190, 1010, 10), 5) == [200, 400, 600, 800, 1000]
    assert drawn(range(200, 610, 10), 5) == [200, 400, 600]


def test_cameras_that_start_apart_choose_the_same_states():
    states = list(range(5, 2005, 10))
    assert drawn(states[40:], 30) == [stamp for stamp in drawn(states, 30) if stamp > states[40]]


def test_an_instant_that_physics_repeats_is_drawn_again():
    assert drawn([200, 200, 210, 210, 400, 400], 5) == [200, 200, 400, 400]


def test_lost_states_and_a_clock_set_back():
    clock = FrameClock(10)
    assert [clock.begins_frame(s * MS) for s in (100, 150, 420, 430)] == [True, False, True, False]
    assert clock.passed_over == 2
    assert clock.begins_frame(0)


# The simulated driver ------------------------------------------------------------------------------------------


class Painter:
    """Draws the first position as brightness."""

    def __init__(self):
        self.thread = threading.current_thread()
        self.closed = False

    def render(self, qpos, appearance):
        assert threading.current_thread() is self.thread
        return np.full((48, 64, 3), qpos[0], np.uint8)

    def render_depth(self, qpos, appearance):
        return np.full((48, 64), 1000, np.uint16)

    def close(self):
        self.closed = True


def test_only_the_newest_due_state_is_drawn():
    driver = SimulatedDriver(Painter, rate=10)
    driver.open()
    assert driver.read(0.01) is None
    for stamp in (100, 110, 200, 210, 300):
        driver.offer(stamp * MS, np.array([stamp // 10.0]), [])
    frame = driver.read(0.01)
    assert frame.stamp == 300 * MS and frame.rgb[0, 0, 0] == 30 and frame.depth is None
    assert driver.read(0.01) is None and driver.skipped == 2
    driver.close()
    driver.close()


def test_depth_is_drawn_when_asked():
    driver = SimulatedDriver(Painter, rate=10, depth=True)
    driver.open()
    driver.offer(100 * MS, np.zeros(1), [])
    assert driver.read(0.01).depth[0, 0] == 1000


# The capture thread --------------------------------------------------------------------------------------------


class Flaky(CameraDriver):
    """Gives two frames each time it is opened, then follows its script."""

    def __init__(self, script):
        self.script = list(script)
        self.left = 0
        self.opened = self.closed = 0
        self.threads = set()

    def open(self):
        self.threads.add(threading.current_thread())
        self.opened += 1
        if (
            self.script
            and isinstance(self.script[0], VigilError)
            and not isinstance(self.script[0], DeviceLost)
        ):
            raise self.script.pop(0)
        self.left = 2

    def read(self, timeout):
        self.threads.add(threading.current_thread())
        if self.left:
            self.left -= 1
            return Frame(stamp=1, rgb=IMAGE)
        if self.script:
            raise self.script.pop(0)
        time.sleep(0.001)
        return None

    def close(self):
        self.threads.add(threading.current_thread())
        self.closed += 1


def captured(driver):
    frames, events = [], []
    return Capture(driver, frames.append, events.append, first_delay=0.001), frames, events


def test_a_lost_device_is_opened_again_with_patience():
    driver = Flaky([DeviceLost("unplugged"), VigilError("no device"), VigilError("no device")])
    capture, frames, events = captured(driver)
    capture.open()
    wait_for(lambda: len(frames) == 4)
    capture.close()
    assert events == ["unplugged", "no device", "connected again"] and capture.trouble == ""
    assert driver.opened == 4 and driver.closed >= 1 and len(driver.threads) == 1


def test_a_device_that_refuses_is_told_to_the_caller():
    capture, _, _ = captured(driver := Flaky([VigilError("no RealSense with serial 1")]))
    with pytest.raises(VigilError, match="no RealSense with serial 1"):
        capture.open()
    capture.close()
    assert driver.closed == 1


def test_a_device_that_stays_away_does_not_keep_the_node_from_ending():
    capture, _, events = captured(Flaky([DeviceLost("gone")] + [VigilError("no device")] * 10_000))
    capture.open()
    wait_for(lambda: "no device" in events)
    assert capture.trouble == "no device"
    capture.close()


def test_a_crash_of_the_driver_is_told():
    class Crashing(Flaky):
        def read(self, timeout):
            raise ZeroDivisionError("a bug")

    capture, _, events = captured(Crashing([]))
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        capture.open()
        wait_for(lambda: events)
        capture.close()
    finally:
        threading.excepthook = hook
    assert "ZeroDivisionError: a bug" in capture.trouble


# Playing back --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    """Ten JPEG frames at 20 Hz, each of one grey, number * 20; the first 30 ms after the recording's start."""
    path = tmp_path_factory.mktemp("episode") / "episode.mcap"
    kind = "sensor_msgs/msg/CompressedImage"
    definition = full_definition(kind)
    topics = [
        Topic(f"/rig/{name}", kind, definition) for name in ("wrist/color/image_raw/compressed", "other")
    ]
    writer = EpisodeWriter(path, topics)

    def put(topic, stamp, image):
        _, data = cv2.imencode(".jpg", image)
        writer.put(topic, encode(kind, header=header(stamp), format="jpeg", data=data.ravel()), stamp, stamp)

    put("/rig/other", 100 * MS, IMAGE)
    for number in range(10):
        put("/rig/wrist/color/image_raw/compressed", (130 + 50 * number) * MS, IMAGE + np.uint8(20 * number))
    put("/rig/other", 600 * MS, IMAGE)
    return writer.finish(lambda counts: {})


class Clock:
    def __init__(self, start):
        self.ns = start

    def __call__(self):
        return self.ns


def replay(episode, clock, **size):
    return ReplayDriver(episode, "wrist", **{"width": 64, "height": 48, **size}, now=clock)


def test_frames_come_at_the_recorded_pace_with_present_stamps(episode, monkeypatch):
    clock = Clock(5_000_000_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(clock, "ns", clock.ns + round(seconds * 1e9)))
    driver = replay(episode, clock)
    driver.open()
    frames = []
    while len(frames) < 25:
        frame = driver.read(0.02)
        if frame is not None:
            assert abs(frame.stamp - clock.ns) < MS
            frames.append(frame)
    greys = [round(int(frame.rgb[0, 0, 0]) / 20) for frame in frames]
    assert greys == [n % 10 for n in range(25)], "in order and round again"
    assert set(np.diff([frame.stamp for frame in frames]).tolist()) == {50 * MS} and driver.skipped == 0


def test_two_players_of_one_file_stay_together(episode, monkeypatch):
    clock = Clock(5_000_000_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    drivers = [replay(episode, clock) for _ in range(2)]
    shown = []
    for driver in drivers:
        driver.open()
        driver.read(0.0)
        clock.ns += 333 * MS
    for driver in drivers:
        shown.append(driver.read(0.0))
    assert shown[0].stamp == shown[1].stamp


def test_what_cannot_be_played_is_refused_with_what_there_is(episode):
    with pytest.raises(
        VigilError, match=r"no images of camera front; it has /rig/wrist/color/image_raw/compressed"
    ):
        ReplayDriver(episode, "front", width=64, height=48, now=Clock(0)).open()
    with pytest.raises(VigilError, match=r"gone\.mcap"):
        ReplayDriver(episode.with_name("gone.mcap"), "wrist", width=64, height=48, now=Clock(0)).open()
    driver = replay(episode, time.time_ns, width=640, height=480)
    driver.open()
    with pytest.raises(VigilError, match="recorded at 64x48, the rig says 640x480"):
        for _ in range(20):
            driver.read(0.1)


# Choice of driver ----------------------------------------------------------------------------------------------


def camera(**settings):
    return CameraConfig(name="wrist", calibration="wrist.yaml", **settings)


def test_drivers_follow_the_rig_file(tmp_path):
    now = time.time_ns
    assert isinstance(make_driver(camera(driver="sim"), 30, depth=False, now=now), SimulatedDriver)
    replayed = make_driver(
        camera(driver="replay", replay_path=str(tmp_path / "a.mcap")), 30, depth=False, now=now
    )
    assert isinstance(replayed, ReplayDriver)
