"""What a person gets who gives the command line something that cannot work: one clear error, exit code 1, no traceback."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.tiny_bundle import write_tiny_bundle
from vigil.policy.spec import LOOP_FILE
from vigil.rig import load_rig, root
from vigil.run.domains import DOMAINS

VIGIL = Path(sys.executable).with_name("vigil")


def vigil(*arguments: object, **env: str) -> str:
    """Run ``vigil``, which has to refuse; gives what it said."""
    done = subprocess.run(
        [VIGIL, *map(str, arguments)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode not in (0, None), f"it did not refuse: {said}"
    assert "Traceback" not in said, said
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, f"one error was expected: {said}"
    return " ".join(done.stderr.split())


def write_rig(folder: Path, **changes: dict) -> Path:
    """A copy of the simulated rig with other settings; a bundle is made for it unless it names one."""
    if "bundle" not in changes.get("policy", {}):
        bundle = write_tiny_bundle(folder / "bundle")
        changes["policy"] = {**changes.get("policy", {}), "bundle": str(bundle)}
    data = load_rig("franka_sim").model_dump(mode="json", exclude_none=True)
    for section, settings in changes.items():
        data[section] = {**data[section], **settings}
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@pytest.mark.parametrize("command", ["up", "evaluate", "collect", "demo"])
def test_unknown_rig_names_those_there_are(command):
    said = vigil(command, "frankenstein")
    assert "frankenstein" in said and "franka_sim" in said


@pytest.mark.parametrize("command", ["up", "evaluate"])
def test_broken_yaml_names_file_and_line(command, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: broken\nnamespace: [\n")
    assert f"{path}:" in (said := vigil(command, path)) and "not valid YAML" in said


def test_a_bad_limit_names_file_line_and_value(tmp_path):
    path = write_rig(tmp_path, watchdogs={"chunk": -1.0})
    said = vigil("evaluate", path)
    line = path.read_text().splitlines().index("  chunk: -1.0") + 1
    assert f"{path}:{line}" in said and "-1.0" in said


@pytest.mark.parametrize("command", ["up", "evaluate", "demo"])
def test_a_missing_bundle_is_named(command, tmp_path):
    path = write_rig(tmp_path, policy={"bundle": str(tmp_path / "nowhere")})
    assert str(tmp_path / "nowhere") in vigil(command, path)


@pytest.mark.parametrize("command", ["up", "evaluate"])
def test_a_corrupted_bundle_is_named(command, tmp_path):
    path = write_rig(tmp_path)
    graph = tmp_path / "bundle" / LOOP_FILE
    graph.write_bytes(graph.read_bytes()[:-100])
    assert LOOP_FILE in vigil(command, path)


def test_a_bundle_without_calibration_is_refused_by_the_monitor(tmp_path):
    said = vigil("up", write_rig(tmp_path))
    assert "node monitor" in said and "calibrat" in said


def test_the_calibration_of_another_policy_is_refused_with_the_reason(tmp_path):
    path = write_rig(tmp_path)
    shutil.copytree(root() / "models" / "franka_pick_place" / "monitor", tmp_path / "bundle" / "monitor")
    said = vigil("up", path)
    assert "node monitor" in said and "another policy" in said


def test_without_egl_the_camera_says_so(tmp_path):
    (tmp_path / "no_vendors").mkdir()
    said = vigil("up", write_rig(tmp_path), __EGL_VENDOR_LIBRARY_DIRS=str(tmp_path / "no_vendors"))
    assert "node camera_" in said and "EGL" in said


@pytest.mark.parametrize("domain", ["233", "-1", "mine"])
def test_a_domain_without_a_port_is_refused(domain, tmp_path):
    said = vigil("up", write_rig(tmp_path), ROS_DOMAIN_ID=domain)
    assert "ROS_DOMAIN_ID" in said and "0 to 232" in said


def test_no_free_port_is_one_error(tmp_path):
    locks = [(tmp_path / f"vigil_domain_{number}.lock").open("w") for number in DOMAINS]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert "no free port" in vigil("evaluate", write_rig(tmp_path), ROS_DOMAIN_ID="", TMPDIR=str(tmp_path))


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("evaluate", "franka_sim", "--perturb", "earthquake"), "object_moved"),
        (("evaluate", "franka_sim", "--speed", "warp"), "real"),
        (("collect", "franka_sim", "--speed", "warp"), "real"),
        (("evaluate", "franka_sim", "--speed", "real", "--latency", "0.1"), "lock step"),
    ],
)
def test_options_that_do_not_exist_name_those_that_do(arguments, named):
    assert named in vigil(*arguments)


@pytest.mark.parametrize("command", ["demo", "evaluate", "collect"])
def test_what_needs_a_simulation_refuses_a_real_robot(command):
    assert "no `sim` section" in vigil(command, "franka")


def test_a_folder_of_another_evaluation_is_not_mixed_up(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text('{"rig": "franka_sim", "seed": 1}')
    said = vigil("evaluate", write_rig(tmp_path), "--seed", 2, "--out", tmp_path / "out")
    assert "another run" in said and "seed 1 (now 2)" in said
