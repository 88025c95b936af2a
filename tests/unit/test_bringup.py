"""From a rig to its nodes: names, parameters, order, environment."""

import dataclasses
import xml.etree.ElementTree as ET

import pytest
import yaml

from vigil.bringup import PROFILE_VARIABLES, Options, check_domain, dds_profile, environment, node_specs
from vigil.errors import VigilError
from vigil.rig import load_rig, root


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture(scope="module")
def real_rig(tmp_path_factory):
    data = yaml.safe_load((root() / "launch" / "rigs" / "franka_sim.yaml").read_text())
    del data["sim"]
    data["teleop"]["device"] = "keyboard"
    data["name"] = "real"
    for number, camera in enumerate(data["cameras"]):
        camera.update(driver="realsense", serial=str(number))
    path = tmp_path_factory.mktemp("rigs") / "real.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_rig(path)


def names(specs):
    return [spec.name for spec in specs]


def by_name(specs):
    return {spec.name: spec for spec in specs}


def test_full_rig_in_order(rig):
    specs = node_specs(rig)
    order = ["sim", "camera_wrist", "camera_scene", "arm", "policy", "monitor", "teleop", "record"]
    assert names(specs) == order
    assert [spec.executable for spec in specs] == [
        "sim_node",
        "camera_node",
        "camera_node",
        "arm_node",
        "policy_node",
        "monitor_node",
        "teleop_node",
        "record_node",
    ]
    assert {spec.namespace for spec in specs} == {"/franka_sim"}


@pytest.mark.parametrize(
    "options", [Options(), Options(mode="collect"), Options(record=False, lockstep=True)]
)
def test_a_node_comes_after_those_it_waits_for(rig, options):
    specs = node_specs(rig, options)
    for position, spec in enumerate(specs):
        assert set(spec.after) <= set(names(specs[:position])), spec.name


def test_every_module_and_executable_exists(rig):
    setup = (root() / "ros_ws" / "src" / "vigil" / "setup.py").read_text()
    for spec in node_specs(rig):
        assert (root() / "ros_ws" / "src" / "vigil" / f"{spec.module.replace('.', '/')}.py").is_file()
        assert f'"{spec.room}"' in setup


def test_collecting_needs_no_cameras_policy_or_monitor(rig):
    specs = by_name(node_specs(rig, Options(mode="collect", lockstep=True)))
    assert list(specs) == ["sim", "arm", "teleop", "record"]
    assert specs["sim"].parameters["participants"] == ["arm", "teleop"]


def test_lock_step_reaches_every_node(rig):
    specs = by_name(node_specs(rig, Options(lockstep=True)))
    assert all(spec.parameters["use_sim_time"] is True for spec in specs.values())
    assert specs["sim"].parameters["lockstep"] is True
    assert specs["sim"].parameters["participants"] == ["arm", "policy"]
    assert specs["camera_wrist"].parameters["rate"] == pytest.approx(1.0 / rig.policy.period)


def test_real_time_cameras_run_at_their_own_rate(rig):
    specs = by_name(node_specs(rig))
    assert specs["camera_wrist"].parameters["rate"] == rig.camera("wrist").rate
    assert not any(spec.parameters["use_sim_time"] for spec in specs.values())


def test_without_recorder_or_monitor(rig):
    bare = rig.model_copy(update={"monitor": rig.monitor.model_copy(update={"level": "none"})})
    bare._path = rig.path
    assert not {"record", "monitor"} & set(names(node_specs(bare, Options(record=False))))


def test_real_rig_has_no_simulation(real_rig):
    specs = by_name(node_specs(real_rig))
    assert "sim" not in specs
    assert specs["arm"].after == ()


@pytest.mark.parametrize("options", [Options(lockstep=True), Options(mode="collect")])
def test_a_real_rig_refuses_what_needs_a_simulation(real_rig, options):
    with pytest.raises(VigilError, match="rig real has no `sim` section"):
        node_specs(real_rig, options)


def test_ros_arguments_survive_yaml(rig):
    spec = node_specs(rig, Options(lockstep=True))[0]
    spec = dataclasses.replace(spec, parameters={**spec.parameters, "text": "it's: [1]"})
    arguments = spec.ros_arguments()
    assert arguments[:5] == ["--ros-args", "-r", "__ns:=/franka_sim", "-r", "__node:=sim"]
    given = dict(value.split(":=", 1) for flag, value in zip(arguments, arguments[1:]) if flag == "-p")  # noqa: B905, RUF007
    assert {name: yaml.safe_load(value) for name, value in given.items()} == dict(spec.parameters)


def test_environment_sets_the_profile_and_leaves_what_a_person_set(rig, real_rig):
    fresh = environment(rig, {})
    assert {fresh[name] for name in PROFILE_VARIABLES} == {str(dds_profile())}
    assert fresh["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in environment(real_rig, {})
    theirs = environment(rig, {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml", "MUJOCO_GL": "osmesa"})
    assert {theirs[name] for name in PROFILE_VARIABLES} == {"/mine.xml"}
    assert theirs["MUJOCO_GL"] == "osmesa"


@pytest.mark.parametrize("domain", ["", "0", "42", "232"])
def test_domains_that_are(domain):
    check_domain(domain)


@pytest.mark.parametrize("domain", ["233", "-1", "abc", "1.5", " "])
def test_domains_that_are_not(rig, domain):
    with pytest.raises(VigilError, match="ROS_DOMAIN_ID"):
        environment(rig, {"ROS_DOMAIN_ID": domain})


def test_dds_profile_fits_images():
    space = {"d": "http://www.eprosima.com"}
    tree = ET.parse(dds_profile())
    sizes = {
        tag: int(tree.find(f".//d:transport_descriptor[d:type='SHM']/d:{tag}", space).text)
        for tag in ("segment_size", "maxMessageSize")
    }
    assert sizes["maxMessageSize"] > 1920 * 1080 * 3
    assert sizes["segment_size"] >= 4 * sizes["maxMessageSize"]
    used = [it.text for it in tree.findall(".//d:userTransports/d:transport_id", space)]
    defined = [it.text for it in tree.findall(".//d:transport_descriptor/d:transport_id", space)]
    assert used == defined
    assert tree.find(".//d:participant", space).get("is_default_profile") == "true"
