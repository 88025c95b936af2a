"""Free ROS domains, and what killed processes leave in shared memory."""

import fcntl
import os
import socket
import time

import pytest

from vigil.errors import VigilError
from vigil.run.domains import DOMAIN_GAIN, FIRST_PARTICIPANT, PORT_BASE, reserve_domain
from vigil.run.shared_memory import remove_dead_segments


def test_two_reservations_differ_and_a_released_one_is_free_again():
    first, second = reserve_domain(), reserve_domain()
    try:
        assert first.number != second.number
        with pytest.raises(VigilError, match="no free port"):
            reserve_domain(range(first.number, first.number + 1))
        first.release()
        reserve_domain(range(first.number, first.number + 1)).release()
    finally:
        first.release()
        second.release()


def test_a_domain_with_a_participant_is_not_free():
    domain = reserve_domain()
    domain.release()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("", PORT_BASE + DOMAIN_GAIN * domain.number + FIRST_PARTICIPANT))
        with pytest.raises(VigilError, match=f"from {domain.number} to {domain.number}"):
            reserve_domain(range(domain.number, domain.number + 1))


def test_only_segments_of_dead_owners_go(tmp_path):
    long_ago = time.time() - 60.0
    for name in ("dead", "alive", "young"):
        (tmp_path / f"fastrtps_{name}").write_bytes(b"segment")
        lock = tmp_path / f"fastrtps_{name}_el"
        lock.touch()
        if name != "young":
            os.utime(lock, (long_ago, long_ago))
    (tmp_path / "other").touch()
    with (tmp_path / "fastrtps_alive_el").open() as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert remove_dead_segments(tmp_path) == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"fastrtps_alive", "fastrtps_alive_el", "fastrtps_young", "fastrtps_young_el", "other"}
