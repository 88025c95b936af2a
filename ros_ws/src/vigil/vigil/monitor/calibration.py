"""The calibration of a monitor: scores, windows, thresholds, bound to the one policy they were made for.

    <bundle>/monitor/calibration.yaml   `Calibration`
    <bundle>/monitor/scores.npz         what the scores learnt, and the thresholds
    <bundle>/monitor/<score>.onnx       the scores that are networks
    <bundle>/monitor/report.html        for people
    <bundle>/monitor/fiper/             the same for FIPER, where that is not the bundle's own detector

It is refused wherever it does not fit the policy, the sampler or the cameras at hand, with both values printed.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, model_validator

from vigil.errors import VigilError
from vigil.monitor.detector import Channel, Detector
from vigil.monitor.features import Kinematics
from vigil.monitor.scores import SCORES, make_score
from vigil.policy.bundle import Bundle
from vigil.record.rollout import EndEffector
from vigil.rig import Positive, RigConfig, Strict, read_yaml, validate

FILE = "calibration.yaml"
ARRAYS = "scores.npz"
REPORT = "report.html"
FIPER_FOLDER = "fiper"

Count = Annotated[int, Field(ge=1)]


class Binding(Strict):
    """What a calibration holds for, and nothing else."""

    bundle_hash: str
    sampler: str
    sampler_steps: Count
    k: Count
    horizon: Count
    step_dt: Positive
    names: tuple[str, ...]
    embedding_dim: Count
    camera_calibration_hash: str

    def differences(self, found: dict[str, Any]) -> list[str]:
        """In words, where ``found`` (some or all of the fields) differs from this binding."""
        words = {
            "bundle_hash": "policy bundle",
            "sampler": "sampler",
            "sampler_steps": "denoising steps",
            "k": "number of samples K",
            "horizon": "horizon",
            "step_dt": "step_dt",
            "names": "columns of the samples",
            "embedding_dim": "size of the embedding",
            "camera_calibration_hash": "camera calibration",
        }
        differences = []
        for name, value in found.items():
            mine = getattr(self, name)
            same = abs(mine - value) <= 1e-9 if name == "step_dt" else mine == value
            if not same:
                differences.append(f"{words[name]} calibrated {_short(mine)}, found {_short(value)}")
        return differences


class ScoreEntry(Strict):
    """One score of a calibrated detector. Its thresholds are in `ARRAYS`."""

    name: str
    kind: Literal["observation", "action"]
    window: Count
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_known(self) -> ScoreEntry:
        if self.name not in SCORES:
            raise ValueError(f"unknown score {self.name!r}: this version has {', '.join(SCORES)}")
        return self


class Data(Strict):
    """How many successful roll-outs served which purpose.

    ``split``: none serves two. ``cross``: scores are fitted on all, but each roll-out that scales or calibrates was scored
    by a fit without it. ``published``: thresholds come from the roll-outs that were fitted on.
    """

    fit: Literal["cross", "split", "published"]
    successes: Count
    fitted: Count
    scaled: Annotated[int, Field(ge=0)]
    calibrated: Count
    seed: int


class Calibration(Strict):
    """Content of ``calibration.yaml``."""

    format: Literal[2] = 2
    binding: Binding
    delta: Annotated[float, Field(gt=0, lt=1, description="bound of the rate of false alarms per episode")]
    mode: Literal["joint", "separate"]
    style: Literal["constant", "per_step", "band"]
    clauses: tuple[tuple[str, ...], ...] = Field(min_length=1)
    scores: tuple[ScoreEntry, ...] = Field(min_length=1)
    out_of_range_ticks: Count = 5
    end_effectors: tuple[EndEffector, ...] = Field(min_length=1)
    data: Data
    bound: str = Field(description="in words, what delta bounds")
    files: dict[str, str] = Field(description="sha256 of each other file of the calibration")

    @model_validator(mode="after")
    def _clauses_name_scores(self) -> Calibration:
        names = {score.name for score in self.scores}
        if unknown := sorted({name for clause in self.clauses for name in clause} - names):
            raise ValueError(f"clauses name {unknown}, scores are {sorted(names)}")
        return self


def geometry_of(rig: RigConfig) -> tuple[EndEffector, ...]:
    """The end effectors of a rig."""
    return tuple(
        EndEffector(chain=arm.kinematics, columns=arm.joint_columns, tool_offset=tuple(arm.tool_offset))
        for arm in rig.arms
    )


def camera_calibration_hash(rig: RigConfig, cameras: tuple[str, ...]) -> str:
    """sha256 (hex) over the calibration files of the given cameras, in that order.

    Raises:
        VigilError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in cameras:
        path = rig.calibration_path(rig.camera(name))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise VigilError(f"cannot read the calibration of camera {name}: {error}") from None
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def save_calibration(
    folder: Path, detector: Detector, describe: Callable[[dict[str, str]], Calibration]
) -> Calibration:
    """Write a detector into ``folder``; ``describe`` makes its description, given the sha256 of each file.

    ``calibration.yaml`` comes last, and names the others by hash: a half-written calibration is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    files: dict[str, bytes] = {}
    for channel in detector.channels:
        arrays[f"{channel.name}/threshold"] = channel.threshold
        arrays[f"{channel.name}/single"] = np.float64(channel.single)
        arrays |= {f"{channel.name}/score/{key}": value for key, value in channel.score.arrays().items()}
        if (graph := channel.score.graph()) is not None:
            files[f"{channel.name}.onnx"] = graph
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    files[ARRAYS] = packed.getvalue()
    calibration = describe({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    files[FILE] = yaml.safe_dump(calibration.model_dump(mode="json"), sort_keys=False, width=110).encode()
    for name, content in files.items():
        partial = folder / (name + ".partial")
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    for old in folder.glob("*.onnx"):
        if old.name not in files:
            old.unlink()
    return calibration


def load_calibration(folder: str | Path) -> Calibration:
    """Read ``calibration.yaml``.

    Raises:
        VigilError: missing or broken; names file, line and fix.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise VigilError(
            f"no calibration in {folder}: record roll-outs with `vigil evaluate RIG --uncalibrated` and run "
            "`vigil calibrate ROLLOUTS --bundle BUNDLE`, or set `monitor.level: none` in the rig file"
        )
    data, lines = read_yaml(path)
    return validate(Calibration, data, path, lines)


def calibration_folder(bundle: Bundle, level: str) -> Path:
    """Where the calibration for ``monitor.level`` of a rig lies in a bundle."""
    beside = bundle.monitor_path / FIPER_FOLDER
    return beside if level == "fiper" and beside.is_dir() else bundle.monitor_path


def binding_of(bundle: Bundle, rig: RigConfig) -> dict[str, Any]:
    """What a calibration for this policy on this rig has to be bound to.

    Raises:
        VigilError: a camera's calibration is missing.
    """
    spec = bundle.spec
    return {
        "bundle_hash": bundle.content_hash,
        "sampler": bundle.sampler_name,
        "sampler_steps": bundle.sampler.steps,
        "k": rig.policy.samples,
        "horizon": spec.horizon,
        "step_dt": spec.step_dt,
        "names": spec.action_names,
        "embedding_dim": spec.embedding_dim,
        "camera_calibration_hash": camera_calibration_hash(rig, spec.cameras),
    }


def check_arm(calibration: Calibration, rig: RigConfig) -> None:
    """Refuse a calibration made with another arm or tool: positions of the gripper would be others."""

    def words(arms: tuple[EndEffector, ...]) -> str:
        return "; ".join(
            f"{arm.chain} with {list(arm.columns)} and tool_offset {list(arm.tool_offset)}" for arm in arms
        )

    mine, found = calibration.end_effectors, geometry_of(rig)
    if mine != found:
        raise VigilError(
            f"the monitor was calibrated for end effectors {words(mine)}; rig {rig.name} has {words(found)}: "
            "calibrate again"
        )


def check_level(calibration: Calibration, level: str) -> None:
    """Refuse another detector than the one that a rig's ``monitor.level`` asks for."""
    if level == "fiper" and calibration.clauses != (("rnd", "ace"),):
        raise VigilError(
            f"monitor.level is fiper, but the bundle is calibrated for {calibration.clauses} alone: calibrate again with "
            "enough roll-outs for FIPER (`vigil calibrate` says how many), or set monitor.level: calibrated"
        )


def check_binding(calibration: Calibration, found: dict[str, Any], where: str | Path) -> None:
    """Refuse a calibration of another policy.

    Raises:
        VigilError: names every difference with both values.
    """
    if differences := calibration.binding.differences(found):
        raise VigilError(
            f"the monitor's calibration in {where} was made for another policy: {'; '.join(differences)}. "
            "Calibrate this one: `vigil calibrate ROLLOUTS --bundle BUNDLE`"
        )


def load_detector(folder: str | Path, calibration: Calibration | None = None) -> Detector:
    """The calibrated detector in ``folder``.

    Raises:
        VigilError: a file is missing, altered, or does not fit the other.
    """
    folder = Path(folder)
    calibration = calibration or load_calibration(folder)
    contents = {name: _read(folder / name, sha256) for name, sha256 in calibration.files.items()}
    if ARRAYS not in contents:
        raise VigilError(f"{folder / FILE} names no {ARRAYS} among its files: calibrate again")
    try:
        with np.load(io.BytesIO(contents[ARRAYS]), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        channels = [
            _channel(entry, arrays, contents.get(f"{entry.name}.onnx")) for entry in calibration.scores
        ]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise VigilError(f"cannot read the calibration in {folder}: {error}; calibrate again") from None
    return Detector(
        channels, calibration.clauses, Kinematics(calibration.end_effectors), calibration.out_of_range_ticks
    )


def _channel(entry: ScoreEntry, arrays: dict[str, np.ndarray], graph: bytes | None) -> Channel:
    score = make_score(entry.name, entry.settings)
    prefix = f"{entry.name}/score/"
    learnt = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    score.load(learnt, graph)
    return Channel(
        score, entry.window, arrays[f"{entry.name}/threshold"], float(arrays[f"{entry.name}/single"])
    )


def _read(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise VigilError(
            f"{path.parent} has {FILE}, but no {path.name}: copy the whole bundle, or calibrate again"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise VigilError(
            f"{path} is not what {FILE} describes: its sha256 is {found[:12]}…, {sha256[:12]}… was calibrated: copy "
            "the whole bundle, or calibrate again"
        )
    return content


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text or "nothing"
