"""Room on the disk that is given back when it is needed: a full disk must not keep an episode from being completed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

SUFFIX = ".reserve"
SIZE = 1 << 20  # [bytes] several times what an episode's facts and their file take


class Reserve:
    """A file ``NAME.reserve`` of `SIZE` bytes beside a recording while that is open.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, recording: Path) -> None:
        self.path = recording.with_name(recording.name + SUFFIX)
        self._file = self.path.open("wb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as of the recording itself
            os.posix_fallocate(self._file.fileno(), 0, SIZE)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Give the room back. May be called twice."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()
