"""Waiting for what will be so, without ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float = 30.0, what: str = "condition") -> T:
    """First true result of ``condition``; fails the test after ``timeout`` [s]."""
    until = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < until, f"{what}: not met within {timeout:g} s"
        time.sleep(0.01)
    return result
