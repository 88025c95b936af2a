"""Interfaces of robot vendors, built for tests where the packages themselves are not installed.

The definitions in ``vendor_msgs/`` are those of interbotix_xs_msgs, franka_msgs and control_msgs (as far as the arm room
speaks them): messages are the real ones, the drivers behind them are simulated.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "vendor_msgs"
PREFIX = Path(sys.prefix) / "vendor_msgs"


def vendor_environment() -> dict[str, str]:
    """What a process needs in its environment to import the packages; they are built if they are not yet."""
    _build()
    site = PREFIX / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def before(name: str, path: Path) -> str:
        return os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])

    return {
        "PYTHONPATH": before("PYTHONPATH", site),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", PREFIX / "lib"),
        "AMENT_PREFIX_PATH": os.pathsep.join([str(PREFIX), sys.prefix]),
    }


def _build() -> None:
    files = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"\0".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()
    stamp = PREFIX / "stamp"
    PREFIX.mkdir(exist_ok=True)
    with (PREFIX / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == digest:
            return
        for old in ("build", "lib", "share", "include"):
            shutil.rmtree(PREFIX / old, ignore_errors=True)
        log = PREFIX / "build.log"
        with log.open("w") as output:
            built = subprocess.run(
                [
                    *(str(Path(sys.prefix) / "bin" / "colcon"), "--log-base", str(PREFIX / "log"), "build"),
                    *("--base-paths", str(SOURCES), "--build-base", str(PREFIX / "build")),
                    *("--merge-install", "--install-base", str(PREFIX)),
                    *("--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
                    "AMENT_PREFIX_PATH": sys.prefix,
                    "CMAKE_PREFIX_PATH": sys.prefix,
                },
            )
        assert built.returncode == 0, f"the vendors' messages were not built: see {log}"
        stamp.write_text(digest)
