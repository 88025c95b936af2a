"""Pictures with as much detail and noise as a camera's, for benches of what carries and stores them."""

from __future__ import annotations

import cv2
import numpy as np

SHAPE = (480, 640)
QUALITY = 85  # of JPEG, as rig files have it by default


def moving_scene(seed: int, views: int, shape: tuple[int, int] = SHAPE) -> list[np.ndarray]:
    """Views of a textured scene in which a ball moves; uint8 [height, width, 3], each with noise of its own."""
    rng = np.random.default_rng(seed)
    background = cv2.GaussianBlur(rng.integers(0, 255, (*shape, 3), np.uint8), (0, 0), 2.0)
    background = cv2.normalize(background, None, 30, 220, cv2.NORM_MINMAX)
    found = []
    for i in range(views):
        rgb = background.copy()
        cv2.circle(rgb, (80 + 5 * i, 240 + int(80 * np.sin(i / 9))), 60, (200, 60, 40), -1)
        found.append(np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8))
    return found


def as_jpeg(picture: np.ndarray) -> bytes:
    """About 70 kB for a view of `moving_scene`."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
