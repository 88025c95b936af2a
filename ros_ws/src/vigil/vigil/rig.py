"""One description of a rig, read from ``launch/rigs/NAME.yaml`` and validated before any node starts.

Errors name the file, the line, the value that was passed and the fix.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from vigil.errors import VigilError
from vigil.fields import Finite, Name, Positive, Strict, Vector
from vigil.kinematics import CHAINS
from vigil.teleop.settings import TeleopConfig

M = TypeVar("M", bound=BaseModel)


class JointLimits(Strict):
    """Limits of one joint; SI units (rad, or m for a gripper)."""

    lower: Finite
    upper: Finite
    velocity: Positive
    acceleration: Positive
    jerk: Positive

    @model_validator(mode="after")
    def _ordered(self) -> JointLimits:
        if self.lower >= self.upper:
            raise ValueError(f"lower ({self.lower}) must be less than upper ({self.upper})")
        return self


class GripperConfig(Strict):
    """A gripper: one more column of every action, opening width in m.

    ``closed`` and ``open`` are what its joint says at the limits of the width, where that is not the width itself: an angle,
    or the way of one of two fingers.
    """

    name: Name
    controller_type: Literal["forward_position", "gripper_command", "franka", "interbotix"] = (
        "forward_position"
    )
    controller: Name
    limits: JointLimits
    joint: str = Field("", description="its name in joint states; `name` unless given")
    joint_states: str = Field("", description="topic of its joint states; the arm's unless given")
    closed: Finite | None = None
    open: Finite | None = None
    force: Positive | None = Field(
        None, description="[N] most that it may grip with, where the gripper is told"
    )
    squeeze: Positive | None = Field(
        None, description="[m] most that the commanded width may be below the measured one"
    )

    @model_validator(mode="after")
    def _scale_is_whole(self) -> GripperConfig:
        if (self.closed is None) != (self.open is None) or (
            self.open is not None and self.open == self.closed
        ):
            raise ValueError(
                f"closed ({self.closed}) and open ({self.open}) belong together and differ: give both or none"
            )
        if self.controller_type in ("gripper_command", "franka") and self.force is None:
            raise ValueError(f"a {self.controller_type} gripper is told its `force` [N]: add it")
        return self


class Box(Strict):
    """A box along the axes of the arm's base frame; corners in m."""

    lower: Vector
    upper: Vector

    @model_validator(mode="after")
    def _ordered(self) -> Box:
        if not all(low < high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"each of lower {self.lower} must be less than upper {self.upper}")
        return self


class WorkspaceConfig(Strict):
    """Where the tool may be, and how fast [m/s]; and boxes that no part of the arm may enter: whoever commands it."""

    tool_speed: Positive
    inside: Box
    keep_out: dict[Name, Box] = Field({})


class BaseConfig(Strict):
    """Where an arm stands, in a frame that all arms of the rig share [m, rad]."""

    position: Vector = (0.0, 0.0, 0.0)
    yaw: Finite = 0.0


class ArmConfig(Strict):
    """One arm, its limits, and the controller that moves it. Columns are the joints' own names after ``prefix``."""

    name: Name
    prefix: Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]*_)?$")] = ""
    kinematics: Literal["franka", "viperx300s"]
    base: BaseConfig = BaseConfig()
    tool_offset: Vector = Field(description="gripper's pinch point in the flange frame [m]")
    controller_type: Literal["joint_trajectory", "forward_position", "interbotix"]
    controller: Name
    joints: dict[str, JointLimits] = Field(min_length=1)
    gripper: GripperConfig
    workspace: WorkspaceConfig
    home: dict[str, Finite]
    recovery: Literal["franka", "interbotix"] | None = Field(
        None,
        description="how the robot is brought back after it stopped by itself, when the operator asks for it",
    )
    diagnostics: tuple[str, ...] = Field(
        (), description="beginnings of names on /diagnostics whose ERROR means that this robot stopped"
    )

    @model_validator(mode="after")
    def _joints_are_those_of_the_chain(self) -> ArmConfig:
        endings = CHAINS[self.kinematics].names
        named = tuple(self.joints)
        if len(named) != len(endings) or not all(map(str.endswith, named, endings)):
            raise ValueError(
                f"joints are {list(named)}: a {self.kinematics} arm has {list(endings)}, in this order from the base on"
            )
        return self

    @model_validator(mode="after")
    def _home_is_reachable(self) -> ArmConfig:
        limits = {**self.joints, self.gripper.name: self.gripper.limits}
        if set(self.home) != set(limits):
            raise ValueError(
                f"home names {sorted(self.home)}, but the arm has {sorted(limits)}: name each once"
            )
        for name, value in self.home.items():
            if not limits[name].lower <= value <= limits[name].upper:
                raise ValueError(
                    f"home of {name} is {value}, outside [{limits[name].lower}, {limits[name].upper}]"
                )
        return self

    @property
    def joint_columns(self) -> tuple[str, ...]:
        """Columns of the joints in file order."""
        return tuple(self.prefix + name for name in self.joints)

    @property
    def gripper_column(self) -> str:
        """The gripper's column."""
        return self.prefix + self.gripper.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of this arm's columns of an action: the joints, then the gripper."""
        return (*self.joint_columns, self.gripper_column)

    @property
    def limits(self) -> dict[str, JointLimits]:
        """Limits by column."""
        return dict(zip(self.columns, (*self.joints.values(), self.gripper.limits), strict=True))


class CameraConfig(Strict):
    """One colour camera. ``calibration`` names a file under ``calibration/<rig>/``."""

    name: Name
    driver: Literal["sim", "realsense", "replay"]
    serial: str = ""
    replay_path: str = ""
    width: Annotated[int, Field(ge=16, le=4096)] = 640
    height: Annotated[int, Field(ge=16, le=4096)] = 480
    rate: Annotated[float, Field(gt=0, le=120)] = 30.0
    calibration: str
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    depth: bool = Field(
        False, description="publishes depth aligned to the colour pictures, which is recorded raw"
    )

    @model_validator(mode="after")
    def _driver_has_its_source(self) -> CameraConfig:
        if self.driver == "realsense" and not self.serial:
            raise ValueError("a realsense camera needs `serial` (rs-enumerate-devices prints it)")
        if self.driver == "replay" and not self.replay_path:
            raise ValueError("a replay camera needs `replay_path`, a recorded episode (.mcap)")
        if self.driver == "replay" and self.depth:
            raise ValueError("a replay camera has no depth: leave `depth` off")
        return self


Seam = Literal["blend", "switch", "ensemble"]
SELECTIONS = ("first", "medoid", "overlap")


class PolicyConfig(Strict):
    """Which bundle drives the arm, and how often it is asked."""

    bundle: str = Field(description="folder, relative to the repository root or absolute")
    sampler: Name | None = Field(None, description="one of the bundle's; its first if not given")
    period: Positive = 0.2
    samples: Annotated[int, Field(ge=1, le=512, description="chunks drawn per tick (K), for the monitor")] = (
        32
    )
    candidates: Annotated[int, Field(ge=1, le=512)] = Field(
        8,
        description="of these, how many are drawn first: the arm gets one of them before the others are drawn",
    )
    selection: str = Field(
        "medoid",
        description="which candidate becomes the chunk: first, medoid, overlap (nearest to the running chunk), or a scorer of "
        "yours as module:function",
    )
    seam: Seam = Field(
        "blend",
        description="how the arm goes from chunk to chunk: cross-fade, at once, or mean of all that hold",
    )
    real_time_chunking: bool = Field(
        False,
        description="draw each chunk so that it goes on from the running one; needs a sampler that takes known targets",
    )
    tasks: dict[Annotated[str, Field(min_length=1)], str] = Field(
        {}, description="further tasks: the bundle's folder by task text, for policy/switch_task"
    )
    switch_timeout: Positive = Field(
        5.0, description="[s] in which a contact has to end for a task to be switched amid motion"
    )
    contact_margin: Positive = Field(
        0.004, description="[m] by which a gripper that holds something is wider than its command"
    )
    command_lead: Annotated[float, Field(ge=0, le=0.5)] | Literal["measured"] = Field(
        0.0,
        description="[s] by which commands are ahead of a chunk whose steps are poses to be reached, as the robot is late; "
        "0 where they are commands, as recorded here",
    )
    max_skew: Positive = Field(0.05, description="largest difference of stamps within one observation [s]")
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    provider: Literal["auto", "tensorrt", "cuda", "cpu"] = Field(
        "auto", description="what runs the graphs; auto: the first of them that starts, in this order"
    )
    seed: int = 0

    @field_validator("selection")
    @classmethod
    def _selection_is_known(cls, selection: str) -> str:
        if selection not in SELECTIONS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", selection):
            raise ValueError(
                f"unknown selection: use {', '.join(SELECTIONS)}, or a scorer of yours as module:function"
            )
        return selection


class MonitorConfig(Strict):
    """Failure monitor.

    ``level: calibrated`` is the bundle's own detector, ``fiper`` the published pair of scores, which is calibrated beside it,
    and ``none`` runs without a monitor, by the rig owner's decision.
    """

    level: Literal["calibrated", "fiper", "none"] = "calibrated"
    hold_on: tuple[Literal["ALARM", "OUT_OF_RANGE", "UNCALIBRATED", "STALE"], ...] = ("ALARM", "OUT_OF_RANGE")


class WatchdogConfig(Strict):
    """How long an input may be silent before the arm holds [s]. ``node``: a process of the stack that died.

    ``following_error``: not a time but how far a joint may stay from its command [rad]; a robot that stopped by itself does.
    ``estop``: of a button that says all the time that it is released; its silence is an e-stop. None: there is no button.
    """

    joint_states: Positive = 0.15
    chunk: Positive = 0.6
    monitor: Positive = 0.7
    evidence: Positive = 0.7
    camera: Positive = 0.3
    operator: Positive = 0.25
    node: Annotated[float, Field(ge=0.15, allow_inf_nan=False)] = 0.25
    following_error: Positive = 0.3
    estop: Positive | None = None


class RecordConfig(Strict):
    """What the recorder writes."""

    directory: str = "out/recordings"
    images: Literal["jpeg", "raw", "none"] = "jpeg"
    min_free_mb: Annotated[int, Field(ge=0)] = 500


class SimConfig(Strict):
    """Simulated hardware; absent on a real rig."""

    scene: Literal["franka_pick_place"]
    time_limit: Positive = 15.0
    seed: int = 0
    latency: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="[s] lock step: how long after its observation a chunk reaches the arm"
    )


class RigConfig(Strict):
    """Everything that the nodes need to know about one rig."""

    name: Name
    namespace: Name
    task: str = Field(min_length=1)
    control_rate: Annotated[float, Field(ge=10, le=1000)] = 100.0
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    arm_distance: Positive = Field(0.05, description="[m] that two arms keep between them")
    cameras: tuple[CameraConfig, ...] = Field(min_length=1)
    policy: PolicyConfig
    monitor: MonitorConfig = MonitorConfig()
    watchdogs: WatchdogConfig = WatchdogConfig()
    teleop: TeleopConfig
    record: RecordConfig = RecordConfig()
    sim: SimConfig | None = None

    _path: Path | None = None

    @field_validator("arms")
    @classmethod
    def _arms_differ(cls, arms: tuple[ArmConfig, ...]) -> tuple[ArmConfig, ...]:
        for what, names in (
            ("arm names", [arm.name for arm in arms]),
            ("columns", [column for arm in arms for column in arm.columns]),
        ):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} {repeated} repeat: give each arm a name and a `prefix` of its own")
        return arms

    @field_validator("cameras")
    @classmethod
    def _names_are_unique(cls, cameras: tuple[CameraConfig, ...]) -> tuple[CameraConfig, ...]:
        names = [camera.name for camera in cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"camera names {names} repeat: give each camera its own name")
        return cameras

    @model_validator(mode="after")
    def _simulated_parts_need_a_simulation(self) -> RigConfig:
        if self.sim is None:
            needing = [f"camera {c.name}" for c in self.cameras if c.driver == "sim"]
            needing += ["teleop device scripted"] if self.teleop.device == "scripted" else []
            if needing:
                raise ValueError(
                    f"{', '.join(needing)} need a `sim` section: add one or choose a real driver"
                )
        return self

    @model_validator(mode="after")
    def _device_fits_the_rig(self) -> RigConfig:
        self.teleop.check(self)
        return self

    @model_validator(mode="after")
    def _tasks_differ(self) -> RigConfig:
        if self.task in self.policy.tasks:
            raise ValueError(
                f"policy.tasks names {self.task!r}, which is the rig's own task: its bundle is policy.bundle"
            )
        return self

    @property
    def path(self) -> Path:
        """The file this rig was read from."""
        assert self._path is not None, "made by load_rig"
        return self._path

    @property
    def arm(self) -> ArmConfig:
        """The arm of a rig that has one; VigilError if there are several."""
        if len(self.arms) > 1:
            raise VigilError(
                f"rig {self.name} has arms {[arm.name for arm in self.arms]}: this works with one arm only"
            )
        return self.arms[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns of an action, arm by arm."""
        return tuple(column for arm in self.arms for column in arm.columns)

    @property
    def parts(self) -> tuple[tuple[ArmConfig, slice], ...]:
        """Each arm, and where its columns are among them; its gripper's is the last."""
        found, start = [], 0
        for arm in self.arms:
            found.append((arm, slice(start, start + len(arm.columns))))
            start += len(arm.columns)
        return tuple(found)

    @property
    def gripper_columns(self) -> tuple[str, ...]:
        """Those of them that are grippers."""
        return tuple(arm.gripper_column for arm in self.arms)

    @property
    def limits(self) -> dict[str, JointLimits]:
        """Limits by column."""
        return {column: limits for arm in self.arms for column, limits in arm.limits.items()}

    @property
    def home(self) -> dict[str, float]:
        """Home position by column."""
        return {
            column: arm.home[name]
            for arm in self.arms
            for column, name in zip(arm.columns, (*arm.joints, arm.gripper.name), strict=True)
        }

    def camera(self, name: str) -> CameraConfig:
        """The camera called ``name``; VigilError if the rig has none."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise VigilError(f"rig {self.name} has no camera {name!r}; it has {[c.name for c in self.cameras]}")

    def bundle_path(self, task: str | None = None) -> Path:
        """Folder of the policy bundle for a task; None: for the rig's own."""
        if task is None or task == self.task:
            return resolve(self.policy.bundle)
        if task not in self.policy.tasks:
            known = [self.task, *self.policy.tasks]
            raise VigilError(
                f"rig {self.name} has no policy for the task {task!r}; it has {known}: add it to `policy.tasks` in the rig file"
            )
        return resolve(self.policy.tasks[task])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Texts of all tasks that this rig has a policy for, its own first."""
        return (self.task, *self.policy.tasks)

    def calibration_path(self, camera: CameraConfig) -> Path:
        """Calibration file of one camera."""
        return root() / "calibration" / self.name / camera.calibration


def root() -> Path:
    """The workspace root that holds ``launch/``, ``models/`` and ``calibration/``.

    ``VIGIL_ROOT`` wins; else the checkout this package lies in; else the working folder.
    """
    if named := os.environ.get("VIGIL_ROOT"):
        return Path(named)
    for folder in (*Path(__file__).resolve().parents, Path.cwd()):
        if (folder / "launch" / "rigs").is_dir():
            return folder
    raise VigilError(
        "no folder with launch/rigs found above the vigil package or the working folder: "
        "start from the checkout, or set VIGIL_ROOT to it"
    )


def resolve(path: str | Path) -> Path:
    """``path`` itself if absolute, else below the workspace root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else root() / path


def resolve_here(path: Path) -> Path:
    """A path that is given on the command line: from here if it exists, else below the workspace root."""
    return path if path.expanduser().exists() else resolve(path)


def rig_path(name_or_path: str | Path) -> Path:
    """File of a rig, given by name (``franka_sim``) or by path."""
    given = str(name_or_path)
    if given.endswith((".yaml", ".yml")) or os.sep in given:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise VigilError(f"rig file {path} does not exist")
        return path
    folder = root() / "launch" / "rigs"
    path = folder / f"{given}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise VigilError(
            f"unknown rig {given!r}: {folder} has {known}; name one of them or give a path to a file"
        )
    return path


def load_rig(name_or_path: str | Path) -> RigConfig:
    """Read and validate a rig file.

    Raises:
        VigilError: the file is missing, is not YAML, or breaks a rule; names file, line, value and fix.
    """
    path = rig_path(name_or_path)
    data, lines = read_yaml(path)
    rig = validate(RigConfig, data, path, lines)
    rig._path = path
    return rig


def read_yaml(path: Path) -> tuple[Any, dict[tuple, int]]:
    """A YAML file's content, and the line (1-based) of every key and item by its location."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VigilError(f"cannot read {path}: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise VigilError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    lines: dict[tuple, int] = {(): 1}

    def walk(node: yaml.Node | None, location: tuple) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*location, key.value)] = key.start_mark.line + 1
                walk(value, (*location, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*location, index)] = value.start_mark.line + 1
                walk(value, (*location, index))

    walk(node, ())
    return data, lines


def validate(model: type[M], data: Any, path: Path, lines: dict[tuple, int]) -> M:
    """``model`` made of ``data``; every broken rule in one VigilError, one line each."""
    if not isinstance(data, dict):
        raise VigilError(f"{path}:1: expected keys and values, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise VigilError("\n".join(_explain(e, data, path, lines) for e in error.errors())) from None


def _without_tags(location: tuple, data: Any) -> tuple:
    """``location`` as it is in the file: without the value that tells a section's kind, which pydantic puts into it."""
    kept = []
    for part in location:
        if isinstance(data, dict) and part not in data and part in list(data.values()):
            continue
        kept.append(part)
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(kept)


def _explain(error: Any, data: Any, path: Path, lines: dict[tuple, int]) -> str:
    location = _without_tags(tuple(error["loc"]), data)
    known = location
    while known not in lines:
        known = known[:-1]
    name = ".".join(str(part) for part in location) or "the file"
    kind = error["type"]
    if kind == "missing":
        what = f"{name} is missing: add it"
    elif kind == "extra_forbidden":
        what = f"{name} is not a setting: check the spelling or remove it"
    else:
        given = error.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
        what = f"{name}: {error['msg'].removeprefix('Value error, ')}{shown}"
    return f"{path}:{lines[known]}: {what}"
