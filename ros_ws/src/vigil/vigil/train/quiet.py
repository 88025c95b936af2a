"""Tools that talk of their own insides, kept from filling the terminal of who uses them through us."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: str = "") -> Iterator[None]:
    """Only errors of ``logger`` (by default of all) are told, and no FutureWarning. Exceptions are raised as ever."""
    talking = logging.getLogger(logger)
    level = talking.level
    talking.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        talking.setLevel(level)
