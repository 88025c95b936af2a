"""From a rig to the nodes that run it: the one place that knows the wiring.

Read by the local runner (``vigil up``, evaluate, demo, collect) and by ``launch/rig.launch.py``, so that the two fronts
start the same processes with the same parameters in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vigil.errors import VigilError
from vigil.policy.pace import frame_period
from vigil.rig import RigConfig, root

Mode = Literal["full", "collect"]
# Fast DDS 2 (Jazzy) reads the first name and ignores the second, which is that of later releases.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
ROOMS_WITH_IMAGES = frozenset({"camera", "policy"})  # raw ones; the recorder's are compressed
HIGHEST_DOMAIN = 232  # DDS derives UDP ports from the domain; higher ones leave the range of ports


@dataclass(frozen=True)
class Options:
    """How a rig is brought up.

    Attributes:
        mode: ``full``: everything the rig has. ``collect``: demonstrations, thus no cameras, policy or monitor.
        lockstep: simulated time that waits for every participant, faster than real time.
        record: with the recorder.
    """

    mode: Mode = "full"
    lockstep: bool = False
    record: bool = True


@dataclass(frozen=True)
class NodeSpec:
    """One lifecycle node in a process of its own.

    Attributes:
        name: node name in the graph, and name of its log.
        room: the subsystem, whose ``node.py`` it runs.
        namespace: the rig's namespace, absolute.
        parameters: ROS parameters by name.
        after: nodes that have to be active before this one is configured.
        respawn: restarted, with back-off, when it dies.
    """

    name: str
    room: str
    namespace: str
    parameters: Mapping[str, bool | str | float | list[str]]
    after: tuple[str, ...] = ()
    respawn: bool = True
    package: str = field(default="vigil", init=False)

    @property
    def module(self) -> str:
        """Python module to run with ``python -m``."""
        return f"vigil.{self.room}.node"

    @property
    def executable(self) -> str:
        """The same program as ``ros2 run vigil EXECUTABLE``."""
        return f"{self.room}_node"

    @property
    def path(self) -> str:
        """Fully qualified node name."""
        return f"{self.namespace}/{self.name}"

    def ros_arguments(self) -> list[str]:
        """Command line arguments that give a node its name, namespace and parameters."""
        arguments = ["--ros-args", "-r", f"__ns:={self.namespace}", "-r", f"__node:={self.name}"]
        for name, value in self.parameters.items():
            arguments += ["-p", f"{name}:={_yaml(value)}"]
        return arguments


def _yaml(value: bool | str | float | list[str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def node_specs(rig: RigConfig, options: Options = Options()) -> list[NodeSpec]:
    """The nodes of one rig in the order in which they are started; the reverse is the order of tear-down.

    Raises:
        VigilError: the options ask for what the rig does not have.
    """
    if rig.sim is None and (options.lockstep or options.mode == "collect"):
        asked = "lock step" if options.lockstep else "collecting from the scripted expert"
        raise VigilError(
            f"{asked} needs a simulation, and rig {rig.name} has no `sim` section: use a simulated rig"
        )
    full = options.mode == "full"
    specs: list[NodeSpec] = []

    def add(
        name: str, room: str, after: tuple[str, ...], **parameters: bool | str | float | list[str]
    ) -> None:
        present = {spec.name for spec in specs}
        specs.append(
            NodeSpec(
                name=name,
                room=room,
                namespace=f"/{rig.namespace}",
                parameters={"rig": str(rig.path), "use_sim_time": options.lockstep, **parameters},
                after=tuple(other for other in after if other in present),
            )
        )

    cameras = tuple(f"camera_{camera.name}" for camera in rig.cameras)
    if rig.sim is not None:
        participants = ["arm", "policy"] if full else ["arm", "teleop"]
        add("sim", "sim", (), lockstep=options.lockstep, participants=participants)
    if full:
        for name, camera in zip(cameras, rig.cameras, strict=True):
            # In lock step only frames that a policy tick will read are worth rendering.
            rate = 1.0 / frame_period(rig) if options.lockstep else camera.rate
            add(name, "camera", ("sim",), camera=camera.name, rate=float(rate), depth=camera.depth)
    add("arm", "arm", ("sim",))
    if full:
        add("policy", "policy", (*cameras, "arm"))
        if rig.monitor.level != "none":
            add("monitor", "monitor", ("policy",))
    add("teleop", "teleop", ("sim", "arm"))
    if options.record:
        add("record", "record", ("arm", "policy", "monitor", "teleop"))
    return specs


def environment(rig: RigConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that every process of a rig needs, over ``inherited``; what a person set stays.

    The DDS profile among them is that of a process without raw images; `dds_environment` has each node's.

    Raises:
        VigilError: ``ROS_DOMAIN_ID`` is not a domain.
    """
    check_domain(inherited.get("ROS_DOMAIN_ID", ""))
    ours = {
        "MUJOCO_GL": "egl",  # no screen needed
        # The small matrices here gain nothing from threads, and pools of them starve the control loop.
        "OMP_NUM_THREADS": "1",
        "LP_NUM_THREADS": "0",  # software rendering draws in the thread that asks for it
        # Keeps the memory of images in the process: handed back after each one, its pages are faulted in anew for the
        # next, which made reading a 640x480 message cost 0.9 ms instead of 0.2.
        "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "PYTHONUNBUFFERED": "1",
        "ROS_LOG_DIR": str(root() / "out" / "logs" / "ros"),
        "RCUTILS_COLORIZED_OUTPUT": "0",
        "RCUTILS_CONSOLE_OUTPUT_FORMAT": "[{severity}] [{time}] {message}",
        "VIGIL_ROOT": str(root()),
    }
    kept = {name: inherited.get(name, value) for name, value in ours.items()}
    return {**kept, **dds_environment(inherited, local=rig.sim is not None)}


def dds_environment(inherited: Mapping[str, str], *, local: bool, room: str = "") -> dict[str, str]:
    """Variables that choose the DDS profile (launch/dds) of a process of ``room``; a profile that a person set stays.

    Args:
        local: there are no parts on other hosts. The profile then keeps to this one, which ROS would do by its range
            LOCALHOST, but with a shared-memory transport in every process; so that range becomes such a profile too.
    """
    folder = root() / "launch" / "dds"
    given = [inherited[name] for name in PROFILE_VARIABLES if inherited.get(name)]
    theirs = [profile for profile in given if Path(profile).parent != folder]
    if theirs:
        return dict.fromkeys(PROFILE_VARIABLES, theirs[0])
    asked = inherited.get(RANGE, "")
    local = asked == "LOCALHOST" or (local and asked in ("", "SYSTEM_DEFAULT"))
    name = ("local" if local else "network") + ("_images" if room in ROOMS_WITH_IMAGES else "")
    chosen = dict.fromkeys(PROFILE_VARIABLES, str(folder / f"{name}.xml"))
    return {**chosen, RANGE: "SYSTEM_DEFAULT"} if local else chosen


def check_domain(given: str) -> None:
    """VigilError unless ``given`` is empty or a ROS domain."""
    if given and not (given.isdigit() and int(given) <= HIGHEST_DOMAIN):
        raise VigilError(
            f"ROS_DOMAIN_ID is {given!r}: DDS has no free port for it; set a whole number from 0 to {HIGHEST_DOMAIN}, "
            "best below 102, or unset it"
        )
