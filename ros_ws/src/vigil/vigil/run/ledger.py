"""What a long run has done so far, one JSON line per episode, so that it can be stopped and resumed at any time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vigil.errors import VigilError
from vigil.run.report import replace_text


class Ledger:
    """Lines of ``episodes.jsonl`` in a folder, and the settings in ``settings.json`` that they belong to.

    Opening an existing folder with other settings is refused: its episodes would be of two kinds.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], may_change: tuple[str, ...] = ()) -> None:
        """Open or begin ``folder``.

        Args:
            settings: what every episode of the folder has in common; JSON values.
            may_change: settings that a resumed run may have otherwise (for example the number of episodes).

        Raises:
            VigilError: the folder holds another run, or is damaged; or it cannot be written.
        """
        self.folder = folder
        self._lines = folder / "episodes.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / "settings.json"
            if kept.exists():
                before = json.loads(kept.read_text(encoding="utf-8"))
                fixed = {k: v for k, v in settings.items() if k not in may_change}
                differing = sorted(k for k, v in fixed.items() if before.get(k) != v)
                if differing:
                    what = ", ".join(f"{k} {before.get(k)!r} (now {settings[k]!r})" for k in differing)
                    raise VigilError(
                        f"{folder} holds another run, with {what}: use another --out, or remove it"
                    )
            replace_text(kept, json.dumps(settings, indent=2) + "\n")
            self.episodes = self._read()
        except OSError as error:
            raise VigilError(f"cannot write to {folder}: {error}") from None
        except json.JSONDecodeError as error:
            raise VigilError(f"{folder}/settings.json is damaged ({error}): use another --out") from None

    def add(self, episode: dict[str, Any]) -> None:
        """Note one finished episode, on disk before this returns."""
        self.episodes.append(episode)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(episode) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        if not self._lines.exists():
            return []
        whole, good = self._lines.read_text(encoding="utf-8"), []
        for line in whole.splitlines():
            try:
                good.append(json.loads(line))
            except json.JSONDecodeError:
                break  # cut short when the run was killed: that episode is done again
        kept = "".join(json.dumps(episode) + "\n" for episode in good)
        if kept != whole:
            replace_text(self._lines, kept)
        return good
