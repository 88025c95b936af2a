"""Device ``web`` by real WebSockets: who may drive, when a hand counts as let go, and what is refused."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.rigs import real_rig
from support.wait import wait_for
from support.web import PERIOD, TIMEOUT, Browser, free_port, served
from vigil.errors import VigilError
from vigil.run.session import derive_rig
from vigil.teleop.device import BadInput, Deadman, DeviceOptions, Mode, Reading
from vigil.teleop.devices.factory import make_device
from vigil.teleop.web.desk import ASLEEP, SEAT_SILENCE, Desk, Visitor
from vigil.teleop.web.messages import Hand, Press, Seat, parse
from vigil.teleop.web.server import MOST_MESSAGES, MOST_VISITORS, is_own_name


@pytest.fixture
def rig(tmp_path):
    with served(tmp_path) as made:
        yield made


def get(port: int, path: str = "/", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


# The page -----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere_and_cannot_be_framed(rig):
    answer, page = get(rig.port)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b'location.protocol === "https:"', b"")
    assert b"src=" not in page
    assert get(rig.port, "/etc/passwd")[0].status == 404


def test_the_page_under_a_name_that_is_not_this_machines_says_what_to_do(rig):
    answer, body = get(rig.port, Host=f"rig.example.com:{rig.port}")
    assert (answer.status, f"add http://rig.example.com:{rig.port} to teleop.origins".encode() in body) == (
        403,
        True,
    )


# Driving ------------------------------------------------------------------------------------------------------


def test_a_held_deadman_begins_at_the_measured_pose_and_moves_the_tool(rig):
    browser = rig.driver()
    assert rig.poll() == Reading(False, None, Mode.RELATIVE, False, frozenset())
    reading = rig.take_over(browser)
    assert (reading.deadman, reading.mode) == (True, Mode.RELATIVE)
    np.testing.assert_array_equal(reading.positions, rig.measured)
    start = rig.tool(reading)
    browser.do(axes=(1.0, 0, 0, 0, 0, 0))
    moved = rig.tool(rig.until(lambda reading: rig.tool(reading)[0] > start[0] + 0.03)) - start
    np.testing.assert_allclose(moved[1:], 0.0, atol=2e-3)
    browser.do(axes=(0.0,) * 6, grip="close")
    before = rig.poll().positions[7]
    rig.until(lambda reading: reading.positions[7] < before - 0.005)
    browser.do(deadman=False)
    assert rig.until(lambda reading: not reading.deadman).positions is None


def test_the_speed_of_the_page_is_a_share_of_the_rig_files(rig):
    browser = rig.driver()
    rig.take_over(browser)
    for speed in (1.0, 0.25, 0.1):
        browser.do(speed=speed, axes=(0, 0, 1.0, 0, 0, 0))
        expected = pytest.approx(PERIOD * rig.rig.teleop.speed * speed, rel=0.1)
        rig.until(
            lambda reading, expected=expected: (rig.tool(rig.poll()) - rig.tool(reading))[2] == expected
        )


@pytest.mark.parametrize(
    "how",
    [
        lambda browser: browser.do(deadman=False),
        lambda browser: browser.vanish(),
        lambda browser: browser.close(),
        lambda browser: browser.send("{"),
        lambda browser: browser.send(b"\x00"),
        lambda browser: browser.say(type="seat", take=False),
        lambda browser: setattr(browser, "mute", True),
        lambda browser: setattr(browser, "echo", browser.state["stamp"]),
    ],
    ids=["released", "vanished", "closed", "malformed", "bytes", "left", "silent", "old"],
)
def test_whatever_ends_a_hand_lets_go(rig, how):
    browser = rig.driver()
    rig.take_over(browser)
    how(browser)
    assert rig.until(lambda reading: not reading.deadman, TIMEOUT + 1.0) == Reading(
        False, None, Mode.RELATIVE, False, frozenset()
    )


def test_a_browser_that_falls_silent_lets_go_within_its_timeout(tmp_path):
    """With the default: 0.2 s, and a poll."""
    with served(tmp_path, timeout=0.2) as rig:
        browser = rig.driver()
        rig.take_over(browser)
        browser.mute = True
        while True:
            now = time.monotonic()
            if not rig.poll().deadman:
                break
            assert now - browser.answered <= 0.2


def test_a_deadman_that_was_held_through_a_gap_has_to_be_let_go_first(rig):
    browser = rig.driver()
    rig.take_over(browser)
    browser.mute = True
    rig.until(lambda reading: not reading.deadman)
    seen = browser.states
    browser.mute = False
    rig.until(lambda _: browser.states > seen + 10 and browser.state["age"] < TIMEOUT)
    rig.stays(lambda reading: not reading.deadman)
    assert rig.take_over(browser).deadman


def test_without_joint_states_nobody_takes_over(rig):
    browser = rig.driver()
    measured, rig.measured = rig.measured, None
    browser.do(deadman=True)
    rig.stays(lambda reading: not reading.deadman)
    wait_for(lambda: browser.state["measured"] is False)
    rig.measured = measured
    rig.stays(lambda reading: not reading.deadman)  # it has to be seen released


def test_a_pedal_in_place_of_the_pages_deadman(tmp_path):
    with served(tmp_path, buttons={"deadman": {"topic": "pedal"}}) as rig:
        browser = rig.driver()
        assert browser.welcome["pedal"] is True
        browser.do(deadman=True)
        rig.stays(lambda reading: not reading.deadman)
        rig.poll(deadman=False)
        assert rig.poll(deadman=True).deadman
        assert not rig.poll(deadman=None).deadman
        rig.poll(deadman=False)
        assert rig.poll(deadman=True).deadman
        browser.vanish()  # the pedal alone does not drive
        wait_for(lambda: not rig.poll(deadman=True).deadman)


def test_the_other_arm(tmp_path):
    with served(tmp_path, arms=("left", "right")) as rig:
        browser = rig.driver()
        first = rig.take_over(browser).positions
        browser.press("switch")
        rig.until(lambda _: "right" in rig.device.state)
        browser.do(axes=(1.0, 0, 0, 0, 0, 0))
        moved = rig.until(lambda reading: np.abs(reading.positions[8:] - first[8:]).max() > 0.01)
        np.testing.assert_array_equal(moved.positions[:8], first[:8])
        rig.stays(lambda _: "right" in rig.device.state)  # one press is one switch


# Who drives ---------------------------------------------------------------------------------------------------


def test_who_has_no_seat_moves_nothing(rig):
    browser = rig.browser("Ada")
    wait_for(lambda: browser.states)
    browser.say(type="hand", echo=browser.state["stamp"], **{**browser.hand, "deadman": True})
    wait_for(lambda: browser.refused)
    assert browser.refused == ["you do not drive"]
    rig.stays(lambda reading: not reading.deadman)


def test_one_drives_and_the_others_see_who(rig):
    first, second = rig.driver("Ada"), rig.browser("Bob")
    rig.take_over(first)
    wait_for(lambda: second.state.get("driver") == "Ada (127.0.0.1)")
    assert not second.state["you"]
    second.say(type="seat", take=True)
    wait_for(lambda: second.refused)
    assert second.refused == ["Ada (127.0.0.1) drives: only they can give up the seat"]
    assert rig.poll().deadman  # and the first one noticed nothing
    assert "Ada (127.0.0.1) drives" in rig.device.state
    first.say(type="seat", take=False)
    rig.until(lambda reading: not reading.deadman)
    second.do(deadman=True)  # whoever sits down with it held has to let go first
    second.drive()
    rig.stays(lambda reading: not reading.deadman)
    assert rig.take_over(second).deadman


def test_everybody_may_stop_the_arm_and_mark_but_not_end_an_episode(rig):
    rig.driver()
    watcher = rig.browser()
    for button in ("estop", "mark"):
        assert rig.press(watcher, button).pressed == {button}
        rig.until(lambda reading: not reading.pressed)
    watcher.press("success")
    wait_for(lambda: watcher.refused)
    assert watcher.refused == ["success is for whoever drives"]
    rig.stays(lambda reading: not reading.pressed)


def test_buttons_are_pressed_for_a_moment(rig):
    browser = rig.driver()
    for button in ("start", "success", "failure", "discard"):
        assert rig.press(browser, button).pressed == {button}
        rig.until(lambda reading: not reading.pressed)
    assert rig.press(browser, "hand_back").pressed == frozenset()
    rig.until(lambda reading: not reading.hand_back)


def test_a_press_that_nobody_reads_is_refused_and_not_kept(rig):
    browser = rig.browser()
    wait_for(lambda: browser.state.get("live") is False)
    browser.press("estop")
    wait_for(lambda: browser.refused)
    assert browser.refused == [
        "estop: the teleop node is not active: press the hardware's own e-stop",
    ]
    rig.stays(lambda reading: not reading.pressed)


def test_the_page_is_told_who_has_control_and_why(rig):
    rig.around = {
        "authority": "HOLD",
        "reason": "monitor: ALARM",
        "blocked_by": "no chunk",
        "episode": "e1",
        "answer": "start: done",
        "answers": 1,
    }
    browser = rig.browser()
    rig.poll()
    wait_for(lambda: browser.state.get("authority") == "HOLD")
    state = browser.state
    assert {key: state[key] for key in rig.around} == rig.around
    assert 0.0 < wait_for(lambda: browser.state["age"]) < TIMEOUT
    rig.around["arm_silent"] = True
    rig.poll()
    wait_for(lambda: browser.state["authority"] == "")


# What is refused ----------------------------------------------------------------------------------------------

HAND = {"type": "hand", "echo": 1.0, "deadman": True, "axes": [0, 0, 0, 0, 0, 0.5], "speed": 1.0, "grip": ""}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"axes": [0, 0, 7, 0, 0, 0]}, r"axes\.2: .*less than or equal to 1 \(given: 7"),
        ({"axes": [float("nan"), 0, 0, 0, 0, 0]}, r"axes\.0: .*\(given: nan\)"),
        ({"axes": [0, float("-inf"), 0, 0, 0, 0]}, r"axes\.1: .*\(given: -inf\)"),
        ({"axes": [0, 0, 0]}, r"axes\.3: Field required"),
        ({"axes": [0] * 7}, "axes: Tuple should have at most 6 items"),
        ({"axes": ["1", 0, 0, 0, 0, 0]}, r"axes\.0: Input should be a valid number"),
        ({"speed": 1.5}, r"speed: .*less than or equal to 1 \(given: 1.5\)"),
        ({"speed": -0.1}, "speed: .*greater than or equal to 0"),
        ({"speed": float("inf")}, "speed: "),
        ({"echo": float("nan")}, "echo: "),
        ({"deadman": 1}, r"deadman: Input should be a valid boolean \(given: 1\)"),
        ({"deadman": None}, "deadman: "),
        ({"grip": "crush"}, "grip: Input should be '', 'open' or 'close'"),
        ({"faster": True}, "faster: Extra inputs are not permitted"),
        ({"type": "fist"}, "Input tag 'fist' found using 'type' does not match any"),
    ],
)
def test_a_hand_that_is_not_as_it_should_be_is_refused_with_the_reason(change, told):
    with pytest.raises(BadInput, match=told):
        parse(json.dumps({**HAND, **change}))
    assert parse(json.dumps(HAND)).axes == (0, 0, 0, 0, 0, 0.5)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"type": "press", "button": "launch"}', "[" * 1000])
def test_what_is_no_message_is_refused(text):
    with pytest.raises(BadInput, match=r"\w"):
        parse(text)


def test_a_refusal_is_told_and_the_arm_does_not_move(rig):
    browser = rig.driver()
    rig.take_over(browser)
    browser.do(axes=(float("nan"), 0, 0, 0, 0, 0))
    rig.until(lambda reading: not reading.deadman)
    assert "axes.0" in wait_for(lambda: browser.refused)[0]


def test_an_answer_to_a_state_that_was_never_sent_is_refused(rig):
    browser = rig.driver()
    rig.take_over(browser)
    browser.echo = time.monotonic() + 1000.0
    rig.until(lambda reading: not reading.deadman)
    assert "later than any stamp" in wait_for(lambda: browser.refused)[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://example.com"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:{port}"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": None},
        # DNS rebinding: a foreign name that points here, for page and server alike.
        {"origin": "http://rebound.example.com:{port}", "host": "rebound.example.com:{port}"},
    ],
)
def test_a_page_of_another_origin_cannot_drive(rig, headers):
    headers = {key: value and value.format(port=rig.port) for key, value in headers.items()}
    host = headers.pop("host", None)
    if host:  # the client writes its own Host: speak by hand
        answer, body = get(
            rig.port,
            "/drive",
            **{
                "Host": host,
                "Origin": headers["origin"],
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        )
        assert (answer.status, b"no address in numbers" in body) == (403, True)
        return
    with pytest.raises(InvalidStatus) as caught:
        Browser(rig.port, **headers)
    assert caught.value.response.status_code == 403


def test_an_origin_of_a_proxy_may_drive_if_the_rig_file_says_so(tmp_path):
    with served(tmp_path, origins=["https://rig.example.org"]) as rig:
        assert rig.browser(origin="https://rig.example.org").welcome
        assert get(rig.port, Host="rig.example.org")[0].status == 200
        assert rig.browser().welcome


@pytest.mark.parametrize("host", ["", "[", "[::1", "a b", "@", "\xff"])
def test_a_host_that_is_none_is_refused_and_nothing_breaks(rig, host, caplog):
    with contextlib.suppress(OSError, http.client.HTTPException):  # it may not even be answered
        assert get(rig.port, Host=host)[0].status in (400, 403)
    assert rig.browser().welcome
    assert not caplog.records


def test_names_of_this_machine():
    own = socket.gethostname()
    assert all(map(is_own_name, ("127.0.0.1", "192.168.1.7", "::1", "localhost", own, f"{own}.local")))
    assert not any(map(is_own_name, ("", "example.com", f"{own}.example.com", "localhost.example.com")))


def test_a_token_lets_in(tmp_path):
    with served(tmp_path, token="open sesame") as rig:
        for given in ("", "open sesam", "öffne dich"):
            refused = rig.browser(token=given)
            assert refused.welcome is None
            assert refused.first == {"type": "token", "given": bool(given)}
            assert refused.closed
        browser = rig.browser(token="open sesame")
        assert browser.welcome
        browser.drive()
        assert "open sesame" not in rig.device.state + repr(rig.rig)


def test_who_does_not_say_hello_is_not_heard(rig):
    with pytest.raises(KeyError):  # what came first is no welcome, and has no field `name`
        rig.browser("x" * 41).first["name"]
    assert "name: String should have at most 40 characters" in rig.browsers[-1].first["reason"]
    assert rig.browsers[-1].closed


def test_too_many_browsers_and_too_many_messages_are_sent_away(rig):
    flood = rig.driver()
    rig.take_over(flood)
    with contextlib.suppress(Exception):
        for _ in range(3 * MOST_MESSAGES):
            flood.say(type="here", echo=0.0)
    assert flood.closed == (1008, f"more than {MOST_MESSAGES} messages in a second")
    rig.until(lambda reading: not reading.deadman)
    for _ in range(MOST_VISITORS):
        wait_for(lambda: rig.browser().welcome)
    with pytest.raises(ConnectionClosed, match=f"1013.*{MOST_VISITORS} browsers are here"):
        rig.browser()


def test_a_message_that_is_too_long_ends_the_connection(rig):
    browser = rig.driver()
    rig.take_over(browser)
    browser.send("x" * 5000)
    assert browser.closed[0] == 1009
    rig.until(lambda reading: not reading.deadman)


# The desk by a clock of its own -------------------------------------------------------------------------------


def hand(echo: float, deadman: bool = True) -> Hand:
    return Hand(type="hand", echo=echo, deadman=deadman, axes=(0.0,) * 6, speed=1.0)


def test_a_seat_is_free_once_its_browser_was_silent_for_long():
    desk, first, second = Desk(0.2, 0.05), Visitor("Ada", "a"), Visitor("Bob", "b")
    assert desk.hear(first, Seat(type="seat", take=True), 1.0) == ""
    assert desk.hear(first, hand(1.5), 1.51) == ""
    assert "Ada (a) drives" in desk.hear(second, Seat(type="seat", take=True), 1.51 + SEAT_SILENCE)
    assert desk.hear(second, Seat(type="seat", take=True), 1.52 + SEAT_SILENCE) == ""
    assert desk.hear(first, hand(7.0), 7.01) == "you do not drive"


def test_what_was_let_go_between_two_polls_was_let_go():
    desk, visitor = Desk(0.2, 0.05), Visitor("", "a")
    desk.hear(visitor, Seat(type="seat", take=True), 1.0)
    desk.hear(visitor, hand(1.0, False), 1.01)
    assert desk.read(1.01) is None
    assert desk.read(1.02).held == set()
    desk.hear(visitor, hand(1.02), 1.03)
    assert desk.read(1.04).held == {"deadman"}
    desk.hear(visitor, hand(1.04, False), 1.05)
    desk.hear(visitor, hand(1.05), 1.06)
    assert desk.read(1.07).held == set()
    assert desk.read(1.08).held == {"deadman"}


def test_between_two_drivers_nothing_is_held():
    """Though both hold their deadmen, and all of it happens between two polls."""
    desk, first, second = Desk(0.2, 0.05), Visitor("", "a"), Visitor("", "b")
    sit, deadman = Seat(type="seat", take=True), Deadman()
    desk.hear(first, sit, 1.0)
    for now, down in ((1.01, False), (1.02, False), (1.03, True)):
        desk.hear(first, hand(now, down), now)
        controls = desk.read(now)
        held = deadman.step(None if controls is None else "deadman" in controls.held)
    assert held
    desk.leave(first)
    desk.hear(second, sit, 1.04)
    desk.hear(second, hand(1.04), 1.05)
    for now in (1.06, 1.07, 1.08):
        controls = desk.read(now)
        assert not deadman.step(None if controls is None else "deadman" in controls.held)


def test_a_hand_is_as_old_as_the_state_that_it_answers():
    desk, visitor = Desk(0.2, 0.05), Visitor("", "a")
    desk.hear(visitor, Seat(type="seat", take=True), 1.0)
    assert desk.read(1.0) is None
    desk.hear(visitor, hand(1.0), 1.19)  # it was long on its way
    assert desk.read(1.2) is not None
    assert desk.read(1.21) is None
    assert visitor.age == pytest.approx(0.19)


def test_a_press_lasts_two_polls_at_least():
    desk, visitor = Desk(0.2, 0.15), Visitor("", "a")
    desk.read(1.0)
    assert desk.hear(visitor, Press(type="press", button="mark"), 1.0) == ""
    desk.read(1.01)
    assert desk.pressed(1.30) == {"mark"}
    assert desk.pressed(1.32) == frozenset()


def test_a_poll_that_comes_late_misses_no_press():
    desk, visitor = Desk(0.2, 0.02), Visitor("", "a")
    desk.read(1.0)
    assert desk.hear(visitor, Press(type="press", button="mark"), 1.1) == ""
    assert desk.pressed(1.8) == frozenset()
    desk.read(1.9)
    assert desk.pressed(1.9) == {"mark"}


def test_of_what_was_pressed_before_the_node_hung_only_the_e_stop_counts():
    desk, visitor = Desk(0.2, 0.02), Visitor("", "a")
    desk.hear(visitor, Seat(type="seat", take=True), 1.0)
    desk.read(1.0)
    for button in ("hand_back", "start", "estop"):
        assert desk.hear(visitor, Press(type="press", button=button), 1.1) == ""
    desk.read(1.2 + ASLEEP)
    assert desk.pressed(1.2 + ASLEEP) == {"estop"}


# Set-up -------------------------------------------------------------------------------------------------------


def test_a_port_in_use_and_a_foreign_address_are_told(tmp_path, rig):
    other = make_device(rig.rig, DeviceOptions(period=PERIOD))
    with pytest.raises(VigilError, match=rf"port {rig.port} of 127.0.0.1 is in use: .*ss -ltnp.*teleop.port"):
        other.open()
    other.close()
    section = {"device": "web", "host": "203.0.113.7", "port": free_port(), "token": "0123456789"}
    elsewhere = make_device(real_rig(tmp_path, section), DeviceOptions(period=PERIOD))
    with pytest.raises(VigilError, match=r"cannot listen at 203.0.113.7 .*set teleop.host"):
        elsewhere.open()
    elsewhere.close()


def test_a_closed_device_sends_its_browsers_away_and_can_be_opened_anew(rig):
    browser = rig.driver()
    rig.device.close()
    assert browser.closed[0] == 1001
    rig.device.open()
    assert rig.browser().welcome


def test_connections_that_say_nothing_do_not_delay_the_end(rig):
    """Browsers open some in advance."""
    browser = rig.driver()
    with socket.create_connection(("127.0.0.1", rig.port)), socket.create_connection(("127.0.0.1", rig.port)):
        browser.mute = True
        begun = time.monotonic()
        rig.device.close()
        assert time.monotonic() - begun < 3.0


def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    section = {"device": "web", "port": free_port()}
    device = make_device(real_rig(tmp_path, section), DeviceOptions(period=PERIOD))
    for name in [name for name in sys.modules if name.split(".")[0] == "websockets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(VigilError, match=r"pip install -e '.\[web\]'"):
        device.open()


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"host": "0.0.0.0"}, "host 0.0.0.0 can be reached by others: give a `token`"),
        ({"host": "rig.local"}, "can be reached by others"),
        ({"token": "short"}, "teleop.token: .*at least 8"),
        ({"port": 0}, "teleop.port: Input should be greater than or equal to 1"),
        ({"origins": ["rig.example.org"]}, "teleop.origins.0"),
        ({"timeout": 0.24}, r"lets go after timeout \(0.24 s\) .* lower teleop.timeout or raise teleop.rate"),
        ({"rate": 10}, r"one command \(1 / rate: 0.1 s\)"),
    ],
)
def test_what_a_rig_file_may_not_say(tmp_path, settings, told):
    with pytest.raises(VigilError, match=told):
        real_rig(tmp_path, {"device": "web", **settings})


def test_a_rig_made_of_this_one_has_its_token(tmp_path):
    rig = real_rig(tmp_path, {"device": "web", "host": "0.0.0.0", "token": "open sesame"})
    made = derive_rig(rig, tmp_path / "made", teleop={"rate": 40})
    assert made.teleop.token.get_secret_value() == "open sesame"


def test_the_defaults_are_for_this_machine_alone(tmp_path):
    teleop = real_rig(tmp_path, {"device": "web"}).teleop
    assert (teleop.host, teleop.token) == ("127.0.0.1", None)
    real_rig(tmp_path, {"device": "web", "host": "::1"})
    real_rig(tmp_path, {"device": "web", "host": "0.0.0.0", "token": "0123456789"})
