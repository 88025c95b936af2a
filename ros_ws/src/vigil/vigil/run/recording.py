"""One recorded episode, topic by topic, as the run's measurements need it."""

from __future__ import annotations

from pathlib import Path

from vigil.record.reader import EpisodeReader
from vigil.rig import RigConfig
from vigil.run.timeline import Recorded, Timeline


class Recording:
    """The topics of one recording of ``rig``; a topic that was not recorded is empty.

    Raises:
        VigilError: the file is missing or is no recording.
    """

    def __init__(self, path: Path, rig: RigConfig) -> None:
        self.path, self._rig = path, rig
        self._reader = EpisodeReader(path)

    def topic(self, name: str) -> list[Recorded]:
        """All messages of a topic, named relative to the rig, in the order of their arrival."""
        if not self._reader.has(name):
            return []
        published = (sent for _, _, sent, _ in self._reader.raw([name]))
        return [
            Recorded(at, sent, message)
            for (at, message), sent in zip(self._reader.messages(name), published, strict=True)
        ]

    def timeline(self) -> Timeline:
        """Who was in control, and what the monitor said; VigilError if nobody ever had control."""
        return Timeline(
            self.topic("arm/state"),
            self.topic("monitor/status"),
            self.topic("sim/task"),
            self._rig.monitor.hold_on,
        )

    def joints(self) -> list[Recorded]:
        """Joint states of the arm."""
        return self.topic(f"{self._rig.arm.name}/joint_states")

    def frames(self, camera: str) -> list[Recorded]:
        """Compressed pictures of a camera."""
        return self.topic(f"{camera}/color/image_raw/compressed")
