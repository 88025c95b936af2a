"""The set-up: what it asks of a machine, when a step is due, and how it goes on after an interruption."""

import importlib.util
import os
import subprocess
import sys

import pytest

from vigil.rig import root

FILE = root() / "ros_ws" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """The module, with a checkout in ``tmp_path``."""
    spec = importlib.util.spec_from_file_location("bootstrap", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "messages" / "msg").mkdir(parents=True)
    (tmp_path / "messages" / "msg" / "A.msg").write_text("float64 x\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    venv = tmp_path / ".venv"
    for name, value in {
        "ROOT": tmp_path,
        "VENV": venv,
        "PYTHON": venv / "bin" / "python",
        "LOG": venv / "setup.log",
        "STAMPS": venv / "setup-stamps.json",
        "MESSAGES": tmp_path / "messages",
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def done(bootstrap, monkeypatch):
    """Names of the steps that ran, in order; each does nothing but that."""
    ran = []

    def make_environment(fresh=False):
        ran.append("fresh environment" if fresh else "environment")
        (bootstrap.VENV / "bin").mkdir(parents=True, exist_ok=True)
        bootstrap.PYTHON.touch()

    monkeypatch.setattr(bootstrap, "make_environment", make_environment)
    for name in ("install_packages", "build_messages", "verify"):
        monkeypatch.setattr(bootstrap, name, lambda name=name: ran.append(name))
    monkeypatch.setattr(bootstrap, "check_prerequisites", lambda found: None)
    return ran


ALL = ["environment", "install_packages", "build_messages", "verify"]


def test_second_run_does_nothing_and_says_nothing(bootstrap, done, capsys):
    assert bootstrap.main() == 0
    assert done == ALL
    capsys.readouterr()
    assert bootstrap.main() == 0
    assert done == ALL
    assert capsys.readouterr() == ("", "")


def test_changed_message_is_built_without_installing_again(bootstrap, done):
    bootstrap.main()
    done.clear()
    (bootstrap.MESSAGES / "msg" / "A.msg").write_text("float64 y\n")
    assert bootstrap.main() == 0
    assert done == ["build_messages", "verify"]


def test_changed_dependencies_install_and_build(bootstrap, done):
    bootstrap.main()
    done.clear()
    (bootstrap.ROOT / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    assert bootstrap.main() == 0
    assert done == ["install_packages", "build_messages", "verify"]


def test_removed_environment_is_made_again(bootstrap, done):
    bootstrap.main()
    done.clear()
    bootstrap.PYTHON.unlink()
    assert bootstrap.main() == 0
    assert done == ALL


def test_a_failed_build_resumes_at_the_build(bootstrap, done, monkeypatch, capsys):
    def fail():
        raise bootstrap.SetupError("no space left")

    build = bootstrap.build_messages
    monkeypatch.setattr(bootstrap, "build_messages", fail)
    assert bootstrap.main() == 1
    assert "error: no space left" in capsys.readouterr().err
    monkeypatch.setattr(bootstrap, "build_messages", build)
    done.clear()
    assert bootstrap.main() == 0
    assert done == ["build_messages", "verify"]


def test_an_installation_that_was_cut_off_starts_from_a_fresh_environment(bootstrap, done, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    install = bootstrap.install_packages
    monkeypatch.setattr(bootstrap, "install_packages", interrupted)
    assert bootstrap.main() == 130
    monkeypatch.setattr(bootstrap, "install_packages", install)
    done.clear()
    assert bootstrap.main() == 0
    assert done == ["fresh environment", *ALL[1:]]


def test_everything_that_is_missing_is_named_at_once(bootstrap):
    found = [("a C compiler (cc)", False, "gcc"), ("make", True, "make"), ("CMake", False, "cmake")]
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_prerequisites(found)
    lines = str(caught.value).splitlines()
    assert "  - a C compiler (cc): sudo apt-get install -y gcc" in lines
    assert "  - CMake: sudo apt-get install -y cmake" in lines
    assert lines[-1].endswith("apt-get install -y gcc cmake")
    assert not any(line.startswith("  - make") for line in lines)


def test_this_machine_has_what_is_needed(bootstrap):
    bootstrap.check_prerequisites(bootstrap.prerequisites())


def test_missing_compilers_are_noticed(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {package for _, present, package in bootstrap.prerequisites() if not present}
    assert missing == {"gcc", "g++", "make", "cmake"}


def test_no_driver_for_egl_is_noticed():
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('b', {str(FILE)!r}); m = u.module_from_spec(s)\n"
        "s.loader.exec_module(m)\n"
        "print([package for what, present, package in m.prerequisites() if not present])"
    )
    # GLVND finds its drivers in this folder.
    env = {**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent", "__EGL_VENDOR_LIBRARY_FILENAMES": ""}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == "['libgl1-mesa-dri']"


@pytest.mark.parametrize("version", [(3, 9), (3, 15), (2, 7)])
def test_other_pythons_are_refused(bootstrap, version):
    with pytest.raises(bootstrap.SetupError, match=r"3\.10 to 3\.14"):
        bootstrap.check_interpreter(version, "Linux", "x86_64")


def test_other_machines_are_refused(bootstrap):
    with pytest.raises(bootstrap.SetupError, match="Linux x86_64"):
        bootstrap.check_interpreter((3, 12), "Linux", "aarch64")


def test_cmake_files_name_this_environment(bootstrap):
    share = bootstrap.VENV / "share" / "x" / "cmake"
    share.mkdir(parents=True)
    file = share / "xExport.cmake"
    file.write_text(
        'INCLUDES "/opt/python/cp311-cp311/include/python3.11;/usr/include"\n'
        'LIB "/opt/python/cp311-cp311/lib/python3.11/site-packages/numpy"\n'
    )
    bootstrap.fix_cmake_paths()
    first = file.read_text()
    assert "/opt/python" not in first
    assert f"{bootstrap.VENV}/lib/python3.{sys.version_info[1]}/site-packages/numpy" in first
    bootstrap.fix_cmake_paths()
    assert file.read_text() == first


def test_a_failing_command_shows_the_end_of_its_output(bootstrap):
    bootstrap.VENV.mkdir()
    with pytest.raises(bootstrap.SetupError, match="last words"):
        bootstrap.run(sys.executable, "-c", "print('last words'); raise SystemExit(1)")


def test_a_sourced_ros_does_not_reach_the_steps(bootstrap, monkeypatch):
    for name in (
        "PYTHONPATH",
        "AMENT_PREFIX_PATH",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
    ):
        monkeypatch.setenv(name, "/opt/ros/jazzy")
    env = bootstrap.child_environment()
    assert "/opt/ros/jazzy" not in env.values()
    assert env["PATH"].startswith(str(bootstrap.VENV / "bin"))


def test_setup_of_this_checkout_is_quick_when_nothing_is_due():
    done = subprocess.run([sys.executable, FILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
