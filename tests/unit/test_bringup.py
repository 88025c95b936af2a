"""From a rig to its nodes: names, parameters, order, environment."""

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from vigil.bringup import PROFILE_VARIABLES, Options, check_domain, dds_environment, environment, node_specs
from vigil.errors import VigilError
from vigil.rig import load_rig, root

DDS = {"d": "http://www.eprosima.com"}
PROFILES = root() / "launch" / "dds"


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


def dds_file(env):
    (path,) = {env[name] for name in PROFILE_VARIABLES}
    return Path(path)


def test_environment_sets_the_profile_and_leaves_what_a_person_set(rig, real_rig):
    fresh = environment(rig, {})
    assert dds_file(fresh) == PROFILES / "local.xml"
    assert fresh["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SYSTEM_DEFAULT"
    assert environment(rig, fresh) == fresh
    theirs = environment(rig, {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml", "MUJOCO_GL": "osmesa"})
    assert dds_file(theirs) == Path("/mine.xml")
    assert theirs["MUJOCO_GL"] == "osmesa"
    real = environment(real_rig, {})
    assert dds_file(real) == PROFILES / "network.xml"
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in real


@pytest.mark.parametrize("range_", ["", "SYSTEM_DEFAULT", "LOCALHOST", "SUBNET"])
@pytest.mark.parametrize("local", [True, False])
def test_a_persons_discovery_range_is_kept_but_without_shared_memory(range_, local):
    asked = {"ROS_AUTOMATIC_DISCOVERY_RANGE": range_}
    env = dds_environment(asked, local=local)
    stays_here = range_ == "LOCALHOST" or (local and range_ != "SUBNET")
    assert dds_file(env).name == ("local.xml" if stays_here else "network.xml")
    assert env.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == ("SYSTEM_DEFAULT" if stays_here else None)


@pytest.mark.parametrize("domain", ["", "0", "42", "232"])
def test_domains_that_are(domain):
    check_domain(domain)


@pytest.mark.parametrize("domain", ["233", "-1", "abc", "1.5", " "])
def test_domains_that_are_not(rig, domain):
    with pytest.raises(VigilError, match="ROS_DOMAIN_ID"):
        environment(rig, {"ROS_DOMAIN_ID": domain})


def test_only_nodes_with_raw_images_share_memory(rig):
    inherited = environment(rig, {})
    files = {
        spec.name: dds_file(dds_environment(inherited, local=True, room=spec.room))
        for spec in node_specs(rig)
    }
    sharing = {name for name, file in files.items() if file == PROFILES / "local_images.xml"}
    assert sharing == {"camera_wrist", "camera_scene", "policy"}
    assert {file for name, file in files.items() if name not in sharing} == {PROFILES / "local.xml"}
    mine = {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    assert dds_file(dds_environment(mine, local=True, room="camera")) == Path("/mine.xml")


@pytest.mark.parametrize("name", ["local", "network", "local_images", "network_images"])
def test_the_shipped_dds_profiles(name):
    tree = ET.parse(PROFILES / f"{name}.xml")
    assert tree.find(".//d:participant", DDS).get("is_default_profile") == "true"
    assert tree.find(".//d:useBuiltinTransports", DDS).text == "false"
    transports = tree.findall(".//d:transport_descriptor", DDS)
    used = [it.text for it in tree.findall(".//d:userTransports/d:transport_id", DDS)]
    assert used == [it.find("d:transport_id", DDS).text for it in transports]
    types = [it.find("d:type", DDS).text for it in transports]
    assert types == (["SHM", "UDPv4"] if "images" in name else ["UDPv4"])
    interfaces = [it.text for it in transports[-1].findall("d:interfaceWhiteList/d:address", DDS)]
    assert interfaces == (["127.0.0.1"] if "local" in name else [])
    if "images" in name:
        sizes = {tag: int(tree.find(f".//d:{tag}", DDS).text) for tag in ("segment_size", "maxMessageSize")}
        assert sizes["maxMessageSize"] > 1920 * 1080 * 3
        assert sizes["segment_size"] >= 4 * sizes["maxMessageSize"]
