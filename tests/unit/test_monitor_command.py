"""Options of the monitor's commands."""

import pytest

from vigil.errors import VigilError
from vigil.monitor.calibrate_command import parse_windows


def test_windows_are_read_or_refused_by_name() -> None:
    assert parse_windows("rnd=3, ace=15") == {"rnd": 3, "ace": 15}
    assert parse_windows("") == {}
    for wrong in ("rnd", "rnd=0", "rnd=x", "entropy=3"):
        with pytest.raises(VigilError, match="SCORE=TICKS"):
            parse_windows(wrong)
