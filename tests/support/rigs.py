"""Rig files for tests of the operator's devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vigil.rig import RigConfig, load_rig, rig_path


def real_rig(
    folder: Path, teleop: dict[str, Any], arms: tuple[str, ...] = ("franka",), **sections: dict[str, Any]
) -> RigConfig:
    """The template rig with another teleop section, and what ``sections`` say.

    Several ``arms`` stand a metre apart, each with its name as prefix.
    """
    data = yaml.safe_load(rig_path("franka").read_text())
    (arm,) = data["arms"]
    if len(arms) > 1:
        data["arms"] = [
            {**arm, "name": name, "prefix": f"{name}_", "base": {"position": [0.0, float(i), 0.0]}}
            for i, name in enumerate(arms)
        ]
    data["teleop"] = teleop
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    path = folder / "rig.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_rig(path)
