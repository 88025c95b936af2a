"""Keys of a Linux input device, such as a foot pedal, read from its file under /dev/input.

The kernel writes one record per event (``struct input_event`` of linux/input.h): seconds, microseconds, type, code, value.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from vigil.errors import VigilError

EVENT = struct.Struct("@llHHi")
EV_SYN, EV_KEY, SYN_DROPPED = 0, 1, 3
EVIOCGRAB = 0x40044590  # linux/input.h: events go to us alone
LOOK_AGAIN = 1.0  # s
KEY_BYTES = 96  # one bit for each of 768 codes
EVIOCGKEY = 0x80004518 | KEY_BYTES << 16  # linux/input.h: which keys are down


class KeyFile:
    """Which keys of one input device are down.

    The device is grabbed, so that a pedal which is a keyboard to the kernel does not type into the terminal.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._down: set[int] = set()
        self._rest = b""
        self._synchronous = True  # False from lost events until the kernel's next report
        self._again_at = 0.0  # [s] when it is looked for again after it was lost
        self.trouble = ""

    def open(self) -> None:
        """Raises VigilError if it is missing or not permitted."""
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except PermissionError:
            raise VigilError(
                f"button {self._path} may not be read: `sudo usermod -aG input $USER`, then log in anew"
            ) from None
        except OSError as error:
            folder = Path("/dev/input/by-id")
            present = sorted(map(str, folder.iterdir())) if folder.is_dir() else []
            raise VigilError(
                f"button {self._path} cannot be opened ({error.strerror}): plug it in, or name one of "
                f"{present or 'the files in /dev/input (there are none with a name: is an input device plugged in?)'}"
            ) from None
        self._synchronous, self.trouble = True, ""
        with contextlib.suppress(OSError):  # a replayed recording cannot be grabbed
            fcntl.ioctl(self._file, EVIOCGRAB, 1)

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._down, self._rest = None, set(), b""

    def pressed(self, code: int) -> bool | None:
        """Whether key ``code`` is down; None if the device is not there."""
        return None if self._file is None else code in self._down

    def poll(self, now: float) -> None:
        """Read what happened until ``now`` [s]; look for a lost device."""
        if self._file is None:
            if now < self._again_at:
                return
            self._again_at = now + LOOK_AGAIN
            with contextlib.suppress(VigilError):
                self.open()
            if self._file is None:
                return
        try:
            while data := os.read(self._file, EVENT.size * 64):
                self._take(data)
            lost = "it ended"
        except BlockingIOError:
            return
        except OSError as error:
            lost = error.strerror
        self.close()
        self._again_at = now + LOOK_AGAIN
        self.trouble = f"button {self._path} was lost ({lost}): plug it in again"

    def _take(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) // EVENT.size * EVENT.size
        self._rest = data[whole:]
        for _, _, kind, code, value in EVENT.iter_unpack(data[:whole]):
            if kind == EV_SYN:
                if code == SYN_DROPPED:
                    self._synchronous = False
                elif not self._synchronous:
                    self._synchronous, self._down = True, self._ask()
            elif kind == EV_KEY and self._synchronous:
                (self._down.add if value else self._down.discard)(code)  # 2 is a repeat of a held key

    def _ask(self) -> set[int]:
        """Keys that are down, after events were lost; none where the kernel cannot tell."""
        bits = bytearray(KEY_BYTES)
        try:
            fcntl.ioctl(self._file, EVIOCGKEY, bits)
        except OSError:
            return set()
        return {8 * i + bit for i, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}
