#!/usr/bin/env python3
"""Set up Vigil in ``.venv/`` at the root of the checkout: `make setup`, and the first step of `make demo` and `make test`.

Standard library only. Idempotent: every step is stamped with a hash of what it depends on, so a second run returns at
once and an interrupted one resumes at the step it was in. Nothing is installed outside ``.venv/``.

This is the way without a ROS installation: ROS 2 Jazzy comes as wheels. In a workspace where ROS 2 Jazzy is sourced,
`colcon build` in ``ros_ws/`` builds the same two packages against that installation, and this file is not needed.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMPS = VENV / "setup-stamps.json"
MESSAGES = ROOT / "ros_ws" / "src" / "vigil_msgs"
EXTRAS = "ros,build,dev,dataset,cpu"
UNFINISHED = "unfinished"
OLDEST, NEWEST = (3, 10), (3, 14)  # the ROS 2 wheels exist for these

# A sourced ROS, another environment's re-exec marker, or make's job server must not reach the steps below.
FOREIGN = (
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "LD_LIBRARY_PATH",
    "MAKEFLAGS",
    "MFLAGS",
    "PYTHONHOME",
    "PYTHONPATH",
    "ROS_DISTRO",
    "VIRTUAL_ENV",
    "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
)


class SetupError(Exception):
    """What is wrong and what to do, for a person."""


# Prerequisites ------------------------------------------------------------------------------------------------


def _has_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def _has_headers():
    return Path(sysconfig.get_paths()["include"], "Python.h").is_file()


def _has_compiler(*names):
    return any(shutil.which(name) for name in names)


def _loads(*names):
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _egl_devices():
    """How many EGL devices initialise, asked as MuJoCo asks (EGL_EXT_platform_device)."""
    egl = _loads("libEGL.so.1")
    if egl is None:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return 0
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    query = ctypes.CFUNCTYPE(ctypes.c_uint, integer, ctypes.POINTER(pointer), ctypes.POINTER(integer))(
        query_address
    )
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_address)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices, count = (pointer * 16)(), integer(0)
    if not query(16, devices, ctypes.byref(count)):
        return 0
    usable = 0
    for device in devices[: count.value]:
        display = get_display(0x313F, device, None)  # EGL_PLATFORM_DEVICE_EXT
        # Not terminated: a display belongs to the whole process, and somebody else in it may draw on it.
        if display and egl.eglInitialize(display, None, None):
            usable += 1
    return usable


def prerequisites():
    """(what, is it there, its Debian/Ubuntu package) for everything that pip cannot bring."""
    version = "python%d.%d" % sys.version_info[:2]
    egl = _loads("libEGL.so.1") is not None
    return [
        ("the venv module of " + version, _has_venv(), "python3-venv"),
        ("the headers of %s (Python.h)" % version, _has_headers(), "python3-dev"),
        ("a C compiler (cc)", _has_compiler("cc", "gcc", "clang"), "gcc"),
        ("a C++ compiler (c++)", _has_compiler("c++", "g++", "clang++"), "g++"),
        ("make", _has_compiler("make", "ninja"), "make"),
        ("CMake", _has_compiler("cmake"), "cmake"),
        ("the EGL library (libEGL.so.1)", egl, "libegl1"),
        ("an OpenGL library (libOpenGL.so.0)", bool(_loads("libOpenGL.so.0", "libGL.so.1")), "libopengl0"),
        ("an EGL driver that renders without a screen", not egl or _egl_devices() > 0, "libgl1-mesa-dri"),
    ]


def check_interpreter(version, system, machine):
    """Raise SetupError where the ROS 2 wheels do not exist."""
    if not OLDEST <= tuple(version) <= NEWEST:
        raise SetupError(
            "Python %d.%d is running this; ROS 2 needs 3.%d to 3.%d: install one (sudo apt-get install -y python3 "
            "python3-venv python3-dev) and name it, for example: make setup PYTHON=python3.12"
            % (version[0], version[1], OLDEST[1], NEWEST[1])
        )
    if (system, machine) != ("Linux", "x86_64"):
        raise SetupError(
            "this machine is %s %s; ROS 2 comes from PyPI for Linux x86_64 only: install ROS 2 Jazzy and run "
            "`colcon build` in ros_ws/, or use docker/" % (system, machine)
        )


def check_prerequisites(found):
    """Raise one SetupError that names everything that is missing, with the command that brings it."""
    missing = [(what, package) for what, present, package in found if not present]
    if missing:
        lines = ["these are missing:"]
        lines += ["  - %s: sudo apt-get install -y %s" % item for item in missing]
        lines += [
            "all at once: sudo apt-get update && sudo apt-get install -y " + " ".join(p for _, p in missing)
        ]
        raise SetupError("\n".join(lines))


# Steps --------------------------------------------------------------------------------------------------------


def child_environment():
    """The environment of every step, with this checkout's ``.venv/bin`` first."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    env["PATH"] = os.pathsep.join([str(VENV / "bin"), env.get("PATH", os.defpath)])
    return env


def run(*command, **extra_env):
    """Run one command with its output in the log; SetupError with the end of that output if it fails."""
    with open(LOG, "ab") as log:
        log.write(("\n$ %s\n" % " ".join(map(str, command))).encode())
        log.flush()
        start = log.tell()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=str(ROOT),
            env={**child_environment(), **extra_env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        with open(LOG, "rb") as log:
            log.seek(start)
            tail = log.read().decode(errors="replace").strip().splitlines()[-15:]
        raise SetupError(
            "`%s` failed:\n%s\nthe whole output is in %s; run the same command again to resume"
            % (" ".join(map(str, command[:4])), "\n".join("  | " + line for line in tail), LOG)
        )


def make_environment(fresh=False):
    """Create ``.venv/``; without ``fresh`` keep the one that works."""
    if PYTHON.exists() and not fresh:
        probe = "import sys, pip; print(sys.prefix, '%d.%d' % sys.version_info[:2])"
        found = subprocess.run(
            [str(PYTHON), "-c", probe], env=child_environment(), capture_output=True, text=True, check=False
        )
        if found.returncode == 0 and found.stdout.split() == [str(VENV), "%d.%d" % sys.version_info[:2]]:
            return
    VENV.mkdir(exist_ok=True)
    # The interpreter that this one came from: an environment made from an environment breaks when that one goes.
    base = getattr(sys, "_base_executable", sys.executable)
    created = subprocess.run([base, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if created.returncode:
        raise SetupError("cannot create %s: %s" % (VENV, (created.stderr or created.stdout).strip()))


def install_packages():
    """Dependencies and vigil itself (editable), with uv if there is one."""
    if shutil.which("uv"):
        run("uv", "pip", "install", "--python", PYTHON, "-e", ".[%s]" % EXTRAS)
    else:
        pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
        run(*pip, "-e", ".[%s]" % EXTRAS)


def fix_cmake_paths():
    """The wheels' CMake exports name the machine they were built on; make them name this environment."""
    site_packages = VENV / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"
    include = sysconfig.get_paths()["include"]
    for path in (VENV / "share").rglob("*.cmake"):
        text = path.read_text(encoding="utf-8")
        fixed = re.sub(r"/opt/python/[^/;\"]+/include/python3\.\d+", include, text)
        fixed = re.sub(r"/opt/python/[^/;\"]+/lib/python3\.\d+/site-packages", str(site_packages), fixed)
        if fixed != text:
            path.write_text(fixed, encoding="utf-8")


def build_messages():
    """Build vigil_msgs into ``.venv/``: its libraries land where the wheels' loader path already points."""
    fix_cmake_paths()
    prefix = {"AMENT_PREFIX_PATH": str(VENV), "CMAKE_PREFIX_PATH": str(VENV)}
    run(
        *(VENV / "bin" / "colcon", "--log-base", VENV / "build" / "log", "build"),
        *("--base-paths", MESSAGES, "--packages-select", "vigil_msgs"),
        *("--build-base", VENV / "build", "--merge-install", "--install-base", VENV),
        *("--cmake-args", "-DBUILD_TESTING=OFF", "-DPython3_EXECUTABLE=%s" % PYTHON),
        **prefix,
    )


def verify():
    """Import what every node needs, as a node does."""
    run(
        PYTHON,
        "-c",
        "import rclpy, vigil_msgs.msg, vigil_msgs.srv, vigil.rig, mujoco, onnxruntime, cv2, ruckig",
    )


# Stamps -------------------------------------------------------------------------------------------------------


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def steps(stamps):
    """(name, action, key) in order; a step is due when its key differs from its stamp."""
    fresh = stamps.get("packages") == UNFINISHED
    here = _digest(str(VENV), "%d.%d" % sys.version_info[:2], Path(__file__))
    packages = _digest(here, ROOT / "pyproject.toml")
    sources = sorted(p for p in MESSAGES.rglob("*") if p.is_file())
    messages = _digest(packages, *(part for source in sources for part in (source.name, source)))
    return [
        ("environment", lambda: make_environment(fresh), here),
        ("packages", install_packages, packages),
        ("messages", build_messages, messages),
        ("check", verify, messages),
    ]


def read_stamps():
    """Stamps of the steps that were completed, or begun; none of an environment that is gone."""
    try:
        stamps = json.loads(STAMPS.read_text()) if PYTHON.exists() else {}
    except (OSError, ValueError):
        stamps = {}
    if stamps.get("packages") == UNFINISHED:
        # pip takes a package whose installation was cut off for installed: only a fresh environment is sure.
        return {"packages": UNFINISHED}
    return stamps


def write_stamps(stamps):
    """Replace the stamps in one move, so that an interruption leaves the old ones."""
    partial = STAMPS.with_suffix(".partial")
    partial.write_text(json.dumps(stamps, indent=1))
    partial.replace(STAMPS)


def main():
    """Run the steps that are due; exit code 1 with one clear message if a step cannot be done."""
    # Two set-ups at once (make test beside make demo) would tread on each other: the second one waits.
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            stamps = read_stamps()
            due = [step for step in steps(stamps) if stamps.get(step[0]) != step[2]]
            if not due:
                return 0
            check_interpreter(sys.version_info[:2], platform.system(), platform.machine())
            check_prerequisites(prerequisites())
            for number, (name, action, key) in enumerate(due, 1):
                print("setup %d/%d: %s ..." % (number, len(due), name), end="", flush=True)
                start = time.monotonic()
                if PYTHON.exists():
                    write_stamps({**stamps, name: UNFINISHED})
                action()
                stamps[name] = key
                write_stamps(stamps)
                print(" %.0f s" % (time.monotonic() - start), flush=True)
        except SetupError as error:
            print("\nerror: %s" % error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nset-up interrupted: run the same command again to resume", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
