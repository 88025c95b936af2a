"""Serialised ROS 2 messages made without ROS, for tests of what reads them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vigil.record.definitions import full_definition


@cache
def _store(type_name: str):
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(full_definition(type_name), type_name))
    return store


def encode(type_name: str, **fields: Any) -> bytes:
    """One message; nested messages are given as (type name, fields)."""
    store = _store(type_name)

    def make(name: str, values: dict[str, Any]) -> Any:
        made = {k: make(*v) if isinstance(v, tuple) else v for k, v in values.items()}
        return store.types[name](**made)

    return bytes(store.serialize_cdr(make(type_name, fields), type_name))


def control_state(stamp: int, authority: str, **changes: Any) -> bytes:
    """A ``vigil_msgs/ControlState`` of eight columns at rest, but for ``changes``; stamp in ns."""
    zero = np.zeros(8)
    values = {
        "header": header(stamp),
        "authority": 0,
        "authority_name": authority,
        "reason": "",
        "transition": 0,
        "event": "",
        "event_stamp": time(0),
        "transition_stamp": time(0),
        "first_command_stamp": time(0),
        "first_step": zero,
        "names": ["a"] * 8,
        "commanded": zero,
        "measured": zero,
        "ready": False,
        "blocked_by": "",
        "period_mean": 0.01,
        "period_p99": 0.01,
        "period_jitter": 0.0,
        "missed_deadlines": 0,
        "command_latency": -1.0,
        "histogram_names": [],
        "histogram_edges": np.zeros(0),
        "histogram_counts": np.zeros(0, np.uint32),
    }
    return encode("vigil_msgs/msg/ControlState", **{**values, **changes})


def header(stamp: int, frame: str = "") -> tuple[str, dict[str, Any]]:
    """A ``std_msgs/Header`` for `encode`; stamp in ns."""
    return ("std_msgs/msg/Header", {"stamp": time(stamp), "frame_id": frame})


def time(stamp: int) -> tuple[str, dict[str, int]]:
    """A ``builtin_interfaces/Time`` for `encode`; stamp in ns."""
    sec, nanosec = divmod(stamp, 1_000_000_000)
    return ("builtin_interfaces/msg/Time", {"sec": sec, "nanosec": nanosec})
