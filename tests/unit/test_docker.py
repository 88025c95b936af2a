"""Docker cannot run here; what its files name has to exist."""

import re

import yaml

from vigil.rig import root

DOCKER = root() / "docker"


def test_compose_names_what_exists():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(compose["services"]) == {"robot", "gpu"}
    for name, service in compose["services"].items():
        build = service["build"]
        context = (DOCKER / build["context"]).resolve()
        assert context == root().resolve(), name
        assert (context / build["dockerfile"]).is_file(), name
        assert service["network_mode"] == "host" and service["ipc"] == "host", name
        assert service["command"][2] == "/vigil/launch/rig.launch.py", name
        for volume in service["volumes"]:
            host, inside = volume.split(":")[:2]
            assert inside.startswith(("/vigil/", "/dev")), volume
            if host.startswith("../") and host != "../out":
                assert (DOCKER / host).is_dir(), volume


def test_what_is_copied_exists_and_is_not_ignored():
    allowed = [
        line[1:] for line in (root() / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    copied = re.findall(r"^COPY (\S+) ", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert copied
    for source in copied:
        assert (root() / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_the_robot_image_can_export_what_it_records():
    """The extras that its Dockerfile takes from pyproject.toml, by their names there."""
    extras = re.findall(r"\bo\['(\w+)'\]", (DOCKER / "Dockerfile").read_text())
    assert extras == ["cpu", "realsense", "dataset"]
    text = (root() / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in extras)


def test_gpu_image_builds_on_the_robot_image():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    base = re.search(r"^ARG BASE=(\S+)$", (DOCKER / "Dockerfile.gpu").read_text(), re.MULTILINE)[1]
    assert base == compose["services"]["robot"]["image"]


def test_entrypoint_is_executable():
    assert (DOCKER / "entrypoint.sh").stat().st_mode & 0o111
