"""Picture messages as bytes: what is published is what the message object would have been."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from vigil.camera.wire import WireImage
from vigil.record.cdr import MessageType, stamp_of
from vigil.record.definitions import full_definition

IMAGE = "sensor_msgs/msg/Image"
HEAD = bytes([0, 1, 0, 0]) + struct.pack("<iI", 0, 0) + struct.pack("<I", 8) + b"optical\0"
HEAD += (
    struct.pack("<II", 2, 3) + struct.pack("<I", 5) + b"rgb8\0" + bytes([0]) + bytes(2) + struct.pack("<I", 9)
)
SERIALISED = HEAD + struct.pack("<I", 18) + bytes(18)


def test_a_message_has_the_stamp_and_the_picture():
    picture = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    data = WireImage(SERIALISED, 18).message(1_700_000_000_123_456_789, picture)
    assert stamp_of(data) == 1_700_000_000_123_456_789
    message = MessageType(IMAGE, full_definition(IMAGE)).decode(data)
    assert (message.header.frame_id, message.encoding) == ("optical", "rgb8")
    assert (message.height, message.width, message.step) == (2, 3, 9)
    np.testing.assert_array_equal(message.data, picture.reshape(-1))


def test_messages_do_not_share_bytes():
    wire, dark, bright = (
        WireImage(SERIALISED, 18),
        np.zeros((2, 3, 3), np.uint8),
        np.full((2, 3, 3), 9, np.uint8),
    )
    first, second = wire.message(1, dark), wire.message(2, bright)
    assert (stamp_of(first), stamp_of(second)) == (1, 2)
    assert first[-18:] == dark.tobytes() and second[-18:] == bright.tobytes()


def test_a_picture_that_is_not_contiguous_or_wider_than_a_byte_is_sent_as_it_is_seen():
    mirrored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)[:, ::-1]
    assert WireImage(SERIALISED, 18).message(0, mirrored)[-18:] == mirrored.tobytes()
    depth = np.arange(9, dtype=np.uint16)
    assert WireImage(SERIALISED, 18).message(0, depth)[-18:] == depth.tobytes()


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="12 bytes: this topic's have 18"):
        WireImage(SERIALISED, 18).message(0, np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("size", [17, 22, 1000])
def test_what_does_not_end_in_the_picture_is_no_message_to_be_filled(size):
    with pytest.raises(ValueError, match="does not end in a picture"):
        WireImage(SERIALISED, size)
