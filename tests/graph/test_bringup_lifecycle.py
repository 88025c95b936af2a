"""Processes and life cycles over real DDS: order, refusal, restart after kill -9."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from vigil.bringup import NodeSpec
from vigil.rig import rig_path
from vigil.run.node import LifecycleManager
from vigil.run.supervisor import ProcessSpec, Supervisor, last_error

PLAIN = Path(__file__).parents[1] / "support" / "plain_node.py"


def spec(name, after=(), **parameters):
    parameters = {"rig": str(rig_path("franka_sim")), **parameters}
    return NodeSpec(name=name, room="test", namespace="/bringup_test", parameters=parameters, after=after)


@contextmanager
def brought_up(specs, folder):
    commands = [ProcessSpec(s.name, [sys.executable, str(PLAIN), *s.ros_arguments()]) for s in specs]
    with Supervisor(commands, folder, os.environ) as supervisor:

        def generation(name):
            status = supervisor.status(name)
            return status.starts if status.running else 0

        with LifecycleManager(specs, generation) as manager:
            yield supervisor, manager


def wait_for(condition, timeout=30.0):
    until = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < until, "condition not met in time"
        time.sleep(0.02)
    return result


def test_nodes_become_active_each_after_those_it_needs(tmp_path):
    specs = [spec("first", setup_duration=1.5), spec("second", after=("first",)), spec("beside")]
    seen = []
    with brought_up(specs, tmp_path) as (_, manager):

        def all_active():
            for name in ("first", "second", "beside"):
                if manager.state(name) == "active" and name not in seen:
                    seen.append(name)
            return len(seen) == 3

        wait_for(all_active)
        assert seen.index("first") < seen.index("second")


def test_a_refusal_is_told_with_its_reason_and_tried_again(tmp_path):
    specs = [spec("refusing", refusal="there is no bundle: train one"), spec("later", after=("refusing",))]
    with brought_up(specs, tmp_path) as (supervisor, manager):
        wait_for(lambda: manager.refusal("refusing") == "configure")
        assert last_error(supervisor.log("refusing")) == "cannot configure: there is no bundle: train one"
        assert manager.state("refusing") == "unconfigured"
        wait_for(lambda: manager.state("later") == "unconfigured")
        wait_for(lambda: supervisor.log("refusing").read_text().count("there is no bundle") >= 2)


def test_a_killed_node_is_active_again_soon(tmp_path):
    specs = [spec("one"), spec("two", after=("one",))]
    with brought_up(specs, tmp_path) as (supervisor, manager):
        wait_for(lambda: manager.active(["one", "two"]))
        os.kill(supervisor.status("one").pid, signal.SIGKILL)
        wait_for(lambda: manager.state("one") != "active", timeout=5.0)
        killed = time.monotonic()
        wait_for(lambda: manager.state("one") == "active")
        assert time.monotonic() - killed < 10.0
        assert manager.state("two") == "active"
        assert supervisor.status("one").starts == 2
