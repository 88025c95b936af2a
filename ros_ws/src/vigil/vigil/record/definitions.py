"""Message definitions as ROS 2 bags carry them, found in the installed packages.

A recording that holds the definitions of its messages can be read for ever, without the packages that made it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from vigil.errors import VigilError

SEPARATOR = "=" * 80
_FIELD = re.compile(r"^([a-zA-Z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[a-zA-Z]\w*")
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_PRIMITIVES = frozenset(["bool", "byte", "char", "float32", "float64", "string", "wstring", *_INTEGERS])


@lru_cache(maxsize=256)
def full_definition(type_name: str) -> str:
    """Definition of ``package/msg/Name`` followed by those of all types it contains (encoding ``ros2msg``).

    Raises:
        VigilError: a package is not installed, or does not install its ``.msg`` files.
    """
    own = _definition(type_name)
    parts, seen, waiting = [own], {type_name}, _contained(own, type_name)
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        text = _definition(name)
        package, _, short = name.split("/")
        parts.append(f"{SEPARATOR}\nMSG: {package}/{short}\n{text}")
        waiting += _contained(text, name)
    return "".join(part if part.endswith("\n") else part + "\n" for part in parts)


def share_folders() -> list[Path]:
    """``share`` folders of the installed ROS packages: a sourced ROS first, then the Python environment's own."""
    prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    return [Path(prefix) / "share" for prefix in dict.fromkeys((*prefixes, sys.prefix))]


def _definition(type_name: str) -> str:
    try:
        package, kind, short = type_name.split("/")
    except ValueError:
        raise VigilError(f"{type_name!r} is no message type: write it as package/msg/Name") from None
    for share in share_folders():
        file = share / package / kind / f"{short}.msg"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    looked = ", ".join(str(share) for share in share_folders())
    raise VigilError(
        f"no definition of {type_name} in {looked}: install the package {package}, or source the workspace that has it"
    )


def _contained(text: str, type_name: str) -> list[str]:
    return list(dict.fromkeys(_types_of_fields(text.splitlines(), type_name.split("/")[0])))


def _types_of_fields(lines: Iterable[str], package: str) -> Iterable[str]:
    for line in lines:
        match = _FIELD.match(line.split("#")[0].strip())
        if match is None or match[1] in _PRIMITIVES:
            continue
        parts = match[1].split("/")
        yield f"{parts[0] if len(parts) > 1 else package}/msg/{parts[-1]}"
