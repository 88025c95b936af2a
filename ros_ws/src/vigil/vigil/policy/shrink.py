"""Pictures made smaller by averaging over areas, as ``cv2.INTER_AREA`` does, in a fraction of its time for the usual sizes.

Of a picture that a policy is about to see everything waits for this. OpenCV walks over the pixels of a reduction that is not a whole
number in both directions one by one; where whole rows fall together a sum over them and one product of matrices do the same.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import cv2
import numpy as np

MOST_COLUMNS = 64  # columns after which the pattern of weights has to repeat: a dense product of more takes longer than OpenCV
MOST_ROWS = 257  # of 255 each, whose sum fits 16 bits


def shrink(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean of the area that each new pixel covers, rounded.

    The sums are whole numbers that float32 holds exactly, so that it is the same picture on every machine. Halves are rounded
    to even; OpenCV, which the other sizes are left to, may round them either way.

    Args:
        rgb: uint8 [H, W, 3].

    Returns:
        uint8 [height, width, 3], C-contiguous.
    """
    rows, repeats = rgb.shape[0] // height, gcd(rgb.shape[1], width)
    columns = rgb.shape[1] // repeats
    whole = rows * height == rgb.shape[0] and rows <= MOST_ROWS
    if not whole or columns > MOST_COLUMNS or width > rgb.shape[1]:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    summed = rgb.reshape(height, rows, -1).sum(axis=1, dtype=np.uint16).astype(np.float32)
    means = summed.reshape(height * repeats, columns * 3) @ _weights(columns, width // repeats)
    means /= columns * rows
    return np.rint(means, out=means).astype(np.uint8).reshape(height, width, 3)


@lru_cache(maxsize=16)
def _weights(columns: int, made: int) -> np.ndarray:
    """How many ``made``-ths of each of ``columns`` pixels lie in each of ``made``: float32 [columns * 3, made * 3]."""
    pixels, edges = np.arange(columns) * made, np.arange(made + 1) * columns
    left, right = np.maximum.outer(pixels, edges[:-1]), np.minimum.outer(pixels + made, edges[1:])
    return np.kron(np.clip(right - left, 0, None), np.eye(3)).astype(np.float32)
