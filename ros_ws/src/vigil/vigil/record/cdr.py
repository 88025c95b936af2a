"""Serialised ROS 2 messages (CDR) to Python objects by definition text alone: no ROS needed."""

from __future__ import annotations

import struct
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vigil.errors import VigilError

_STAMP = struct.Struct("<iI")  # of a header, behind the four bytes that tell the encoding


def stamp_of(data: bytes | memoryview) -> int:
    """Stamp [ns] of a serialised message that begins with a ``std_msgs/Header``."""
    sec, nanosec = _STAMP.unpack_from(data, 4)
    return sec * 1_000_000_000 + nanosec


class MessageType:
    """One message type, made from its full definition.

    Messages are objects with the fields as attributes; sequences of numbers are NumPy arrays, which may be read-only
    views of the serialised bytes.
    """

    def __init__(self, name: str, definition: str) -> None:
        self.name = name
        self._store = get_typestore(Stores.EMPTY)
        try:
            self._store.register(get_types_from_msg(definition, name))
        except Exception as error:  # the parser raises its own errors and KeyError alike
            raise VigilError(f"the definition of {name} cannot be read: {error}") from None

    def decode(self, data: bytes | memoryview) -> Any:
        """The message that ``data`` holds.

        Raises:
            VigilError: ``data`` is not a message of this type.
        """
        try:
            return self._store.deserialize_cdr(data, self.name)
        except Exception as error:  # whatever damaged bytes lead to
            raise VigilError(f"{len(data)} bytes are no {self.name}: {error}") from None
