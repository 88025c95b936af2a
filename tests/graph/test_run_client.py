"""The client of a running rig, over real DDS."""

from __future__ import annotations

import threading
import time

import pytest
from std_srvs.srv import Trigger
from vigil_msgs.msg import ControlState, TaskState

from support.live_node import graph
from vigil.errors import VigilError
from vigil.node import EVENTS, LATCHED
from vigil.rig import load_rig
from vigil.run.client.node import RigClient
from vigil.run.session import derive_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    path = tmp_path_factory.mktemp("rig")
    text = load_rig("franka_sim").path.read_text().replace("namespace: franka_sim", "namespace: client_test")
    (path / "own.yaml").write_text(text)
    return derive_rig(load_rig(path / "own.yaml"), path)


@pytest.fixture(scope="module")
def peer(rig):
    with graph(rig.namespace) as peer:
        yield peer


@pytest.fixture
def client(rig):
    with RigClient(rig) as client:
        yield client


def test_a_missing_node_is_named(client):
    with pytest.raises(VigilError, match=r"no service /client_test/sim/reset.*node sim does not run"):
        client.call("sim/reset", None, timeout=0.3)


def test_a_node_that_does_not_answer_is_named(client, rig):
    answered = threading.Event()

    def hang(request, response):
        time.sleep(1.0)
        answered.set()
        return response

    with graph(rig.namespace) as peer:
        peer.node.create_service(Trigger, "arm/estop", hang)
        with pytest.raises(VigilError, match=r"arm/estop gave no answer in 0\.5 s: node arm hangs"):
            client.call("arm/estop", Trigger.Request(), timeout=0.5)
        assert answered.wait(5)


def test_a_refusal_carries_its_reason(client, rig):
    def refuse(request, response):
        response.success, response.message = False, "no chunk yet"
        return response

    with graph(rig.namespace) as peer:
        peer.node.create_service(Trigger, "arm/engage", refuse)
        with pytest.raises(VigilError, match="arm/engage refused: no chunk yet"):
            client.engage()


def test_changes_of_authority_are_kept_and_late_joiners_know_the_state(rig, peer):
    publisher = peer.node.create_publisher(ControlState, "arm/state", LATCHED)
    publisher.publish(ControlState(authority_name="HOLD", transition=4))
    with RigClient(rig) as client:
        client.wait_until(lambda c: c.arm is not None, 5, "the latched state arrives")
        publisher.publish(ControlState(authority_name="POLICY", transition=5))
        client.wait_until(lambda c: c.arm.authority_name == "POLICY", 5, "the change arrives")
        assert [s.transition for s in client.transitions] == [5], "the state at the beginning is no change"
        client.forget()
        assert not client.transitions and client.arm.transition == 5
    peer.node.destroy_publisher(publisher)


def test_waiting_ends_with_who_is_silent(client, peer):
    publisher = peer.node.create_publisher(TaskState, "sim/task", EVENTS)
    with pytest.raises(
        VigilError, match=r"the task ends: not within 0\.3 s; silent: .*sim/task \(never heard\)"
    ):
        client.wait_until(lambda c: c.task is not None and c.task.success, 0.3, "the task ends")
    peer.node.destroy_publisher(publisher)
