"""One episode of a policy as data: what it saw, what it sampled, how it was judged, how it ended.

A roll-out is a folder::

    rollout.npz    columns with one row per policy tick (shapes: `Rollout`)
    episode.json   what is true of the episode as a whole (`Episode`)

beside the ``episode.mcap`` of the same run. `rollout.npz` is an ordinary NumPy archive; only its images are
compressed, so that scoring a hundred roll-outs does not wait for zlib.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vigil.errors import VigilError
from vigil.kinematics import CHAINS

ARRAYS_FILE = "rollout.npz"
EPISODE_FILE = "episode.json"
IMAGE_PREFIX = "images_"

HOLD, POLICY, OPERATOR, ESTOP, BLENDED = range(5)  # as in vigil_msgs/ControlState
AUTHORITIES = ("HOLD", "POLICY", "OPERATOR", "ESTOP", "BLENDED")
VERDICTS = ("NOMINAL", "BENIGN_OOD", "UNCERTAIN", "ALARM", "OUT_OF_RANGE", "UNCALIBRATED", "STALE")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EndEffector(BaseModel):
    """How some columns of a chunk say where one end effector goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chain: Literal["franka", "viperx300s", "position", "velocity"] = Field(
        description="joint positions [rad] of a known arm; or x, y (and z) themselves; or their rates, to be integrated"
    )
    columns: tuple[str, ...] = Field(min_length=1)
    tool_offset: tuple[float, float, float] = Field((0.0, 0.0, 0.0), description="in the flange's frame [m]")

    @model_validator(mode="after")
    def _columns_fit(self) -> EndEffector:
        allowed = (CHAINS[self.chain].joints,) if self.chain in CHAINS else (1, 2, 3)
        if len(self.columns) not in allowed:
            raise ValueError(
                f"chain {self.chain} needs {' or '.join(map(str, allowed))} columns, {len(self.columns)} given"
            )
        return self


class Episode(BaseModel):
    """Content of ``episode.json``. Further keys are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rig: str = ""
    task: str = ""
    seed: int | None = None
    perturbation: str = "none"
    outcome: Literal["success", "failure", "intervened_success", "discarded"]
    termination_reason: str = ""
    duration_s: Seconds = Field(description="from engagement to the end [s]")
    alarms: Annotated[int, Field(ge=0)] = 0
    first_alarm_s: Seconds | None = Field(None, description="from engagement; none if there was no alarm")
    perturbation_active_s: Seconds | None = Field(
        None, description="from engagement to the perturbation's begin; none if it never began"
    )
    # Whose samples these are. A calibration is made for, and bound to, exactly one such policy.
    bundle_hash: str = ""
    sampler: str = ""
    sampler_steps: Annotated[int, Field(ge=0)] = 0
    camera_calibration_hash: str = ""
    end_effectors: tuple[EndEffector, ...] = Field((), description="empty: the arm of the rig file")
    ood: bool | None = Field(
        None, description="not from the distribution calibrated on; not said: if it was perturbed"
    )

    @property
    def out_of_distribution(self) -> bool:
        """Whether the episode comes from another distribution than the one calibrated on."""
        return self.perturbation != "none" if self.ood is None else self.ood


@dataclass
class Rollout:
    """T policy ticks of one episode; K samples of H steps and D columns each; S scores.

    Without a monitor the score columns have S = 0. Constructing one checks every shape.

    Raises:
        VigilError: a column has another length, rank or type than stated here; names column and shapes.
    """

    stamps: np.ndarray  # float64 [T], s since the episode's start, of the newest observation of each tick
    tick: np.ndarray  # uint64 [T], the policy's own count
    embedding: np.ndarray  # float32 [T, E]
    samples: np.ndarray  # float32 [T, K, H, D], rad and m
    names: tuple[str, ...]  # D columns of samples
    step_dt: float  # s between two of the H steps
    authority: np.ndarray  # uint8 [T], of `AUTHORITIES`: who controlled the arm at this tick
    joint_positions: np.ndarray  # float64 [T, N], measured, rad and m
    joint_names: tuple[str, ...]  # N columns of joint_positions
    episode: Episode
    score_names: tuple[str, ...] = ()
    scores: np.ndarray | None = None  # float64 [T, S], raw
    windowed: np.ndarray | None = None  # float64 [T, S]
    thresholds: np.ndarray | None = None  # float64 [T, S]
    verdict: np.ndarray | None = None  # uint8 [T], index into VERDICTS
    images: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 [T, height, width, 3] by camera
    path: Path | None = None  # folder it was read from

    def __post_init__(self) -> None:
        self.names, self.joint_names = tuple(self.names), tuple(self.joint_names)
        self.score_names = tuple(self.score_names)
        self.stamps = np.asarray(self.stamps, np.float64)
        ticks, columns = len(self.stamps), len(self.names)
        shape = (ticks, len(self.score_names))
        self._set("stamps", np.float64, (ticks,))
        self._set("tick", np.uint64, (ticks,))
        self._set("embedding", np.float32, (ticks, None))
        self._set("samples", np.float32, (ticks, None, None, columns))
        self._set("authority", np.uint8, (ticks,))
        self._set("joint_positions", np.float64, (ticks, len(self.joint_names)))
        for name in ("scores", "windowed", "thresholds"):
            self._set(name, np.float64, shape, default=np.full(shape, np.nan))
        self._set("verdict", np.uint8, (ticks,), default=np.full(ticks, VERDICTS.index("UNCALIBRATED")))
        for camera, frames in self.images.items():
            if (
                frames.dtype != np.uint8
                or frames.ndim != 4
                or frames.shape[0] != ticks
                or frames.shape[3] != 3
            ):
                raise VigilError(
                    f"{self._where()}: {IMAGE_PREFIX}{camera} is {frames.dtype} {list(frames.shape)}, "
                    f"must be uint8 [{ticks}, height, width, 3]"
                )
        if not (np.isfinite(self.step_dt) and self.step_dt > 0):
            raise VigilError(f"{self._where()}: step_dt is {self.step_dt} s, must be above 0")
        self.step_dt = float(self.step_dt)

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def k(self) -> int:
        """Samples per tick."""
        return self.samples.shape[1]

    @property
    def horizon(self) -> int:
        """Steps of each sample."""
        return self.samples.shape[2]

    @property
    def succeeded(self) -> bool:
        """The policy finished by itself."""
        return self.episode.outcome == "success"

    @property
    def label(self) -> str:
        """Short name for messages and plots."""
        return self.path.name if self.path else f"seed {self.episode.seed}"

    def segments(self) -> list[slice]:
        """Unbroken stretches of ticks under the policy's authority: each is judged from a fresh start."""
        policy = np.concatenate([[False], self.authority == POLICY, [False]])
        edges = np.flatnonzero(policy[1:] != policy[:-1])
        return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def _where(self) -> str:
        return str(self.path / ARRAYS_FILE) if self.path else "roll-out"

    def _set(self, name: str, dtype: type, shape: tuple[int | None, ...], default: Any = None) -> None:
        given = getattr(self, name)
        array = np.asarray(default if given is None else given)
        if array.dtype.kind not in "biuf":
            raise VigilError(f"{self._where()}: {name} holds {array.dtype}, must hold numbers")
        fits = array.ndim == len(shape) and all(
            s in (None, a) for s, a in zip(shape, array.shape, strict=False)
        )
        if not fits:
            wanted = ["any" if s is None else s for s in shape]
            raise VigilError(f"{self._where()}: {name} has shape {list(array.shape)}, must be {wanted}")
        setattr(self, name, np.ascontiguousarray(array, dtype))


_REQUIRED = ("stamps", "tick", "embedding", "samples", "names", "step_dt", "authority")
_OPTIONAL = ("scores", "windowed", "thresholds", "verdict")


def save_rollout(folder: str | Path, rollout: Rollout) -> None:
    """Write ``rollout.npz`` and ``episode.json`` into ``folder`` (made if needed).

    Each file appears whole or not at all; ``episode.json`` comes last, so a folder that has it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: getattr(rollout, name)
        for name in ("stamps", "tick", "embedding", "samples", "authority", "joint_positions", *_OPTIONAL)
    }
    arrays["step_dt"] = np.float64(rollout.step_dt)
    for name in ("names", "joint_names", "score_names"):
        arrays[name] = np.array(getattr(rollout, name), dtype=np.str_)
    arrays |= {IMAGE_PREFIX + camera: frames for camera, frames in rollout.images.items()}

    target = folder / ARRAYS_FILE
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            if name.startswith(IMAGE_PREFIX):
                member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    _publish(partial, target)

    target = folder / EPISODE_FILE
    partial = target.with_suffix(".partial")
    partial.write_text(rollout.episode.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _publish(partial, target)


def load_episode(folder: str | Path) -> Episode:
    """Read ``episode.json`` of one roll-out.

    Raises:
        VigilError: missing, not JSON, or without what `Episode` calls for.
    """
    path = Path(folder) / EPISODE_FILE
    try:
        return Episode.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise VigilError(f"{path.parent} is no roll-out: it has no {EPISODE_FILE}") from None
    except (OSError, ValueError) as error:  # also JSONDecodeError, UnicodeDecodeError
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise VigilError(f"{path}: {where}: {first['msg']} (given: {first.get('input')!r})") from None
        raise VigilError(f"cannot read {path}: {error}") from None


def load_rollout(folder: str | Path, *, images: bool = False) -> Rollout:
    """Read one roll-out; images only if asked for (they are most of its bytes).

    Raises:
        VigilError: a file is missing, truncated, or has columns that do not fit together.
    """
    folder = Path(folder)
    episode = load_episode(folder)
    path = folder / ARRAYS_FILE
    try:
        with np.load(path, allow_pickle=False) as archive:
            if lacking := [name for name in _REQUIRED if name not in archive.files]:
                raise VigilError(
                    f"{path} lacks {', '.join(lacking)}: it is no roll-out, or of another version"
                )
            given = {
                name: archive[name] for name in archive.files if images or not name.startswith(IMAGE_PREFIX)
            }
    except FileNotFoundError:
        raise VigilError(f"{folder} has {EPISODE_FILE}, but no {ARRAYS_FILE}: record it again") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VigilError(f"cannot read {path}: {error}; record it again") from None
    ticks = len(np.atleast_1d(given["stamps"]))
    return Rollout(
        **{name: given[name] for name in ("stamps", "tick", "embedding", "samples", "authority")},
        **{name: given.get(name) for name in _OPTIONAL},
        names=tuple(given["names"].tolist()),
        step_dt=float(given["step_dt"]),
        joint_positions=given.get("joint_positions", np.empty((ticks, 0))),
        joint_names=tuple(given["joint_names"].tolist()) if "joint_names" in given else (),
        score_names=tuple(given["score_names"].tolist()) if "score_names" in given else (),
        images={n.removeprefix(IMAGE_PREFIX): a for n, a in given.items() if n.startswith(IMAGE_PREFIX)},
        episode=episode,
        path=folder,
    )


def find_rollouts(roots: str | Path | Sequence[str | Path]) -> list[Path]:
    """Folders of complete roll-outs at or below ``roots``, sorted by name.

    Raises:
        VigilError: a root does not exist, or there is no roll-out in any of them.
    """
    roots = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
    found: list[Path] = []
    for root in roots:
        if not root.is_dir():
            raise VigilError(f"{root} does not exist: name a folder that `vigil evaluate --out` wrote")
        found += sorted(path.parent for path in root.rglob(EPISODE_FILE))
    if not found:
        raise VigilError(
            f"no roll-outs (folders with {EPISODE_FILE}) in {', '.join(map(str, roots))}: "
            "`vigil evaluate RIG --out DIR` writes them"
        )
    return found


def load_rollouts(
    roots: str | Path | Sequence[str | Path],
    *,
    outcomes: Iterable[str] | None = None,
    perturbations: Iterable[str] | None = None,
    images: bool = False,
) -> list[Rollout]:
    """All roll-outs at or below ``roots`` with one of the given outcomes and perturbations (None: any).

    Raises:
        VigilError: as `find_rollouts` and `load_rollout`.
    """
    return list(
        iter_rollouts(find_rollouts(roots), outcomes=outcomes, perturbations=perturbations, images=images)
    )


def iter_rollouts(
    folders: Iterable[Path],
    *,
    outcomes: Iterable[str] | None = None,
    perturbations: Iterable[str] | None = None,
    images: bool = False,
) -> Iterator[Rollout]:
    """As `load_rollouts`, one after the other, of folders found before."""
    outcomes = None if outcomes is None else set(outcomes)
    perturbations = None if perturbations is None else set(perturbations)
    for folder in folders:
        episode = load_episode(folder)
        if outcomes is not None and episode.outcome not in outcomes:
            continue
        if perturbations is not None and episode.perturbation not in perturbations:
            continue
        yield load_rollout(folder, images=images)


def _publish(partial: Path, target: Path) -> None:
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
