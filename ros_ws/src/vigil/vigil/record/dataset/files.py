"""Files that appear whole or not at all, and folders that one process changes at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vigil.errors import VigilError
from vigil.record.writer import sync_folder


def publish(temporary: Path, target: Path) -> None:
    """Give a finished file its name, such that a power cut leaves the old content or the new."""
    sync_file(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Bring a closed file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    publish(temporary, path)


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is no such file.

    Raises:
        VigilError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise VigilError(f"cannot read {path}: {error}") from None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Nobody else changes ``folder`` inside the block; it ends with the process, however that ends.

    Raises:
        VigilError: another process is at it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VigilError(
                f"{folder} is being changed by another process: wait until it has ended"
            ) from None
        yield
    finally:
        os.close(handle)
