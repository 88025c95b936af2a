"""Recorded pictures as arrays: the one place where a message of a recording becomes an image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from vigil.errors import VigilError
from vigil.policy.observation import frame_view


def decode_picture(data: Any, camera: str) -> np.ndarray:
    """A compressed image's bytes as uint8 [height, width, 3], red first.

    Raises:
        VigilError: they are no picture.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise VigilError(f"a recorded picture of camera {camera} cannot be decoded: the recording is damaged")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def picture_of(message: Any, camera: str) -> np.ndarray:
    """A CompressedImage or an Image (rgb8) as uint8 [height, width, 3], red first.

    Raises:
        VigilError: the bytes are no picture, or in an encoding that is not read.
    """
    if hasattr(message, "format"):
        return decode_picture(message.data, camera)
    return frame_view(message.encoding, message.height, message.width, message.step, message.data)


def compressed_picture(message: Any, camera: str) -> bytes:
    """The same as a file: JPEG, or whatever a CompressedImage holds, which is passed on as it is.

    Raises:
        VigilError: the picture is in an encoding that is not read.
    """
    if hasattr(message, "format"):
        return bytes(message.data)
    bgr = cv2.cvtColor(picture_of(message, camera), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr)[1].tobytes()
