"""The launch file makes of a rig what the local runner makes of it. Needs the launch packages of a ROS 2 installation."""

import importlib.util

import pytest

from vigil.bringup import Options, node_specs
from vigil.errors import VigilError
from vigil.rig import load_rig, root

launch = pytest.importorskip("launch", reason="test_bringup_launch: no ROS 2 installation with launch here")
pytest.importorskip("launch_ros", reason="test_bringup_launch: no ROS 2 installation with launch_ros here")

FILE = root() / "launch" / "rig.launch.py"


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("rig_launch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def context(**arguments):
    result = launch.LaunchContext()
    result.launch_configurations.update({"lockstep": "false", "record": "true", **arguments})
    return result


def test_it_declares_its_arguments(module):
    description = module.generate_launch_description()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names == {"rig", "lockstep", "record"}


def test_one_lifecycle_node_per_spec(module):
    from launch_ros.actions import LifecycleNode

    bring_up = module.BringUp(context(), load_rig("franka_sim"), Options(record=False))
    try:
        nodes = [action for action in bring_up.actions() if isinstance(action, LifecycleNode)]
    finally:
        bring_up.close()
    expected = node_specs(load_rig("franka_sim"), Options(record=False))
    assert [node.node_executable for node in nodes] == [spec.executable for spec in expected]
    assert {node.node_package for node in nodes} == {"vigil"}


def test_an_unknown_rig_is_one_clear_error(module):
    with pytest.raises(VigilError, match="unknown rig 'nosuch'"):
        module.bring_up(context(rig="nosuch"))
