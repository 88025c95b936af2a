"""What a LeRobot checkpoint does not tell: which column of the rig each number is, in which unit, at which rate.

States and actions are nameless vectors there. The names are in the data set's ``meta/info.json``, or come from the user, or are taken
to be the rig's columns in order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vigil.errors import VigilError
from vigil.policy.spec import Column
from vigil.rig import RigConfig
from vigil.train.lerobot.checkpoint import Checkpoint
from vigil.train.lerobot.config import ACTION, STATE

INFO_FILE = Path("meta") / "info.json"
PICTURES = "observation.images."
POSITION = ".pos"  # what LeRobot's drivers put behind a motor's name


@dataclass(frozen=True)
class Wishes:
    """What the user says of a checkpoint.

    Attributes:
        fps: rate of the data set that it was trained on [Hz]; None: the data set's meta tells.
        dataset: folder of that data set, of which ``meta/info.json`` is read; None: there is none.
        columns: the rig's column for each number of an action; None: the data set's names, or all of the rig in order.
        state_columns: the same for the state; None: as the action's.
        cameras: key of the pictures by the rig's camera, where it is not ``observation.images.<camera>``.
        degrees: joints are told in degrees.
        scales: by column, what one unit of the checkpoint is on the rig (rad, m), and its zero: rig = scale * number + zero.
        sampler: ddim or ddpm; None: ddim.
        steps: of the sampler; None: the checkpoint's for ddpm, its own or ten for ddim.
        name: of the bundle; None: the checkpoint's kind.
    """

    fps: float | None = None
    dataset: Path | None = None
    columns: tuple[str, ...] | None = None
    state_columns: tuple[str, ...] | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    degrees: bool = False
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sampler: str | None = None
    steps: int | None = None
    name: str | None = None


def parse_wishes(
    fps: float | None,
    dataset: Path | None,
    columns: str | None,
    state_columns: str | None,
    cameras: Sequence[str],
    degrees: bool,
    scales: Sequence[str],
    sampler: str | None,
    steps: int | None,
    name: str | None,
) -> Wishes:
    """The options of `vigil export` as they were typed.

    Raises:
        VigilError: one of them is not of its form.
    """
    return Wishes(
        fps=fps,
        dataset=dataset,
        columns=_listed(columns),
        state_columns=_listed(state_columns),
        cameras=_pairs("--camera", cameras, "CAMERA=KEY"),
        degrees=degrees,
        scales={
            key: _scale(key, value) for key, value in _pairs("--scale", scales, "COLUMN=SCALE[,ZERO]").items()
        },
        sampler=sampler,
        steps=steps,
        name=name,
    )


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _pairs(option: str, items: Sequence[str], form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not (key and equals and value) or key in found:
            raise VigilError(f"{option} {item!r}: give {form}, each once")
        found[key] = value
    return found


def _scale(column: str, text: str) -> tuple[float, float]:
    try:
        scale, zero = (*(float(part) for part in text.split(",")), 0.0)[:2]
    except ValueError:
        scale, zero = math.nan, 0.0
    if not (math.isfinite(scale) and math.isfinite(zero) and scale != 0 and text.count(",") <= 1):
        raise VigilError(
            f"--scale {column}={text}: give {column}=SCALE or {column}=SCALE,ZERO, in rad or m per unit; SCALE not 0"
        )
    return scale, zero


@dataclass(frozen=True)
class Unit:
    """rig (rad, m) = scale * number of the checkpoint + zero."""

    scale: float = 1.0
    zero: float = 0.0


@dataclass(frozen=True)
class Binding:
    """A checkpoint's vectors and pictures on a rig."""

    action: tuple[Column, ...]
    state: tuple[Column, ...]
    action_units: tuple[Unit, ...]
    state_units: tuple[Unit, ...]
    cameras: tuple[str, ...]  # the rig's, in the order of the policy's pictures
    step_dt: float  # [s]


def bind(checkpoint: Checkpoint, rig: RigConfig, wishes: Wishes) -> Binding:
    """Join a checkpoint and a rig.

    Raises:
        VigilError: names, sizes, cameras or the rate are missing or do not fit; says what is there and which option tells it.
    """
    info = None if wishes.dataset is None else _read_info(wishes.dataset)
    config = checkpoint.config
    action = _columns(ACTION, config.action_dim, wishes.columns, "--columns", info, rig)
    wanted = wishes.state_columns or wishes.columns
    if wanted is None and info is None and config.state_dim == config.action_dim:
        wanted = action
    state = _columns(STATE, config.state_dim, wanted, "--state-columns", info, rig)
    if unknown := sorted(set(wishes.scales) - set(action) - set(state)):
        raise VigilError(f"--scale {', '.join(unknown)}: the policy has the columns {', '.join(action)}")
    missing = [name for name in rig.columns if name not in action]
    if missing:
        raise VigilError(
            f"the policy's actions are {', '.join(action)}; rig {rig.name} also has {', '.join(missing)}, which nothing would move"
        )
    return Binding(
        action=_with_units(action, rig),
        state=_with_units(state, rig),
        action_units=_units(action, rig, wishes),
        state_units=_units(state, rig, wishes),
        cameras=_cameras(checkpoint, rig, wishes.cameras),
        step_dt=1 / _rate(wishes.fps, info),
    )


def _read_info(dataset: Path) -> dict[str, Any]:
    path = dataset / INFO_FILE
    if not path.is_file():
        raise VigilError(f"--dataset {dataset} is no LeRobot data set: it has no {INFO_FILE}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VigilError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("features"), dict):
        raise VigilError(f"{path} has no `features`")
    return data


def _columns(
    key: str,
    size: int,
    wished: Sequence[str] | None,
    option: str,
    info: dict[str, Any] | None,
    rig: RigConfig,
) -> tuple[str, ...]:
    """The rig's columns that a vector of the checkpoint is made of."""
    if wished is not None:
        names, source = tuple(wished), option
    elif info is not None:
        names, source = _names(info, key), "the data set"
    else:
        names, source = rig.columns, f"rig {rig.name}"
    told = f"{source} has {len(names)} ({', '.join(names)})"
    if len(names) != size:
        raise VigilError(
            f"the checkpoint's {key} has {size} numbers, {told}: name the rig's column of each by {option} a,b,..."
        )
    if unknown := [name for name in names if name not in rig.columns]:
        raise VigilError(
            f"{key}: rig {rig.name} has no {', '.join(unknown)}, it has {', '.join(rig.columns)}; {told}: name the rig's column of "
            f"each by {option} a,b,..."
        )
    if len(set(names)) != len(names):
        raise VigilError(f"{key}: names repeat: {told}")
    return names


def _names(info: dict[str, Any], key: str) -> tuple[str, ...]:
    names = (info["features"].get(key) or {}).get("names")
    if isinstance(names, dict):  # older data sets: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    if not names:
        raise VigilError(f"the data set has no names of {key}: give --columns a,b,...")
    return tuple(str(name).removesuffix(POSITION) for name in names)


def _with_units(names: Sequence[str], rig: RigConfig) -> tuple[Column, ...]:
    return tuple(Column(name=name, unit="m" if name in rig.gripper_columns else "rad") for name in names)


def _units(names: Sequence[str], rig: RigConfig, wishes: Wishes) -> tuple[Unit, ...]:
    def of(name: str) -> Unit:
        if name in wishes.scales:
            return Unit(*wishes.scales[name])
        return Unit(math.pi / 180) if wishes.degrees and name not in rig.gripper_columns else Unit()

    return tuple(of(name) for name in names)


def _cameras(checkpoint: Checkpoint, rig: RigConfig, wished: Mapping[str, str]) -> tuple[str, ...]:
    """The rig's camera of each picture."""
    told = {policy: source for source, policy in checkpoint.renamed.items()}
    keys = [told.get(key, key) for key in checkpoint.config.pictures]
    known = [camera.name for camera in rig.cameras]
    if unknown := [
        f"{camera}={key}" for camera, key in wished.items() if camera not in known or key not in keys
    ]:
        raise VigilError(
            f"--camera {', '.join(unknown)}: give camera=key, of the rig's cameras {', '.join(known)} and the policy's pictures "
            f"{', '.join(keys)}"
        )
    cameras = {key: camera for camera, key in wished.items()}
    for key in keys:
        name = key.removeprefix(PICTURES)
        if key not in cameras and key.startswith(PICTURES) and name in known:
            cameras[key] = name
    if lacking := [key for key in keys if key not in cameras]:
        raise VigilError(
            f"no camera of rig {rig.name} is known for the pictures {', '.join(lacking)}; it has {', '.join(known)}: say which by "
            f"--camera CAMERA={lacking[0]}"
        )
    found = tuple(cameras[key] for key in keys)
    if len(set(found)) != len(found):
        raise VigilError(f"one camera for several pictures: {dict(zip(keys, found, strict=True))}")
    return found


def _rate(fps: float | None, info: dict[str, Any] | None) -> float:
    told = None if info is None else info.get("fps")
    if fps is None and told is None:
        raise VigilError(
            "a checkpoint does not tell how long a step lasts: give the data set's rate by --fps, or --dataset"
        )
    if fps is not None and told is not None and fps != told:
        raise VigilError(f"--fps is {fps:g}, the data set says {told:g}")
    rate = float(fps if fps is not None else told)
    if not 0 < rate < 1000:
        raise VigilError(f"a rate of {rate:g} Hz is none that a policy runs at")
    return rate
