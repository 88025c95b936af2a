"""Named changes of the world during an episode. Benign ones leave the task doable for a robust policy; failing ones
make a policy that was trained on nominal scenes fail most of the time.

Each is drawn from the episode's seed, so it can be repeated. What is visible goes into the appearance, so that a
camera in another process shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vigil.errors import VigilError
from vigil.sim import scene

if TYPE_CHECKING:
    from vigil.sim.physics import World
    from vigil.sim.task import TaskStatus


class Perturbation:
    """One kind. `begin` runs at reset, `update` after every control period until `active`, then `follow`."""

    name: ClassVar[str]
    benign: ClassVar[bool]
    active = False

    def begin(self, world: World) -> None:
        """Draw what is random."""

    def due(self, world: World, status: TaskStatus) -> bool:
        """Whether it begins now."""
        raise NotImplementedError

    def strike(self, world: World) -> None:
        """Change the world."""
        raise NotImplementedError

    def follow(self, world: World) -> None:
        """Called after every further period; for changes that take time."""

    def update(self, world: World, status: TaskStatus) -> None:
        """Advance by one control period."""
        if self.active:
            self.follow(world)
        elif self.due(world, status):
            self.active = True
            self.strike(world)


class Unperturbed(Perturbation):
    """The nominal episode."""

    name, benign = "none", True

    def due(self, world: World, status: TaskStatus) -> bool:
        return False


class _Timed(Perturbation):
    """Begins at a random time [s] after reset."""

    window: ClassVar[tuple[float, float]] = (0.4, 1.2)

    def begin(self, world: World) -> None:
        self._start = world.rng.uniform(*self.window)

    def due(self, world: World, status: TaskStatus) -> bool:
        return world.time >= self._start


class Lighting(_Timed):
    """A lamp is dimmed, brightened or turns warmer."""

    name, benign = "lighting", True

    def strike(self, world: World) -> None:
        change = world.rng.uniform(0.12, 0.22) * world.rng.choice([-1.0, 1.0])
        warm = world.rng.uniform(0.0, 0.08)
        world.appearance |= {"light": (1.0 + change,), "light_tint": (1.0, 1.0 - warm / 2, 1.0 - warm)}


class TableColor(_Timed):
    """The table's cloth has another shade."""

    name, benign = "table_color", True

    def strike(self, world: World) -> None:
        colour = np.array(scene.TABLE_RGB) + world.rng.uniform(-0.07, 0.07, 3)
        world.appearance["table_rgb"] = tuple(np.clip(colour, 0, 1))


class Distractor(_Timed):
    """Somebody puts another thing on the table, off the way."""

    name, benign = "distractor", True

    def strike(self, world: World) -> None:
        spots = [((0.34, 0.60), (0.33, 0.44)), ((0.72, 0.76), (-0.05, 0.28)), ((0.24, 0.30), (-0.15, 0.15))]
        (x0, x1), (y0, y1) = spots[world.rng.integers(len(spots))]
        world.appearance["distractor"] = (world.rng.uniform(x0, x1), world.rng.uniform(y0, y1), 0.0)
        world.appearance["distractor_rgb"] = tuple(world.rng.uniform((0.10, 0.35, 0.10), (0.35, 0.55, 0.45)))


class CameraShift(_Timed):
    """The scene camera's mount gives a little."""

    name, benign = "camera_shift", True

    def strike(self, world: World) -> None:
        world.appearance["camera_scene"] = (
            *world.rng.uniform(-0.008, 0.008, 3),
            *world.rng.uniform(-0.010, 0.010, 3),
        )


class _AtApproach(Perturbation):
    """Begins when the gripper comes near the object for the first time."""

    nearness: ClassVar[tuple[float, float]] = (0.13, 0.20)  # [m], drawn

    def begin(self, world: World) -> None:
        self._distance = world.rng.uniform(*self.nearness)

    def due(self, world: World, status: TaskStatus) -> bool:
        return not status.grasped and np.linalg.norm(world.pinch - world.cube_position) < self._distance


class ObjectMoved(_AtApproach):
    """The object is pulled away to another place on the table, within reach, where no demonstration began."""

    name, benign = "object_moved", False
    duration = 0.35  # [s]
    places: ClassVar = (((0.38, 0.58), (0.33, 0.42)), ((0.30, 0.35), (0.12, 0.32)))

    def strike(self, world: World) -> None:
        (x0, x1), (y0, y1) = self.places[world.rng.integers(len(self.places))]
        self._from = (*world.cube_position[:2], world.cube_yaw)
        self._to = (world.rng.uniform(x0, x1), world.rng.uniform(y0, y1), world.rng.uniform(-0.6, 0.6))
        self._begun = world.time
        self._done = False

    def follow(self, world: World) -> None:
        if self._done:
            return
        u = min((world.time - self._begun) / self.duration, 1.0)
        smooth = u * u * (3 - 2 * u)
        x, y, yaw = (a + smooth * (b - a) for a, b in zip(self._from, self._to, strict=True))
        world.place_cube(x, y, yaw)
        self._done = u >= 1.0


class ObjectSwapped(_AtApproach):
    """Another thing stands where the cube was: a slab too wide for the gripper, of another colour."""

    name, benign = "object_swapped", False

    def strike(self, world: World) -> None:
        x, y, _ = world.cube_position
        half = (
            world.rng.uniform(0.048, 0.060),
            world.rng.uniform(0.048, 0.060),
            world.rng.uniform(0.014, 0.020),
        )
        world.appearance["object_half"] = half
        colours = ((0.16, 0.42, 0.75), (0.85, 0.72, 0.15), (0.20, 0.55, 0.28))
        world.appearance["object_rgb"] = colours[world.rng.integers(len(colours))]
        world.place_cube(x, y, world.cube_yaw, z=half[2])


class Slippery(Perturbation):
    """The object has been oiled: it slips out of the fingers."""

    name, benign = "slippery", False

    def begin(self, world: World) -> None:
        self._friction = world.rng.uniform(0.002, 0.007)

    def due(self, world: World, status: TaskStatus) -> bool:
        return status.contact or status.grasped

    def strike(self, world: World) -> None:
        world.faults.friction = self._friction


class CameraKnocked(_Timed):
    """Somebody knocks the scene camera's stand and the wrist camera's mount."""

    name, benign = "camera_knocked", False

    def strike(self, world: World) -> None:
        rng = world.rng
        sign = rng.choice([-1.0, 1.0], 6)
        shift = sign * rng.uniform((0.06, 0.04, 0.03, 0.10, 0.12, 0.10), (0.12, 0.08, 0.08, 0.18, 0.22, 0.25))
        world.appearance["camera_scene"] = tuple(shift)
        sign = rng.choice([-1.0, 1.0], 6)
        shift = sign * rng.uniform((0.0, 0.0, 0.0, 0.16, 0.16, 0.20), (0.01, 0.01, 0.005, 0.26, 0.26, 0.40))
        world.appearance["camera_wrist"] = tuple(shift)


class GripperWeak(_Timed):
    """The gripper loses its force: what it lifts falls."""

    name, benign = "gripper_weak", False

    def strike(self, world: World) -> None:
        world.faults.gripper_scale = world.rng.uniform(0.0, 0.006)


class ActuatorLag(_Timed):
    """The drives execute commands late."""

    name, benign = "actuator_lag", False

    def strike(self, world: World) -> None:
        world.faults.delay = world.rng.uniform(0.7, 1.0)


class Unreachable(Perturbation):
    """The object stands out of the arm's reach."""

    name, benign = "unreachable", False

    def begin(self, world: World) -> None:
        world.place_cube(
            world.rng.uniform(0.86, 0.92), world.rng.uniform(-0.10, 0.20), world.rng.uniform(-0.6, 0.6)
        )
        self.active = True


REGISTRY: dict[str, type[Perturbation]] = {
    kind.name: kind
    for kind in (
        Unperturbed, Lighting, TableColor, Distractor, CameraShift, ObjectMoved, ObjectSwapped, Slippery, CameraKnocked,
        GripperWeak, ActuatorLag, Unreachable,
    )
}  # fmt: skip
BENIGN = tuple(name for name, kind in REGISTRY.items() if kind.benign and name != "none")
FAILING = tuple(name for name, kind in REGISTRY.items() if not kind.benign)


def make_perturbation(name: str) -> Perturbation:
    """A fresh perturbation; VigilError if there is none of this name."""
    if name not in REGISTRY:
        raise VigilError(f"unknown perturbation {name!r}: choose one of {', '.join(REGISTRY)}")
    return REGISTRY[name]()
