"""The simulated world as a MuJoCo model: robot, table, cube, tray, distractor and two cameras.

Physics and every simulated camera build the same model from here, so a camera can draw its view in its own process
from the state alone. SI units; the world frame is the robot's base, the table's top is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

ROBOT = Path(__file__).parent / "assets" / "franka_2f85" / "robot.xml"

ARM_JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
GRIPPER = "gripper"
COLUMNS = (*ARM_JOINTS, GRIPPER)
FINGER_JOINTS = tuple(
    f"{side}_{part}_joint"
    for side in ("right", "left")
    for part in ("driver", "coupler", "spring_link", "follower")
)
# Position limits and torque limits of the FR3 (its data sheet), stiffness of Franka's joint impedance controller.
JOINT_LOWER = np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159])
JOINT_UPPER = np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159])
JOINT_VELOCITY = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
TORQUE = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])
STIFFNESS = np.array([4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0])
DAMPING = STIFFNESS / 10.0
HOME = np.array([0.0, -0.4, 0.0, -2.2, 0.0, 1.8, 0.7854])
TOOL_OFFSET = (0.0, 0.0, 0.1488)  # the gripper's pinch point in the flange frame

MAX_WIDTH = 0.085
GRIPPER_SPEED = 0.15  # [m/s]
GRIPPER_STIFFNESS = 100.0  # [Nm/rad] at the driving joint, both fingers together
GRIPPER_DAMPING = 10.0
GRIPPER_TORQUE = 5.0

TIMESTEP = 0.002
CUBE_HALF = 0.02
CUBE_RGB = (0.86, 0.16, 0.12)
CUBE_MASS = 0.08
CUBE_FRICTION = 0.9
CUBE_REGION = ((0.42, 0.62), (-0.05, 0.20))  # x and y of cubes at reset
CUBE_YAW = np.deg2rad(
    40.0
)  # either side; a cube repeats at 90 degrees, the gap keeps the nearest face unambiguous
TRAY_CENTRE = np.array([0.50, -0.24])
TRAY_HALF = 0.08
TRAY_FLOOR = 0.004  # height of the tray's inner surface
TABLE_RGB = (0.62, 0.56, 0.48)
TABLE_X, TABLE_Y = (0.16, 1.06), (-0.62, 0.62)
DISTRACTOR_PARKED = (0.0, 0.0, -8.0)

_FLOOR_Z = -0.72
_STATIC = {"contype": 2, "conaffinity": 3}  # what stands still meets the robot (bit 1) and the cube (bit 2)


@dataclass(frozen=True)
class CameraView:
    """A camera: where it sits in ``parent`` (a body), what it looks at, its vertical field of view."""

    parent: str
    position: tuple[float, float, float]
    look_at: tuple[float, float, float]
    up: tuple[float, float, float]
    fovy: float  # [deg]

    def rotation(self) -> np.ndarray:
        """[3, 3] axes of the optical frame (x right, y down, z forward) in the parent frame."""
        forward = np.subtract(self.look_at, self.position)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward], axis=1)

    def intrinsics(self, width: int = 640, height: int = 480) -> Intrinsics:
        """Pinhole parameters of this view at a resolution."""
        focal = 0.5 * height / np.tan(np.deg2rad(self.fovy) / 2)
        return Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera in pixels; pixel centres have integer coordinates. No distortion."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def matrix(self) -> np.ndarray:
        """[3, 3] camera matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])


CAMERAS = {
    "wrist": CameraView("base_mount", (0.0, 0.085, 0.025), (0.0, 0.012, 0.20), (0.0, 1.0, 0.0), 62.0),
    "scene": CameraView("world", (1.18, -0.50, 0.68), (0.43, 0.005, 0.13), (0.0, 0.0, 1.0), 41.0),
}


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    return quaternion


def _box(body, name: str, lower, upper, rgb, **kwargs) -> None:
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=(lower + upper) / 2,
        size=(upper - lower) / 2,
        rgba=[*rgb, 1.0],
        **kwargs,
    )


def build_spec() -> mujoco.MjSpec:
    """The whole scene, editable."""
    spec = mujoco.MjSpec.from_file(str(ROBOT))
    spec.modelname = "franka_pick_place"
    spec.site("pinch").group = 4  # not drawn
    option = spec.option
    option.timestep = TIMESTEP
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10
    option.noslip_iterations = 5
    _visual_settings(spec)
    _robot(spec)
    _objects(spec.worldbody)
    _surroundings(spec.worldbody)
    for name, view in CAMERAS.items():
        x, y, z = view.rotation().T
        camera = spec.body(view.parent).add_camera(name=name, pos=view.position, fovy=view.fovy)
        camera.quat = _quaternion(np.stack([x, -y, -z], axis=1))  # MuJoCo's camera looks along -z, y up
        camera.resolution = [640, 480]
    return spec


def build_model() -> mujoco.MjModel:
    """The compiled scene."""
    return build_spec().compile()


def _visual_settings(spec: mujoco.MjSpec) -> None:
    """What software rendering can afford: no shadows, no multi-sampling, no reflections, one light and the headlight."""
    visual = spec.visual
    visual.quality.shadowsize = 0
    visual.quality.offsamples = 0
    visual.quality.numquads = 1  # faces per side of a box
    visual.quality.numslices = 20
    visual.global_.offwidth, visual.global_.offheight = 640, 480
    visual.headlight.ambient = [0.34, 0.34, 0.35]
    visual.headlight.diffuse = [0.22, 0.22, 0.22]
    visual.headlight.specular = [0.0, 0.0, 0.0]
    visual.map.znear, visual.map.zfar = 0.02, 8.0
    spec.stat.extent, spec.stat.center = 1.0, [0.5, 0.0, 0.2]


def _robot(spec: mujoco.MjSpec) -> None:
    for body in spec.bodies:
        body.gravcomp = 1.0
    for index, name in enumerate(ARM_JOINTS):
        spec.joint(name).range = [JOINT_LOWER[index], JOINT_UPPER[index]]
        actuator = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.gaintype, actuator.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
        actuator.gainprm[0] = STIFFNESS[index]
        actuator.biasprm[1:3] = [-STIFFNESS[index], -DAMPING[index]]
        actuator.forcelimited, actuator.forcerange = True, [-TORQUE[index], TORQUE[index]]
        actuator.ctrllimited = False
    fingers = spec.add_actuator(name=GRIPPER, target="split", trntype=mujoco.mjtTrn.mjTRN_TENDON)
    fingers.gaintype, fingers.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    fingers.gainprm[0] = GRIPPER_STIFFNESS
    fingers.biasprm[1:3] = [-GRIPPER_STIFFNESS, -GRIPPER_DAMPING]
    fingers.forcelimited, fingers.forcerange = True, [-GRIPPER_TORQUE, GRIPPER_TORQUE]
    fingers.ctrllimited = False
    mount = spec.body("base_mount")
    view = CAMERAS["wrist"]
    mount.add_geom(  # the wrist camera's own housing, seen by the scene camera only
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=np.add(view.position, (0.0, 0.006, -0.012)),
        size=[0.042, 0.011, 0.011],
        rgba=[0.75, 0.76, 0.78, 1.0],
        contype=0,
        conaffinity=0,
        mass=0,
    )


def _objects(world) -> None:
    cube = world.add_body(name="cube", pos=[0.5, 0.0, CUBE_HALF])
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF] * 3,
        mass=CUBE_MASS,
        rgba=[*CUBE_RGB, 1.0],
        friction=[CUBE_FRICTION, 0.01, 0.0005],
        priority=2,
        condim=4,
        contype=2,
        conaffinity=3,
        solimp=[0.95, 0.99, 0.001, 0.5, 2],
        solref=[0.004, 1],
    )
    distractor = world.add_body(name="distractor", pos=DISTRACTOR_PARKED)
    distractor.add_geom(
        name="distractor",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, 0.04],
        size=[0.028, 0.04, 0],
        rgba=[0.20, 0.52, 0.32, 1.0],
        **_STATIC,
    )


def _surroundings(world) -> None:
    """Table, tray and room. Bodies are drawn in this order, near ones first: hidden pixels are then not shaded."""
    lamp = world.add_light(name="lamp", pos=[0.6, 0.3, 2.0], dir=[-0.25, -0.35, -1.0], castshadow=False)
    lamp.diffuse, lamp.specular, lamp.ambient = [0.60, 0.59, 0.57], [0.15, 0.15, 0.15], [0.0, 0.0, 0.0]
    lamp.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    tray = world.add_body(name="tray")
    half, rim, height = TRAY_HALF, 0.006, 0.014
    x, y = TRAY_CENTRE
    inner, edge = (0.20, 0.36, 0.62), (0.13, 0.25, 0.46)
    _box(tray, "tray", (x - half, y - half, 0), (x + half, y + half, TRAY_FLOOR), inner, **_STATIC)
    _box(tray, "tray_rim1", (x - half - rim, y - half, 0), (x - half, y + half, height), edge, **_STATIC)
    _box(tray, "tray_rim2", (x + half, y - half, 0), (x + half + rim, y + half, height), edge, **_STATIC)
    _box(
        tray,
        "tray_rim3",
        (x - half - rim, y - half - rim, 0),
        (x + half + rim, y - half, height),
        edge,
        **_STATIC,
    )
    _box(
        tray,
        "tray_rim4",
        (x - half - rim, y + half, 0),
        (x + half + rim, y + half + rim, height),
        edge,
        **_STATIC,
    )
    (x0, x1), (y0, y1) = TABLE_X, TABLE_Y
    _box(world.add_body(name="table"), "table", (x0, y0, -0.04), (x1, y1, 0.0), TABLE_RGB, **_STATIC)
    room, drawn_only = world.add_body(name="room"), {"contype": 0, "conaffinity": 0}
    _box(room, "pedestal", (-0.20, -0.14, _FLOOR_Z), (0.13, 0.14, 0.0), (0.28, 0.29, 0.31), **drawn_only)
    _box(room, "wall", (-1.32, -4.0, _FLOOR_Z), (-1.3, 7.0, 2.2), (0.55, 0.60, 0.65), **drawn_only)
    _box(room, "floor", (-1.3, -4.0, _FLOOR_Z - 0.02), (3.0, 7.0, _FLOOR_Z), (0.33, 0.36, 0.40), **drawn_only)
