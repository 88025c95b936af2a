"""Picture messages as the bytes that go over the wire, made without a message object of each frame."""

from __future__ import annotations

import struct

import numpy as np

STAMP = struct.Struct("<iI")  # of the header, behind four bytes that tell the encoding


class WireImage:
    """Serialised ``sensor_msgs/Image`` messages that differ in stamp and picture alone.

    To publish a message object, rclpy first copies the picture into a C message and then serialises that. The picture is the
    last field, so that the bytes before it are always the same, but for the stamp.
    """

    def __init__(self, serialised: bytes, size: int) -> None:
        """
        Args:
            serialised: one such message (little-endian CDR).
            size: of its picture [bytes].

        Raises:
            ValueError: this is no message that ends in ``size`` bytes of picture.
        """
        before = len(serialised) - size
        counted = serialised[before - 4 : before]
        if before < 4 + STAMP.size or counted != struct.pack("<I", size):
            raise ValueError(f"a message of {len(serialised)} bytes that does not end in a picture of {size}")
        self._before, self._size = bytearray(serialised[:before]), size

    def message(self, stamp: int, picture: np.ndarray) -> bytes:
        """The message of a picture taken at ``stamp`` [ns]; one that is not C-contiguous is copied once more.

        Raises:
            ValueError: the picture has another size.
        """
        if picture.nbytes != self._size:
            raise ValueError(
                f"a picture {list(picture.shape)} of {picture.nbytes} bytes: this topic's have {self._size}"
            )
        STAMP.pack_into(self._before, 4, *divmod(stamp, 1_000_000_000))
        return b"".join((self._before, np.ascontiguousarray(picture).data))
