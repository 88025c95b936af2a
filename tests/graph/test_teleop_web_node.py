"""A browser's hand over real DDS: the real teleop node, arm and simulation, in real time."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from std_srvs.srv import Trigger
from vigil_msgs.msg import ControlState, TeleopCommand

from support.live_node import graph, process, wait_for
from support.rigs import real_rig
from support.web import Browser, free_port
from vigil.node import EVENTS, LATCHED, SENSOR, WARN
from vigil.rig import load_rig
from vigil.run.session import derive_rig

NAMESPACE = "teleop_web_test"
MODULE = "vigil.teleop.node"
SECTION = {"device": "web", "rate": 50, "timeout": 1.0}  # a busy machine is no lost browser


@pytest.fixture
def rig(tmp_path):
    return derive_rig(
        load_rig("franka_sim"),
        tmp_path / "rig",
        teleop={**SECTION, "port": free_port()},
        watchdogs={"operator": 2.0},
    )


def take_over(browser: Browser, commands: list[TeleopCommand]) -> None:
    """Let go and hold the deadman until it is heard."""

    def held() -> bool:
        for deadman in (False, True):
            browser.do(deadman=deadman)
            seen = browser.states
            wait_for(lambda seen=seen: browser.states > seen + 8)
        return commands[-1].deadman

    wait_for(held)


def test_a_browser_drives_the_real_arm_and_stops_it(rig, tmp_path):
    log = tmp_path / "teleop"
    with (
        graph(NAMESPACE) as client,
        process("vigil.sim.node", "sim", NAMESPACE, tmp_path / "sim", rig=rig.path),
        process("vigil.arm.node", "arm", NAMESPACE, tmp_path / "arm", rig=rig.path),
        process(MODULE, "teleop", NAMESPACE, log, rig=rig.path),
    ):
        commands = client.collect(TeleopCommand, "teleop/command", SENSOR)
        arm = client.collect(ControlState, "arm/state", LATCHED)
        diagnostics = client.collect(DiagnosticArray, "/diagnostics", EVENTS)
        for name in ("sim", "arm"):
            assert client.configure(name)
            assert client.activate(name)
        assert client.configure("teleop")
        browser = Browser(rig.teleop.port, "Ada")
        wait_for(lambda: browser.state.get("live") is False)  # served before anybody reads it
        assert client.activate("teleop")
        wait_for(lambda: browser.state["live"] and browser.state["authority"] == "HOLD")
        assert browser.state["reason"] == arm[-1].reason
        assert not any(c.deadman or len(c.positions) for c in commands)

        # It takes over at the measured pose, and the arm follows.
        browser.drive()
        wait_for(lambda: browser.state["measured"])
        take_over(browser, commands)
        wait_for(lambda: browser.state["authority"] == "OPERATOR" and browser.state["deadman"])
        taken = wait_for(
            lambda: next((s for s in arm if s.authority_name == "OPERATOR" and s.first_step), None)
        )
        assert np.abs(np.array(taken.first_step)[:7]).max() <= 0.01
        assert (commands[-1].device, commands[-1].mode) == ("web", TeleopCommand.RELATIVE)
        start = np.array(arm[-1].measured)
        browser.do(axes=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
        wait_for(lambda: np.abs(np.array(arm[-1].measured) - start).max() > 0.05)

        # The network is gone: released, and held.
        browser.vanish()
        wait_for(lambda: not commands[-1].deadman)
        wait_for(lambda: arm[-1].authority_name == "HOLD")
        assert arm[-1].event == "release"

        # The next one drives; somebody who only watches stops the arm.
        driver, watcher = Browser(rig.teleop.port, "Bob"), Browser(rig.teleop.port)
        driver.drive()
        take_over(driver, commands)
        wait_for(lambda: watcher.state.get("driver") == "Bob (127.0.0.1)")
        watcher.press("mark")
        wait_for(lambda: "no recorder answers" in watcher.state["answer"])
        watcher.press("estop")
        wait_for(lambda: arm[-1].authority_name == "ESTOP")
        wait_for(lambda: watcher.state["answer"] == "estop: done" and watcher.state["authority"] == "ESTOP")

        def told() -> str:
            return next(
                (
                    s.message
                    for a in reversed(diagnostics)
                    for s in a.status
                    if s.name == "teleop: device web"
                ),
                "",
            )

        wait_for(lambda: f":{rig.teleop.port}, Bob (127.0.0.1) drives" in told())
        assert client.call(Trigger, "arm/reset", Trigger.Request()).success
        wait_for(lambda: driver.state["authority"] == "HOLD")
        for left in (driver, watcher):
            left.close()
    assert "Traceback" not in log.read_text()


def test_without_an_arm_the_e_stop_says_so(tmp_path):
    rig = real_rig(tmp_path, {**SECTION, "port": free_port()}, watchdogs={"operator": 2.0})
    log = tmp_path / "log"
    with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, log, rig=rig.path):
        diagnostics = client.collect(DiagnosticArray, "/diagnostics", EVENTS)
        assert client.configure("teleop")
        assert client.activate("teleop")
        browser = Browser(rig.teleop.port)
        wait_for(lambda: browser.state.get("live"))
        browser.press("estop")
        wait_for(lambda: "press the hardware's own e-stop" in browser.state["answer"])
        wait_for(
            lambda: any(
                status.level == WARN and "no joint states" in status.message
                for array in diagnostics
                for status in array.status
                if status.name == "teleop: device web"
            )
        )
        assert browser.state["authority"] == ""  # nobody tells it
        browser.close()
    assert "Traceback" not in log.read_text()


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        rig = real_rig(tmp_path, {"device": "web", "port": other.getsockname()[1]})
        log = tmp_path / "log"
        with graph(NAMESPACE) as client, process(MODULE, "teleop", NAMESPACE, log, rig=rig.path):
            assert not client.configure("teleop")
    assert "is in use: end what listens there" in log.read_text()
    assert "Traceback" not in log.read_text()
