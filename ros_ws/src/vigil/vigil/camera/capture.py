"""The thread that reads a camera and brings a lost one back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from vigil.camera.driver import CameraDriver, DeviceLost, Frame
from vigil.errors import VigilError
from vigil.scheduling import step_forward

READ_TIMEOUT = 0.2  # [s] how soon a stop is noticed when no frame comes
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0  # [s] back-off between attempts to reconnect


class Capture:
    """Owns a driver: opens, reads and closes it in one thread (an OpenGL context belongs to its thread)."""

    def __init__(
        self,
        driver: CameraDriver,
        on_frame: Callable[[Frame], None],
        on_event: Callable[[str], None],
        first_delay: float = FIRST_DELAY,
    ) -> None:
        """``on_frame`` and ``on_event`` (device lost, regained; in words) are called from the capture thread."""
        self._driver = driver
        self._on_frame = on_frame
        self._on_event = on_event
        self._first_delay = first_delay
        self._stop = threading.Event()
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why no frames come, in words; empty while the device streams."""
        return self._trouble

    def open(self, timeout: float = 30.0) -> None:
        """Open the device and begin to read.

        Raises:
            VigilError: the driver refused, or did not answer within ``timeout`` [s].
        """
        self._thread.start()
        try:
            self._opened.result(timeout)
        except TimeoutError:
            raise VigilError(
                f"the camera did not open within {timeout:g} s: unplug it and plug it in again"
            ) from None

    def close(self) -> None:
        """End the thread and release the device."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        step_forward()  # the policy waits for frames
        try:
            try:
                self._driver.open()
            except Exception as error:
                self._opened.set_exception(error)
                return
            self._opened.set_result(None)
            while not self._stop.is_set():
                self._read_once()
        except Exception as error:  # nothing else would ever tell that the thread is gone
            self._tell(f"reading ended: {type(error).__name__}: {error}")
            raise
        finally:
            self._driver.close()

    def _read_once(self) -> None:
        try:
            frame = self._driver.read(READ_TIMEOUT)
        except DeviceLost as error:
            self._reconnect(error)
        except VigilError as error:  # this frame is bad, the next may be good
            self._tell(str(error))
        else:
            if frame is not None:
                self._trouble = ""
                self._on_frame(frame)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_event(trouble)

    def _reconnect(self, lost: DeviceLost) -> None:
        self._tell(str(lost))
        delay = self._first_delay
        while not self._stop.wait(delay):
            self._driver.close()
            try:
                self._driver.open()
            except VigilError as error:
                self._tell(str(error))
                delay = min(2 * delay, LONGEST_DELAY)
            else:
                self._trouble = ""
                self._on_event("connected again")
                return
