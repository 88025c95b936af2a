"""Which of the K sampled chunks becomes the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vigil.errors import VigilError

Selection = Literal["first", "medoid"]


def select(samples: np.ndarray, scale: Sequence[float], how: Selection) -> int:
    """Index of the chosen chunk.

    ``first`` takes sample 0. ``medoid`` takes the sample nearest to the mean of all K, in units of ``scale``: it is
    a chunk that the policy really drew (the mean of two ways round an obstacle is not), but no outlier.

    Args:
        samples: [K, H, D]; rad, m.
        scale: [D] standard deviation of each column in the demonstrations; rad, m.
    """
    if how == "first" or len(samples) == 1:
        return 0
    if how != "medoid":
        raise VigilError(f"unknown selection {how!r}: use first or medoid")
    normalised = (samples / np.asarray(scale, dtype=samples.dtype)).reshape(len(samples), -1)
    offset = normalised - normalised.mean(axis=0)
    return int(np.einsum("kd,kd->k", offset, offset).argmin())
