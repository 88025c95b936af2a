"""The page of device ``web`` in a real browser: touches, mouse and keys, and all that may come between hand and arm."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from support.browser import MISSING, Browser, Page, browser, find_browser
from support.wait import wait_for
from support.web import PERIOD, TIMEOUT, Served, served
from vigil.teleop.device import Reading

pytestmark = pytest.mark.skipif(find_browser() is None, reason=MISSING)
PHONE, PHONE_ASIDE, SMALL, TABLET, DESKTOP = (390, 780), (844, 390), (360, 600), (1024, 768), (1440, 900)


class Polled:
    """A served device that a thread polls as the node does, with an arm that follows the operator."""

    def __init__(self, rig: Served) -> None:
        self.rig, self.url = rig, rig.device.state.split(",")[0]
        self.reading = Reading(False)
        self.pressed: list[str] = []
        rig.around = {"authority": "HOLD", "reason": "started", "episode": ""}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        before: frozenset[str] = frozenset()
        while not self._stop.wait(PERIOD):
            self.reading = reading = self.rig.poll()
            now = frozenset(reading.pressed) | ({"hand_back"} if reading.hand_back else set())
            self.pressed += sorted(now - before)
            before = now
            if self.rig.around["authority"] in ("HOLD", "OPERATOR"):
                self.rig.around["authority"] = "OPERATOR" if reading.deadman else "HOLD"

    def __enter__(self) -> Polled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def tool(self) -> np.ndarray:
        """Where the commands take the tool; only while the deadman is held."""
        return self.rig.tool(self.reading)

    def held(self) -> bool:
        """Whether the device's deadman is."""
        return self.reading.deadman

    def never_held(self, during: Callable[[], object] = lambda: time.sleep(0.4)) -> bool:
        """Nothing moves while ``during`` runs."""
        seen: list[bool] = []
        stop = threading.Event()
        watch = threading.Thread(
            target=lambda: [seen.append(self.held()) for _ in iter(lambda: stop.wait(PERIOD / 2), True)]
        )
        watch.start()
        during()
        stop.set()
        watch.join()
        return not any(seen)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def rig(tmp_path):
    with served(tmp_path) as made, Polled(made) as polled:
        yield polled


@contextlib.contextmanager
def opened(
    chromium: Browser, rig: Polled, size: tuple[int, int] = DESKTOP, drive: bool = True
) -> Iterator[Page]:
    """The page on a screen of ``size``; on all but a desktop's by touch."""
    page = chromium.page(rig.url, *size, touch=size != DESKTOP)
    try:
        page.wait("state !== null && about !== null && linked()")
        if drive:
            page.click("#sit")
            page.wait("state.you")
        yield page
        assert page.evaluate("failures") == []
    finally:
        page.close()
        wait_for(lambda: not rig.held())


def fingers_down(
    page: Page, rig: Polled, pad: str = "xy", right: float = 0.0, up: float = 0.0
) -> list[tuple[int, float, float]]:
    """One finger on the deadman and another on a pad, moved by so many pixels."""
    first, second = (1, *page.center("#hold")), (2, *page.center(f"[data-pad={pad}]"))

    def down() -> bool:
        page.touch("touchStart", first)
        page.touch("touchStart", first, second)
        time.sleep(0.3)
        if not rig.held():  # on a busy machine it may not have been seen released
            page.touch("touchEnd")
            time.sleep(0.2)
        return rig.held()

    wait_for(down)
    moved = (2, second[1] + right, second[2] - up)
    page.touch("touchMove", first, moved)
    return [first, moved]


# Driving ------------------------------------------------------------------------------------------------------


def test_one_finger_holds_and_another_drives(chromium, rig):
    with opened(chromium, rig, PHONE) as page:
        first, second = fingers_down(page, rig)
        start = rig.tool()
        time.sleep(0.2)
        np.testing.assert_allclose(rig.tool(), start)  # where a finger comes down is the middle
        assert page.evaluate("document.querySelector('#title').textContent") == "You drive"
        page.touch("touchMove", first, (2, second[1], second[2] - 70))
        wait_for(lambda: rig.tool()[0] > start[0] + 0.02)
        np.testing.assert_allclose(rig.tool()[1], start[1], atol=5e-3)
        page.touch("touchMove", first, (2, second[1] - 70, second[2]))
        wait_for(lambda: rig.tool()[1] > start[1] + 0.02)  # to the left
        page.touch("touchEnd", first)
        wait_for(lambda: not rig.held())
        page.touch("touchEnd")


@pytest.mark.parametrize("pad, right, up, axis, sign", [("z", 0, 60, 2, 1), ("z", 0, -60, 2, -1)])
def test_the_strip_lifts_and_lowers(chromium, rig, pad, right, up, axis, sign):
    with opened(chromium, rig, TABLET) as page:
        fingers_down(page, rig, pad)
        start = rig.tool()
        page.touch("touchEnd")
        fingers_down(page, rig, pad, right, up)
        wait_for(lambda: not rig.held() or sign * (rig.tool() - start)[axis] > 0.01)
        assert rig.held()
        page.touch("touchEnd")


@pytest.mark.parametrize(
    "pad, right, up, axis, sign", [("tilt", 0, 60, 4, 1), ("tilt", 60, 0, 5, -1), ("roll", 60, 0, 3, 1)]
)
def test_the_turning_pads_are_the_gamepads_right_stick(chromium, rig, pad, right, up, axis, sign):
    with opened(chromium, rig, TABLET) as page:
        fingers_down(page, rig, pad, right, up)
        axes = page.evaluate("axes()")
        assert sign * axes[axis] > 0.5
        assert [value for number, value in enumerate(axes) if number != axis] == [0] * 5
        page.touch("touchEnd")


def test_a_pad_without_the_deadman_moves_nothing(chromium, rig):
    with opened(chromium, rig, PHONE) as page:
        x, y = page.center("[data-pad=xy]")

        def push() -> None:
            page.touch("touchStart", (1, x, y))
            page.touch("touchMove", (1, x + 50, y - 50))
            time.sleep(0.4)
            page.touch("touchEnd")

        assert rig.never_held(push)


def test_who_only_watches_moves_nothing(chromium, rig):
    with opened(chromium, rig, DESKTOP, drive=False) as page:

        def try_all() -> None:
            for selector in ("#hold", "[data-pad=xy]", "#open"):
                x, y = page.center(selector)
                page.mouse("mousePressed", x, y)
                page.mouse("mouseMoved", x + 30, y - 30, down=True)
                time.sleep(0.2)
                page.mouse("mouseReleased", x + 30, y - 30)
            page.key(" ", down=True)
            page.key("w", down=True)
            time.sleep(0.2)

        assert rig.never_held(try_all)


def test_a_mouse_that_drags_a_pad_holds_the_deadman(chromium, rig):
    with opened(chromium, rig) as page:
        x, y = page.center("[data-pad=xy]")
        page.mouse("mouseMoved", x, y)
        assert rig.never_held()
        page.mouse("mousePressed", x, y)
        wait_for(rig.held)
        start = rig.tool()
        page.mouse("mouseMoved", x, y - 60, down=True)
        wait_for(lambda: rig.tool()[0] > start[0] + 0.01)
        page.mouse("mouseMoved", 5, 5, down=True)  # off the pad: still held
        time.sleep(0.2)
        assert rig.held()
        page.mouse("mouseReleased", 5, 5)
        wait_for(lambda: not rig.held())


def test_keys_move_while_the_space_bar_is_held(chromium, rig):
    with opened(chromium, rig) as page:

        def alone() -> None:
            page.key("w", down=True)
            time.sleep(0.3)
            page.key("w", down=False)

        assert rig.never_held(alone)
        page.key(" ", down=True)
        wait_for(rig.held)
        start, width = rig.tool(), rig.reading.positions[7]
        page.key("w", down=True)
        wait_for(lambda: rig.tool()[0] > start[0] + 0.01)
        page.key("w", down=False)
        page.key("z", down=True)
        wait_for(lambda: rig.reading.positions[7] < width - 0.004)
        page.key("Escape", down=True)
        wait_for(lambda: not rig.held())
        assert rig.never_held()  # though the space bar is still down
        page.key("Escape", down=False)
        page.key(" ", down=False)
        page.key(" ", down=True)
        wait_for(rig.held)
        page.key(" ", down=False)
        wait_for(lambda: not rig.held())


def test_speed_is_chosen_and_told(chromium, rig):
    with opened(chromium, rig) as page:
        page.click("[data-speed='0.1']")
        assert page.evaluate("[speed, document.querySelector('#metres').textContent]") == [0.1, "1.5 cm/s"]
        page.key("+", down=True)
        assert page.evaluate("speed") == 0.25


# Letting go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        lambda page, fingers: page.touch("touchCancel"),
        lambda page, fingers: page.touch("touchStart", *fingers, (3, *page.center("#hold"))),
        lambda page, fingers: page.evaluate("dispatchEvent(new Event('blur'))"),
        lambda page, fingers: page.call("Page.navigate", url="about:blank"),
        lambda page, fingers: page.evaluate("socket.close()"),
        lambda page, fingers: page.evaluate('socket.send(\'{"type": "hand"}\')'),
        lambda page, fingers: page.evaluate("document.querySelector('#leave').click()"),
    ],
    ids=["cancelled", "second finger", "blur", "other page", "closed", "malformed", "left"],
)
def test_whatever_comes_between_lets_go(chromium, rig, how):
    page = chromium.page(rig.url, *PHONE, touch=True)
    try:
        page.wait("state !== null && linked()")
        page.click("#sit")
        page.wait("state.you")
        fingers = fingers_down(page, rig)
        how(page, fingers)
        wait_for(lambda: not rig.held(), TIMEOUT + 2.0)
    finally:
        page.close()


def test_a_second_finger_has_to_be_lifted_like_the_first(chromium, rig):
    with opened(chromium, rig, PHONE) as page:
        first, _ = fingers_down(page, rig)
        page.touch("touchStart", first, (3, first[1] + 10, first[2]))
        wait_for(lambda: not rig.held())
        page.touch("touchEnd", (3, first[1] + 10, first[2]))
        assert rig.never_held()
        page.touch("touchEnd")
        fingers_down(page, rig)
        page.touch("touchEnd")


def test_a_hidden_tab_lets_go_at_once(chromium, rig):
    with opened(chromium, rig, PHONE) as page:
        fingers_down(page, rig)
        other = chromium.page("about:blank")
        other.call("Page.bringToFront")
        wait_for(lambda: not rig.held())
        assert page.evaluate("document.hidden") is True
        page.call("Page.bringToFront")
        other.close()


def test_a_page_that_is_stuck_lets_go(chromium, rig):
    """Its connection lives, and nobody answers: what the hand does is known to be old."""
    with opened(chromium, rig, PHONE) as page:
        fingers_down(page, rig)
        page.evaluate("(end => { while (performance.now() < end); })(performance.now() + 3000)")
        assert not rig.held()


def test_a_phone_that_sleeps_lets_go(tmp_path, rig):
    """All processes of the browser stand still; the kernel keeps the connection open."""
    with browser(tmp_path) as phone:
        page = phone.page(rig.url, *PHONE, touch=True)
        page.wait("state !== null && linked()")
        page.click("#sit")
        page.wait("state.you")
        fingers_down(page, rig)
        os.killpg(phone.process.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: not rig.held(), TIMEOUT + 2.0)
            assert rig.never_held()
        finally:
            os.killpg(phone.process.pid, signal.SIGCONT)
        assert rig.never_held()  # its finger is still down
        os.killpg(phone.process.pid, signal.SIGKILL)


# Buttons and what is shown ------------------------------------------------------------------------------------


def test_the_e_stop_is_for_everybody_and_at_once(chromium, rig):
    with opened(chromium, rig, PHONE, drive=False) as page:
        page.touch("touchStart", (1, *page.center("#estop")))
        wait_for(lambda: rig.pressed == ["estop"])
        page.touch("touchEnd")
        assert rig.pressed == ["estop"]
        rig.rig.around = {"authority": "ESTOP", "reason": "e-stop requested"}
        page.wait("document.querySelector('#title').textContent === 'E-stop'")
        assert "arm/reset" in page.evaluate("document.querySelector('#why').textContent")


def test_the_e_stop_key_lets_go_too(chromium, rig):
    with opened(chromium, rig) as page:
        page.key(" ", down=True)
        wait_for(rig.held)
        page.key("Backspace", down=True)
        wait_for(lambda: rig.pressed == ["estop"])


def test_episode_buttons(chromium, rig):
    with opened(chromium, rig) as page:
        page.wait("!$('start').disabled")
        assert page.evaluate("['success', 'discard', 'mark'].map(id => $(id).hidden)") == [True, True, True]
        page.click("#start")
        wait_for(lambda: rig.pressed == ["start"])
        rig.rig.around.update(episode="e1", answer="start: done", answers=1)
        page.wait("$('recording').textContent.includes('recording e1') && !$('success').disabled")
        page.wait("$('said').textContent.includes('start: done')")
        page.click("#mark")
        wait_for(lambda: rig.pressed == ["start", "mark"])
        page.click("#discard")  # a click is no hold
        time.sleep(0.9)
        assert rig.pressed == ["start", "mark"]
        x, y = page.center("#discard")
        page.mouse("mousePressed", x, y)
        wait_for(lambda: rig.pressed[2:] == ["discard"])
        page.mouse("mouseReleased", x, y)
        rig.rig.around.update(answer="discard: no episode is open", answers=2)
        page.wait("document.querySelector('#said .bad')?.textContent === 'discard: no episode is open'")
        x, y = page.center("#back")
        page.mouse("mousePressed", x, y)
        wait_for(lambda: rig.pressed[3:] == ["hand_back"])
        page.mouse("mouseReleased", x, y)


def test_the_second_browser_sees_who_drives_and_cannot(chromium, rig):
    name = "<img src=x onerror=failures.push(1)>"  # a name is text
    with opened(chromium, rig, DESKTOP, drive=False) as first:
        first.evaluate(f"$('who').value = {name!r}")
        first.click("#sit")
        first.wait("state.you && state.driver.startsWith('<img')")
        with opened(chromium, rig, PHONE, drive=False) as second:
            second.wait("document.querySelector('#seat h2').textContent.startsWith('<img')")
            assert second.evaluate("$('sit').disabled") is True
            second.evaluate("socket.send(JSON.stringify({type: 'seat', take: true}))")
            second.wait("$('said').textContent.includes('only they can give up the seat')")
        first.click("#leave")
        first.wait("!state.you")
        first.evaluate("localStorage.clear()")


def test_the_banner_tells_who_has_control_and_what_is_wrong(chromium, rig):
    with opened(chromium, rig, DESKTOP, drive=False) as page:
        for around, title in (
            ({"authority": "POLICY"}, "The policy drives"),
            ({"authority": "BLENDED"}, "An operator corrects the policy"),
            ({"authority": "OPERATOR"}, "An operator drives"),
            ({"authority": "HOLD", "reason": "alarm", "blocked_by": "no chunk"}, "The arm is held"),
            ({"authority": "HOLD", "arm_silent": True}, "The arm is silent"),
        ):
            rig.rig.around = around
            if around["authority"] == "OPERATOR":
                continue  # the arm of these tests lets an operator go who does not hold the deadman
            page.wait(f"$('title').textContent === {title!r}")
        rig._stop.set()
        page.wait("$('title').textContent === 'Teleoperation is not active'")
        rig.rig.device.close()
        page.wait("$('title').textContent === 'No connection'")


def test_the_rigs_token_comes_in_the_address_and_does_not_stay_there(tmp_path, chromium):
    with served(tmp_path, token="open sesame") as made, Polled(made) as rig:
        page = chromium.page(rig.url, *DESKTOP)
        page.wait("$('seat').textContent.includes('asks for a token')")
        page.evaluate("$('token').value = 'wrong'")
        page.click("#sit")
        page.wait("$('said').textContent.includes('not the rig')")
        page.evaluate("$('token').value = 'open sesame'")
        page.click("#sit")
        page.wait("state !== null && linked()")
        page.close()
        page = chromium.page(f"{rig.url}/#token=open%20sesame", *DESKTOP)
        page.wait("state !== null && linked()")
        assert "sesame" not in page.evaluate("location.href")
        page.close()


@pytest.mark.parametrize("size", [PHONE, PHONE_ASIDE, SMALL, TABLET, DESKTOP])
@pytest.mark.parametrize("drive", [False, True], ids=["watching", "driving"])
def test_everything_fits_on_the_screen_and_is_large_enough_for_a_finger(chromium, rig, size, drive):
    with opened(chromium, rig, size, drive) as page:
        rig.rig.around.update(
            episode="20300101-120000", reason="a reason that is as long as the arm's reasons are: " * 2
        )
        page.wait("$('recording').className === 'on'")
        boxes = page.evaluate(
            "[...document.querySelectorAll('button, .pad, input')].filter(e => e.checkVisibility())"
            ".map(e => [e.id || e.dataset.pad || e.textContent, ...(b => [b.left, b.top, b.right, b.bottom])(e.getBoundingClientRect())])"
        )
        width, height = size
        for name, left, top, right, bottom in boxes:
            assert left >= 0 and top >= 0 and right <= width and bottom <= height, name
            assert right - left >= 36 and bottom - top >= 36, name
        cards = [box for box in boxes if not (box[0] in ("sit", "who") or drive is False)]
        for number, (name, left, top, right, bottom) in enumerate(cards):
            for other, left2, top2, right2, bottom2 in cards[number + 1 :]:
                assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top, (name, other)
