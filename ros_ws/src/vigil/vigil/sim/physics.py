"""The simulated robot cell: physics, hardware limits, the task and its perturbation, stepped by one control period."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import mujoco
import numpy as np

from vigil.kinematics import FRANKA
from vigil.sim import scene
from vigil.sim.appearance import Appearance, Dresser
from vigil.sim.disturbance import CartesianDisturbance
from vigil.sim.perturbations import make_perturbation
from vigil.sim.task import PickPlace, TaskStatus

CONTROL_PERIOD = 0.01
_GRIP_LEAD = 0.02  # [m] from here the gripper pushes with its full force
_SPRING_TORQUE = 0.2  # [Nm] with which the linkage's springs alone close the fingers
SUBSTEPS = round(CONTROL_PERIOD / scene.TIMESTEP)


@dataclass
class Faults:
    """What perturbations do to the hardware."""

    gripper_scale: float = 1.0  # of the torque that closes the gripper
    delay: float = 0.0  # [s] between an arm command and its execution
    friction: float = scene.CUBE_FRICTION


@dataclass
class World:
    """What perturbations and the task see of the simulation, and may change."""

    model: mujoco.MjModel
    data: mujoco.MjData
    rng: np.random.Generator
    appearance: Appearance = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    time: float = 0.0  # [s] since reset

    def __post_init__(self) -> None:
        joint = self.model.joint("cube")
        self._qpos, self._qvel = int(joint.qposadr[0]), int(joint.dofadr[0])
        self._site = self.model.site("pinch").id

    @property
    def cube_position(self) -> np.ndarray:
        """[3] m, centre of the object."""
        return self.data.qpos[self._qpos : self._qpos + 3].copy()

    @property
    def cube_speed(self) -> float:
        """Linear speed [m/s]."""
        return float(np.linalg.norm(self.data.qvel[self._qvel : self._qvel + 3]))

    @property
    def cube_half(self) -> np.ndarray:
        """[3] m, half edges of the object."""
        return self.model.geom("cube").size.copy()

    @property
    def cube_yaw(self) -> float:
        """Rotation about the vertical [rad]."""
        w, x, y, z = self.data.qpos[self._qpos + 3 : self._qpos + 7]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))

    def place_cube(self, x: float, y: float, yaw: float, z: float | None = None) -> None:
        """Put the object down at rest, on the table unless ``z`` of its centre is given."""
        z = float(self.cube_half[2]) if z is None else z
        self.data.qpos[self._qpos : self._qpos + 7] = (x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.data.qvel[self._qvel : self._qvel + 6] = 0.0

    @property
    def pinch(self) -> np.ndarray:
        """[3] m, the point between the finger tips."""
        return self.data.site_xpos[self._site].copy()


class Simulation:
    """The cell. Deterministic: the same seed and the same commands give the same states, bit by bit."""

    columns = scene.COLUMNS

    def __init__(self, time_limit: float = 15.0, home: np.ndarray = scene.HOME) -> None:
        """``time_limit`` [s] of an episode; ``home`` [7] joint angles at its start."""
        self.model = scene.build_model()
        self.data = mujoco.MjData(self.model)
        self._dresser = Dresser(self.model)
        self._widths, self._angles = _width_table(self.model)
        self._time_limit = time_limit
        self._home = np.array(home, dtype=float)
        arm = [self.model.joint(name) for name in scene.ARM_JOINTS]
        self._arm_qpos = np.array([joint.qposadr[0] for joint in arm])
        self._arm_dof = np.array([joint.dofadr[0] for joint in arm])
        drivers = [self.model.joint(f"{side}_driver_joint") for side in ("right", "left")]
        self._driver_qpos = [int(joint.qposadr[0]) for joint in drivers]
        self._driver_dof = [int(joint.dofadr[0]) for joint in drivers]
        free = self.model.jnt_type[self.model.dof_jntid] == mujoco.mjtJoint.mjJNT_FREE
        self._heavy = free | np.isin(np.arange(self.model.nv), self._arm_dof)  # [nv]
        self._arm_ctrl = np.array([self.model.actuator(name).id for name in scene.ARM_JOINTS])
        self._gripper_ctrl = self.model.actuator(scene.GRIPPER).id
        self._cube_geom = self.model.geom("cube").id
        self._geom_names = [self.model.geom(i).name for i in range(self.model.ngeom)]
        self._lead = scene.DAMPING / scene.STIFFNESS
        self.scene_number = 0
        self.reset(0)

    def reset(self, seed: int, perturbation: str = "none", disturbance: float = 0.0) -> None:
        """Start an episode.

        Args:
            seed: draws the cube's pose and everything else that is random.
            perturbation: a name of `perturbations.REGISTRY`, or none.
            disturbance: [m] root mean square of slow Cartesian noise on the executed commands.

        Raises:
            VigilError: unknown perturbation or a disturbance outside [0, 0.05]; the running scene goes on.
        """
        cube_rng, event_rng, noise_rng = (np.random.default_rng([abs(seed), k, seed < 0]) for k in range(3))
        chosen = make_perturbation(perturbation)
        self._disturbance = CartesianDisturbance(disturbance, noise_rng)
        self.seed, self.scene_number = seed, self.scene_number + 1
        self._dresser.apply({})
        mujoco.mj_resetData(self.model, self.data)
        self.world = World(self.model, self.data, event_rng)
        self.data.qpos[self._arm_qpos] = self._home
        self.data.ctrl[self._arm_ctrl] = self._home
        (x0, x1), (y0, y1) = scene.CUBE_REGION
        self.world.place_cube(
            cube_rng.uniform(x0, x1),
            cube_rng.uniform(y0, y1),
            cube_rng.uniform(-scene.CUBE_YAW, scene.CUBE_YAW),
        )
        self.task = PickPlace(self._time_limit)
        self.perturbation = chosen
        self._target, self._width = self._home.copy(), scene.MAX_WIDTH
        self._delayed: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=200)
        self._delay_now = 0.0
        mujoco.mj_forward(self.model, self.data)
        self.perturbation.begin(self.world)
        self._apply_faults()
        mujoco.mj_forward(self.model, self.data)

    # State ----------------------------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """Simulated seconds since reset."""
        return self.world.time

    @property
    def qpos(self) -> np.ndarray:
        """[nq] MuJoCo generalised positions, what a camera needs beside `appearance`."""
        return self.data.qpos.copy()

    @property
    def qvel(self) -> np.ndarray:
        """[nv] MuJoCo generalised velocities."""
        return self.data.qvel.copy()

    def qpos_in(self, seconds: float) -> np.ndarray:
        """[nq] positions after ``seconds`` at the present velocities of arm and objects.

        What is missed is half the acceleration times their square: 0.25 mm in 10 ms at 5 m/s^2. The fingers stay as they
        are: their linkage is so light that it can be at 80 rad/s for the moment in which it meets an object.
        """
        qpos = self.data.qpos.copy()
        mujoco.mj_integratePos(self.model, qpos, np.where(self._heavy, self.data.qvel, 0.0), seconds)
        return qpos

    @property
    def appearance(self) -> Appearance:
        """Active visual changes."""
        return dict(self.world.appearance)

    @property
    def positions(self) -> np.ndarray:
        """[8] measured joints [rad], then the gripper's opening width [m]; columns as in `columns`."""
        return np.append(self.data.qpos[self._arm_qpos], self.gripper_width)

    @property
    def velocities(self) -> np.ndarray:
        """[8] rad/s, then m/s."""
        nearby = np.interp(self._driver_angle + 1e-3, self._angles, self._widths)
        right, left = self._driver_dof
        speed = 0.5 * (self.data.qvel[right] + self.data.qvel[left]) * (nearby - self.gripper_width) / 1e-3
        return np.append(self.data.qvel[self._arm_dof], speed)

    @property
    def efforts(self) -> np.ndarray:
        """[8] joint torques of the actuators [Nm]; the gripper's is that of its driving joint."""
        return np.append(
            self.data.actuator_force[self._arm_ctrl], self.data.actuator_force[self._gripper_ctrl]
        )

    @property
    def gripper_width(self) -> float:
        """Opening width [m]."""
        return float(np.interp(self._driver_angle, self._angles, self._widths))

    @property
    def _driver_angle(self) -> float:
        """Mean angle of the two joints that drive the fingers [rad]."""
        right, left = self._driver_qpos
        return 0.5 * (self.data.qpos[right] + self.data.qpos[left])

    @property
    def status(self) -> TaskStatus:
        """Ground truth of the task."""
        return self.task.status

    # Stepping -------------------------------------------------------------------------------------------------

    def step(self, position: np.ndarray, velocity: np.ndarray, width: float) -> None:
        """Advance by one control period (10 ms).

        Args:
            position: [7] desired joint angles at the end of the period [rad], clipped to the joints' limits.
            velocity: [7] desired joint velocities [rad/s] (feed-forward).
            width: desired gripper width [m], clipped to what the gripper can do and reached at its own speed.
        """
        world = self.world
        position, velocity = self._executed(np.asarray(position, float), np.asarray(velocity, float))
        lag = self._lead * velocity
        start, self._target = self._target, position
        travel = scene.GRIPPER_SPEED * CONTROL_PERIOD
        self._width += np.clip(np.clip(width, 0.0, scene.MAX_WIDTH) - self._width, -travel, travel)
        # No wind-up while the fingers are held: opening starts at once.
        self._width = np.clip(self._width, self.gripper_width - _GRIP_LEAD, self.gripper_width + _GRIP_LEAD)
        self.data.ctrl[self._gripper_ctrl] = np.interp(-self._width, -self._widths, self._angles)
        for substep in range(1, SUBSTEPS + 1):
            self.data.ctrl[self._arm_ctrl] = start + (position - start) * (substep / SUBSTEPS) + lag
            mujoco.mj_step(self.model, self.data)
        world.time += CONTROL_PERIOD
        mujoco.mj_kinematics(self.model, self.data)
        self.perturbation.update(world, self.task.status)
        self._apply_faults()
        self.task.update(world, self._pad_contacts(), self.gripper_width)

    def _executed(self, position: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The command as the drives receive it: delayed, disturbed, within the joints' limits and speeds."""
        self._delayed.append((position, velocity))
        # The delay grows slowly: it must not jump back in time when it sets in.
        self._delay_now = min(self.world.faults.delay, self._delay_now + 0.5 * CONTROL_PERIOD)
        back = min(round(self._delay_now / CONTROL_PERIOD), len(self._delayed) - 1)
        position, velocity = self._delayed[-1 - back]
        if self._disturbance.amplitude:
            twist, rate = self._disturbance.sample(self.world.time)
            matrix = FRANKA.jacobian(self._target, scene.TOOL_OFFSET)
            pseudo = matrix.T @ np.linalg.inv(matrix @ matrix.T + 1e-4 * np.eye(6))
            position, velocity = position + pseudo @ twist, velocity + pseudo @ rate
        position = np.clip(position, scene.JOINT_LOWER, scene.JOINT_UPPER)
        reach = scene.JOINT_VELOCITY * CONTROL_PERIOD
        limited = self._target + np.clip(position - self._target, -reach, reach)
        return limited, np.clip(velocity, -scene.JOINT_VELOCITY, scene.JOINT_VELOCITY)

    def _apply_faults(self) -> None:
        faults = self.world.faults
        closing = scene.GRIPPER_TORQUE + _SPRING_TORQUE
        torque = closing * faults.gripper_scale - _SPRING_TORQUE
        self.model.actuator_forcerange[self._gripper_ctrl] = (-scene.GRIPPER_TORQUE, torque)
        self.model.geom_friction[self._cube_geom, 0] = faults.friction
        if self._dresser.apply(self.world.appearance):
            mujoco.mj_kinematics(self.model, self.data)

    def _pad_contacts(self) -> tuple[bool, bool]:
        """Whether the right and the left finger pads touch the object."""
        touching = {"right": False, "left": False}
        contacts = self.data.contact
        for a, b in zip(contacts.geom1, contacts.geom2, strict=True):
            if self._cube_geom in (a, b):
                other = self._geom_names[int(b if a == self._cube_geom else a)]
                side, _, part = other.partition("_")
                if part.startswith("pad"):
                    touching[side] = True
        return touching["right"], touching["left"]


def _width_table(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Opening width [m] (falling) against the driver's angle [rad], from the linkage at rest."""
    data = mujoco.MjData(model)
    actuator = model.actuator(scene.GRIPPER).id
    driver = model.joint("right_driver_joint").qposadr[0]
    pads = [model.geom(f"{side}_pad1").id for side in ("right", "left")]
    thickness = 2 * model.geom_size[pads[0], 1]
    data.qpos[:7], data.ctrl[:7] = scene.HOME, scene.HOME
    angles, widths = [], []
    for command in np.linspace(0.0, 0.8, 17):
        data.ctrl[actuator] = command
        for _ in range(300):
            mujoco.mj_step(model, data)
        angles.append(data.qpos[driver])
        widths.append(np.linalg.norm(data.geom_xpos[pads[0]] - data.geom_xpos[pads[1]]) - thickness)
    widths = np.minimum(widths, scene.MAX_WIDTH)
    return np.array(widths), np.array(angles)
