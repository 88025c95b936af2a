"""Recorded demonstrations -> arrays to train on.

Each recording holds the simulated world's state, the joint states, the operator's commands and the setpoints that the
arm made of them. The setpoints are what is learned: an operator's command takes effect a little after its stamp, a
chunk's step exactly when it is due. Pictures are rendered here from that state by the camera node's own simulated driver, and prepared by the function that serving uses.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from vigil.camera.simulated import SimulatedCamera
from vigil.errors import VigilError
from vigil.kinematics import FRANKA
from vigil.policy.observation import prepare_image
from vigil.record.reader import EpisodeReader
from vigil.rig import RigConfig
from vigil.sim import scene
from vigil.train.config import TrainConfig

AFTER_SUCCESS = 300_000_000  # [ns] kept after success: the policy has to learn to stay


@dataclass
class Demonstration:
    """One recorded episode, sampled every ``step_dt``; T steps, D columns (joints rad, gripper m), L labels."""

    states: np.ndarray  # float32 [T, D], measured
    commands: np.ndarray  # float32 [T, D], the arm's setpoint at the same instant, without added disturbance
    worlds: np.ndarray  # float64 [T, nq], generalised positions of the simulated world
    labels: np.ndarray  # float32 [T, L], simulator's truth about the object, for the auxiliary head


@dataclass
class DemonstrationSet:
    """All training rows; N rows, one per step of every demonstration."""

    cameras: tuple[str, ...]
    columns: tuple[str, ...]
    grippers: tuple[str, ...]  # those of the columns that are in m
    kinematics: str  # of the arms
    task: str
    images: dict[str, np.ndarray]  # camera -> uint8 [N, S, S, 3]
    states: np.ndarray  # float32 [N, D]
    chunks: np.ndarray  # float32 [N, H, D], commands due at this step and the following ones
    labels: np.ndarray  # float32 [N, L]
    episode: np.ndarray  # int [N]
    weights: np.ndarray | None = None  # float64 [N], how often a row is drawn; None: all alike

    def split(self, validation_episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows for training and for validation, split by episode."""
        episodes = np.unique(self.episode)
        if len(episodes) <= validation_episodes:
            raise VigilError(
                f"{len(episodes)} demonstrations, {validation_episodes} of them kept for validation: "
                "record more, or lower validation_episodes"
            )
        held_out = np.random.default_rng(seed).permutation(episodes)[:validation_episodes]
        validation = np.isin(self.episode, held_out)
        return np.flatnonzero(~validation), np.flatnonzero(validation)

    def statistics(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Range of states and actions over ``rows``, [D] each; a column that hardly moves gets a small range."""
        ranges = {}
        for name, values in (
            ("state", self.states[rows]),
            ("action", self.chunks[rows].reshape(-1, len(self.columns))),
        ):
            low, high = values.min(0), values.max(0)
            narrow = np.maximum(0.0, 1e-3 - (high - low)) / 2
            ranges[f"{name}_low"], ranges[f"{name}_high"] = low - narrow, high + narrow
        return ranges

    def facts(self) -> dict:
        """What a bundle says about its data."""
        weights = b"" if self.weights is None else self.weights.tobytes()
        digest = hashlib.sha256(self.states.tobytes() + self.chunks.tobytes() + weights).hexdigest()[:16]
        return {
            "cameras": list(self.cameras),
            "columns": list(self.columns),
            "grippers": list(self.grippers),
            "kinematics": self.kinematics,
            "task": self.task,
            "action_std": [float(v) for v in self.chunks.reshape(-1, len(self.columns)).std(0) + 1e-4],
            "demonstrations": len(np.unique(self.episode)),
            "rows": len(self.states),
            "data_sha256": digest,
        }


def kinematics_of(rig: RigConfig) -> str:
    """The chain of all arms of a rig.

    Raises:
        VigilError: they differ.
    """
    chains = sorted({arm.kinematics for arm in rig.arms})
    if len(chains) > 1:
        raise VigilError(
            f"rig {rig.name} has arms of several kinds ({', '.join(chains)}): a policy drives one kind"
        )
    return chains[0]


def chunks_of(commands: np.ndarray, horizon: int) -> np.ndarray:
    """Commands [T, D] -> [T, horizon, D]: at each step the commands due now and next, the last one repeated."""
    index = np.minimum(np.arange(len(commands))[:, None] + np.arange(horizon), len(commands) - 1)
    return commands[index]


def load_demonstrations(
    folder: Path, rig: RigConfig, config: TrainConfig, cache: Path | None = None
) -> DemonstrationSet:
    """Everything there is to learn from in ``folder``; ``cache`` keeps the result for a resumed run.

    ``folder`` holds recordings, whose pictures are rendered, or is a LeRobotDataset v3.0.

    Raises:
        VigilError: neither, or something lacks what training needs.
    """
    if (folder / "meta" / "info.json").is_file():
        from vigil.train import dataset  # needs the extra `dataset`

        key = dataset.cache_key(folder, config)
        return _cached(cache, key, rig, lambda: _of_dataset(folder, rig, config))
    paths = sorted(p for p in folder.rglob("*.mcap") if not p.name.endswith(".interrupted.mcap"))
    if not paths:
        raise VigilError(
            f"{folder} holds no recordings (.mcap) and is no LeRobotDataset: record some with `vigil collect {rig.name}`"
        )
    if rig.sim is None:
        raise VigilError(
            f"rig {rig.name} has no simulation to render pictures of recordings: make a data set of them first "
            "(`vigil dataset export`), and train on that"
        )
    key = json.dumps([config.data_settings(), [(p.name, p.stat().st_size) for p in paths]], sort_keys=True)

    def rendered() -> DemonstrationSet:
        demonstrations = [
            read_demonstration(path, rig, config.step_dt)
            for path in track(paths, "reading", transient=True, disable=not sys.stderr.isatty())
        ]
        return assemble([d for d in demonstrations if len(d.states) > 1], rig, config)

    return _cached(cache, key, rig, rendered)


def _of_dataset(folder: Path, rig: RigConfig, config: TrainConfig) -> DemonstrationSet:
    from vigil.train.dataset import read_dataset

    cameras = tuple(camera.name for camera in rig.cameras)
    rows = read_dataset(folder, rig.columns, cameras, rig.task, config)
    return DemonstrationSet(
        cameras,
        rig.columns,
        rig.gripper_columns,
        kinematics_of(rig),
        rows.task,
        rows.images,
        rows.states,
        rows.chunks,
        labels=np.empty((len(rows.states), 0), np.float32),  # only a simulator knows where the object is
        episode=rows.episode,
        weights=rows.weights,
    )


def _cached(
    cache: Path | None, key: str, rig: RigConfig, make: Callable[[], DemonstrationSet]
) -> DemonstrationSet:
    key = hashlib.sha256(key.encode()).hexdigest()
    if cache and cache.exists():
        with np.load(cache) as stored:
            if str(stored["key"]) == key:
                return _unpack(stored, rig)
    data = make()
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            key=key,
            task=data.task,
            states=data.states,
            chunks=data.chunks,
            labels=data.labels,
            episode=data.episode,
            **({} if data.weights is None else {"weights": data.weights}),
            **{f"images_{name}": images for name, images in data.images.items()},
        )
        temporary.replace(cache)
    return data


def _unpack(stored: np.lib.npyio.NpzFile, rig: RigConfig) -> DemonstrationSet:
    cameras = tuple(camera.name for camera in rig.cameras)
    images = {name: stored[f"images_{name}"] for name in cameras}
    arrays = {name: stored[name] for name in ("states", "chunks", "labels", "episode")}
    weights = stored.get("weights")
    task = str(stored.get("task", rig.task))
    return DemonstrationSet(
        cameras, rig.columns, rig.gripper_columns, kinematics_of(rig), task, images, **arrays, weights=weights
    )


def read_demonstration(path: Path, rig: RigConfig, step_dt: float) -> Demonstration:
    """One recording, at the stamps of the operator's commands, from his first to `AFTER_SUCCESS` past success."""
    reader = EpisodeReader(path)
    if reader.episode.get("outcome") != "success":
        raise VigilError(
            f"{path} is no successful episode ({reader.episode.get('outcome') or 'no outcome'}): remove it"
        )
    end = min(
        (_ns(m.header.stamp) for _, m in reader.messages("sim/task") if m.success),
        default=np.iinfo(np.int64).max,
    )
    columns = rig.arm.columns
    stamps = np.array(
        [
            stamp
            for _, message in reader.messages("teleop/command")
            if message.deadman
            and len(message.positions)
            and (stamp := _ns(message.header.stamp)) <= end + AFTER_SUCCESS
        ],
        np.int64,
    )
    if not len(stamps):
        raise VigilError(f"{path} holds no commands of an operator: it is not a demonstration")
    period = round(step_dt * 1e9)
    if len(stamps) > 1 and abs(np.median(np.diff(stamps)) - period) > 0.2 * period:
        found = np.median(np.diff(stamps)) / 1e9
        raise VigilError(
            f"{path}: commands come every {found:g} s, training is set to {step_dt:g} s per step"
        )
    states = reader.columns(f"{rig.arm.name}/joint_states", ("header.stamp", "position", "name"))
    setpoints = reader.columns("arm/state", ("header.stamp", "commanded", "names"))
    worlds = reader.columns("sim/state", ("header.stamp", "qpos"))
    qpos = worlds["qpos"][_nearest(worlds["header.stamp"], stamps)]
    measured = _in_order(states, "position", "name", columns)[_nearest(states["header.stamp"], stamps)]
    commands = _in_order(setpoints, "commanded", "names", columns)[
        _nearest(setpoints["header.stamp"], stamps)
    ]
    return Demonstration(measured, commands, qpos, object_labels(qpos, measured[:, :7], rig))


def _in_order(arrays: dict[str, np.ndarray], values: str, names: str, columns: tuple[str, ...]) -> np.ndarray:
    """float32 [T, D]: the columns of a recorded message picked by name."""
    given = list(arrays[names][0])
    if lacking := [name for name in columns if name not in given]:
        raise VigilError(f"the recording has no {lacking}: it names {given}, the rig has {list(columns)}")
    return arrays[values][:, [given.index(name) for name in columns]].astype(np.float32)


def object_labels(qpos: np.ndarray, joints: np.ndarray, rig: RigConfig) -> np.ndarray:
    """Where the object is: [T, 8] position in the base and seen from the gripper [m], cos and sin of four times its yaw.

    Four times, since a cube looks the same after a quarter of a turn.
    """
    address = int(scene.build_model().joint("cube").qposadr[0])
    position, (w, x, y, z) = qpos[:, address : address + 3], qpos[:, address + 3 : address + 7].T
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    pinch = FRANKA.positions(joints, rig.arm.tool_offset)
    label = [position, position - pinch, np.cos(4 * yaw)[:, None], np.sin(4 * yaw)[:, None]]
    return np.concatenate(label, 1).astype(np.float32)


def draw_appearance(rng: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """A slightly different look of the same scene, so that light, cloth and mounts may differ a little in use."""
    look: dict[str, tuple[float, ...]] = {
        "light": (rng.uniform(0.75, 1.25),),
        "light_tint": (1.0, rng.uniform(0.94, 1.0), rng.uniform(0.90, 1.0)),
        "table_rgb": tuple(np.clip(np.array(scene.TABLE_RGB) + rng.uniform(-0.09, 0.09, 3), 0, 1)),
        "camera_scene": (*rng.uniform(-0.010, 0.010, 3), *rng.uniform(-0.013, 0.013, 3)),
        "camera_wrist": (*rng.uniform(-0.002, 0.002, 3), *rng.uniform(-0.010, 0.010, 3)),
    }
    if rng.random() < 0.5:
        while True:
            x, y = rng.uniform((0.30, -0.45), (0.90, 0.45))
            near_work = 0.36 < x < 0.68 and -0.36 < y < 0.27
            if not near_work:
                break
        look["distractor"] = (x, y, 0.0)
        look["distractor_rgb"] = tuple(rng.uniform(0.1, 0.6, 3))
    return look


def assemble(
    demonstrations: Sequence[Demonstration], rig: RigConfig, config: TrainConfig
) -> DemonstrationSet:
    """Render the pictures and lay all demonstrations out in rows.

    The first share of them (``randomised_fraction``, drawn by seed) is rendered with a changed appearance.
    """
    cameras = tuple(camera.name for camera in rig.cameras)
    rng = np.random.default_rng(config.seed)
    looks = [
        draw_appearance(rng) if rng.random() < config.randomised_fraction else {} for _ in demonstrations
    ]
    rows = sum(len(d.states) for d in demonstrations)
    images = {name: np.empty((rows, config.image_size, config.image_size, 3), np.uint8) for name in cameras}
    for name in cameras:
        camera = SimulatedCamera(name)
        row = 0
        steps = list(zip(demonstrations, looks, strict=True))
        for demonstration, look in track(steps, f"rendering {name}", disable=not sys.stderr.isatty()):
            for qpos in demonstration.worlds:
                images[name][row] = prepare_image(camera.render(qpos, look), config.image_size)
                row += 1
        camera.close()
    return DemonstrationSet(
        cameras,
        rig.columns,
        rig.gripper_columns,
        kinematics_of(rig),
        rig.task,
        images,
        states=np.concatenate([d.states for d in demonstrations]),
        chunks=np.concatenate([chunks_of(d.commands, config.horizon) for d in demonstrations]),
        labels=np.concatenate([d.labels for d in demonstrations]),
        episode=np.repeat(np.arange(len(demonstrations)), [len(d.states) for d in demonstrations]),
    )


def _ns(stamp) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def _nearest(sorted_stamps: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Index of the entry nearest to each wanted stamp."""
    wanted = np.asarray(wanted)
    right = np.clip(np.searchsorted(sorted_stamps, wanted), 1, len(sorted_stamps) - 1)
    left = right - 1
    return np.where(wanted - sorted_stamps[left] < sorted_stamps[right] - wanted, left, right)
