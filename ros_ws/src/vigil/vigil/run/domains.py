"""ROS domains that nobody else on this machine uses, so that two runs do not hear each other."""

from __future__ import annotations

import fcntl
import socket
import tempfile
from pathlib import Path
from typing import IO

from vigil.errors import VigilError

# Domains up to 101 keep every DDS port below Linux's ephemeral ports; 0 is everybody's default.
DOMAINS = range(1, 102)
PORT_BASE, DOMAIN_GAIN, FIRST_PARTICIPANT = 7400, 250, 10  # DDSI-RTPS 9.6.1.1, unicast discovery port


class Domain:
    """A domain reserved for this process until `release` or its end. ``number`` is its ROS_DOMAIN_ID."""

    def __init__(self, number: int, lock: IO[str]) -> None:
        self.number = number
        self._lock = lock

    def release(self) -> None:
        """Give the domain back; may be called twice."""
        self._lock.close()


def reserve_domain(domains: range = DOMAINS) -> Domain:
    """A domain without participants, locked against other callers of this function.

    Raises:
        VigilError: every domain is in use.
    """
    for number in domains:
        lock = _lock(number)
        if lock is None:
            continue
        if _has_participant(number):
            lock.close()
            continue
        return Domain(number, lock)
    raise VigilError(
        f"no free port for ROS 2: all domains from {domains[0]} to {domains[-1]} are in use on this machine; "
        "end what is left of earlier runs, or set ROS_DOMAIN_ID yourself"
    )


def _lock(number: int) -> IO[str] | None:
    path = Path(tempfile.gettempdir()) / f"vigil_domain_{number}.lock"
    try:
        file = path.open("w")
    except PermissionError:
        return None  # another user's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _has_participant(number: int) -> bool:
    port = PORT_BASE + DOMAIN_GAIN * number + FIRST_PARTICIPANT
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
