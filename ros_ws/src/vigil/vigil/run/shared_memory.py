"""Fast DDS's shared memory that killed processes left in /dev/shm: 33 MB for each of them, until the next boot."""

from __future__ import annotations

import fcntl
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
YOUNGEST = 10.0  # [s] a process that is just starting has made its lock file but may not have locked it yet


def remove_dead_segments(folder: Path = FOLDER) -> int:
    """Remove segments whose owner is gone; how many. A living owner holds a lock on ``fastrtps_<id>_el``."""
    removed = 0
    for lock in folder.glob("fastrtps_*_el"):
        with (
            suppress(OSError),
            lock.open("rb") as file,
        ):  # another user's, or removed by somebody else just now
            if time.time() - lock.stat().st_mtime < YOUNGEST:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
            lock.unlink()
            removed += 1
    return removed
