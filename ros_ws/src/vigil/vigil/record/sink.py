"""The file under an MCAP writer, which any reader of MCAP can open at every moment while it grows."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO

from mcap.data_stream import RecordBuilder
from mcap.records import DataEnd, Footer, Metadata
from mcap.writer import MCAP0_MAGIC


def _end_mark() -> bytes:
    """End of an MCAP file that has no index: readers then look through all of it."""
    builder = RecordBuilder()
    DataEnd(data_section_crc=0).write(builder)
    Footer(summary_start=0, summary_offset_start=0, summary_crc=0).write(builder)
    return builder.end() + MCAP0_MAGIC


END_MARK = _end_mark()


class Sink:
    """What `mcap.writer.Writer` writes to; `flush` brings it into the file, all of it or nothing.

    Behind what is in the file there is always the end mark of a file without index. The next flush writes over it. So
    what a killed process leaves is a whole MCAP file, unless it was killed in the middle of one write.

    Args:
        file: opened unbuffered for writing, and empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._waiting: list[bytes] = []
        self._length = 0  # in the file, without the end mark
        self._position = 0  # with what waits

    def write(self, data: bytes) -> int:
        """Take ``data`` in; it is not in the file yet."""
        self._waiting.append(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        """Where the next byte will be in the file."""
        return self._position

    def flush(self) -> None:
        """Bring into the file what was written since.

        Raises:
            OSError: the disk refuses. The file is as it was before, and what waited is lost.
        """
        self._put(END_MARK)

    def finish(self) -> None:
        """As `flush`, for the last time: what was written ends with an end mark of its own.

        Raises:
            OSError: as of `flush`.
        """
        self._put(b"")

    def append_metadata(self, name: str, values: dict[str, str]) -> None:
        """Put a metadata record into a file whose writer cannot go on after an error.

        Raises:
            OSError: as of `flush`.
        """
        builder = RecordBuilder()
        Metadata(name=name, metadata=values).write(builder)
        self.write(builder.end())
        self.flush()

    def _put(self, ending: bytes) -> None:
        if not self._waiting:
            return
        data = b"".join([*self._waiting, ending])
        self._waiting = []
        try:
            _write_at(self._descriptor, data, self._length)
        except OSError:
            self._position = self._length
            with suppress(OSError):  # what is left cannot be helped; it is readable up to here
                os.ftruncate(self._descriptor, self._length)
                _write_at(self._descriptor, END_MARK, self._length)
            raise
        self._length = self._position


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
