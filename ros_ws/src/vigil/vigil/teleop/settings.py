"""The teleop section of a rig file: which device, and the options that this device has.

``device`` names the device; what else may be given depends on it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, SecretStr, field_serializer, model_validator

from vigil.fields import Finite, Positive, Strict

if TYPE_CHECKING:
    from vigil.rig import ArmConfig, RigConfig

Role = Literal["deadman", "hand_back", "estop", "start", "success", "failure", "discard", "mark"]
"""What a button is for: ``start`` begins a recorded episode, the three after it end it with their outcome."""
EPISODE_ROLES: tuple[Role, ...] = ("start", "success", "failure", "discard", "mark")
REQUEST_ROLES: tuple[Role, ...] = ("estop", *EPISODE_ROLES)
"""What is asked of other nodes when the button is pressed."""
Action = Literal[
    "deadman",
    "hand_back",
    "estop",
    "start",
    "success",
    "failure",
    "discard",
    "mark",
    "open",
    "close",
    "switch",
]
"""What a button of a Cartesian device may do: also open or close the gripper, or switch to the rig's next arm."""
Topic = Annotated[str, Field(pattern=r"^/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*$")]
Quaternion = tuple[Finite, Finite, Finite, Finite]


class ButtonConfig(Strict):
    """A button beside the device, such as a foot pedal: a topic that says all the time whether it is pressed, or a key of an
    input device of this machine.
    """

    topic: Topic | None = Field(None, description="of std_msgs/Bool")
    input: str = Field("", description="file under /dev/input, best a name in /dev/input/by-id")
    code: Annotated[int, Field(ge=1, le=767)] | None = Field(
        None, description="of the key; `evtest` shows it"
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ButtonConfig:
        if (self.topic is None) == (not self.input) or bool(self.input) != (self.code is not None):
            raise ValueError(
                "a button is either a `topic` (std_msgs/Bool), or an `input` (/dev/input/...) with the `code` of a key"
            )
        return self


class TeleopBase(Strict):
    """What all devices have."""

    rate: Annotated[float, Field(ge=5, le=500)] = 20.0
    takeover: Literal["full", "blended"] = Field(
        "full",
        description="the deadman takes the arm from the policy, or adds the operator's motion to the policy's",
    )
    gain: Annotated[float, Field(gt=0, le=2)] = Field(1.0, description="of the operator's motion, if blended")
    buttons: dict[Role, ButtonConfig] = Field(
        {}, description="beside the device's own; a deadman replaces the device's"
    )

    def check(self, rig: RigConfig) -> None:
        """ValueError if the device does not fit the rig."""


class _OwnDeadman(TeleopBase):
    @model_validator(mode="after")
    def _deadman_is_its_own(self) -> _OwnDeadman:
        if "deadman" in self.buttons:
            raise ValueError(f"device {self.device} has a deadman of its own: remove buttons.deadman")
        return self


class ScriptedSettings(_OwnDeadman):
    """The simulated task's own operator."""

    device: Literal["scripted"]


class KeyboardSettings(_OwnDeadman):
    """A keyboard in a terminal."""

    device: Literal["keyboard"]


class LeaderJoint(Strict):
    """Which joint of a leader moves a joint of the arm: position = sign * scale * leader's position + offset."""

    name: str = Field("", description="in the leader's joint states; the arm's own name unless given")
    sign: Literal[-1, 1] = 1
    scale: Positive = 1.0
    offset: Finite = 0.0


class LeaderGripper(Strict):
    """The leader's handle or trigger: its joint, and what this says closed and open."""

    name: str = Field(min_length=1)
    closed: Finite
    open: Finite

    @model_validator(mode="after")
    def _differ(self) -> LeaderGripper:
        if self.closed == self.open:
            raise ValueError(f"closed and open are both {self.open}: give what the joint says at either end")
        return self


class LeaderArm(Strict):
    """One leader and the arm that follows it."""

    arm: str = Field("", description="name of the arm; may be left out where there is one")
    topic: Topic = Field(description="of its joint states")
    joints: dict[str, LeaderJoint] = Field(
        {}, description="by joint of the arm, all of them; none: all have the same names, signs and zeros"
    )
    gripper: LeaderGripper


class LeaderSettings(TeleopBase):
    """Leader arms (GELLO, ALOHA) by their joint states, one for each arm."""

    device: Literal["leader"]
    leaders: tuple[LeaderArm, ...] = Field(min_length=1)
    squeeze: Annotated[float, Field(gt=0, lt=0.9)] | None = Field(
        None,
        description="share of its way that the trigger is squeezed to hold the deadman; the rest of the way closes the gripper",
    )
    timeout: Positive = Field(0.1, description="[s] silence of a leader that lets go")

    @model_validator(mode="after")
    def _has_one_deadman(self) -> LeaderSettings:
        if (self.squeeze is None) == ("deadman" not in self.buttons):
            raise ValueError("a leader needs one deadman: either `squeeze`, or a button in buttons.deadman")
        return self

    def check(self, rig: RigConfig) -> None:
        arms = rig.arms
        by_name = {arm.name: arm for arm in arms}
        named = [self.arm_name(leader, arms) for leader in self.leaders]
        if sorted(named) != sorted(by_name):
            raise ValueError(
                f"teleop.leaders name arms {named}, the rig has {list(by_name)}: give each arm one leader"
            )
        for leader, name in zip(self.leaders, named, strict=True):
            joints = list(by_name[name].joints)
            if leader.joints and sorted(leader.joints) != sorted(joints):
                missing = [joint for joint in joints if joint not in leader.joints]
                unknown = [joint for joint in leader.joints if joint not in joints]
                raise ValueError(
                    f"joints of the leader {leader.topic}: {missing} are missing, {unknown} are no joints of arm {name}: "
                    f"name each of {joints} once"
                )

    @staticmethod
    def arm_name(leader: LeaderArm, arms: Sequence[ArmConfig]) -> str:
        """The arm that follows ``leader``."""
        return leader.arm or (arms[0].name if len(arms) == 1 else "")


class CartesianSettings(TeleopBase):
    """What devices that move the tool have."""

    speed: Positive = Field(0.15, description="[m/s] at full deflection")
    turn: Positive = Field(0.6, description="[rad/s] at full deflection")
    deadzone: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.08, description="share of the deflection that counts as none"
    )
    heading: Finite = Field(
        0.0, description="[rad] in which the operator looks, about the base's z; 0: along x"
    )


class SpaceMouseSettings(CartesianSettings):
    """A 6-DoF SpaceMouse. Without a button for it the deadman is held by moving the cap or pressing any bound button."""

    device: Literal["spacemouse"]
    model: str = Field("", description="as pyspacemouse calls it; the first that is plugged in unless given")
    bindings: dict[Annotated[int, Field(ge=0, le=47)], Action] = Field(
        {0: "close", 1: "open"}, description="by number of the button"
    )


PadButton = Literal[
    "a", "b", "x", "y", "back", "guide", "start", "leftstick", "rightstick", "leftshoulder", "rightshoulder",
    "dpup", "dpdown", "dpleft", "dpright", "misc1", "paddle1", "paddle2", "paddle3", "paddle4", "touchpad",
]  # fmt: skip


class GamepadSettings(CartesianSettings):
    """A gamepad, with SDL's names of its buttons."""

    device: Literal["gamepad"]
    bindings: dict[PadButton, Action] = Field(
        {
            "rightshoulder": "deadman",
            "a": "close",
            "b": "open",
            "x": "switch",
            "y": "hand_back",
            "start": "start",
            "dpup": "success",
            "dpdown": "failure",
            "back": "discard",
        }
    )

    @model_validator(mode="after")
    def _has_a_deadman(self) -> GamepadSettings:
        if "deadman" not in (*self.bindings.values(), *self.buttons):
            raise ValueError("no button is the deadman: bind one to `deadman`, or give buttons.deadman")
        return self


class WebSettings(CartesianSettings):
    """A page in the browser of a phone, a tablet or a computer."""

    device: Literal["web"]
    host: str = Field(
        "127.0.0.1", min_length=1, description="address it listens at; 0.0.0.0: all addresses of this machine"
    )
    port: Annotated[int, Field(ge=1, le=65535)] = 8420
    token: Annotated[SecretStr, Field(min_length=8)] | None = Field(
        None, description="whoever knows it may drive; needed where others can reach the page"
    )
    origins: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+$")], ...] = Field(
        (),
        description="under which the page is reached beside this machine's own, as https://rig.example.org",
    )
    timeout: Positive = Field(
        0.2, description="[s] age of what the hand does, by the way there and back, that lets go"
    )

    @field_serializer("token", when_used="json-unless-none")
    def _written(self, token: SecretStr) -> str:
        return token.get_secret_value()  # a rig file that is made of this one has the same token

    @model_validator(mode="after")
    def _is_no_open_door(self) -> WebSettings:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached by others: give a `token` (`openssl rand -hex 8` makes one), "
                "or keep to 127.0.0.1"
            )
        return self

    def check(self, rig: RigConfig) -> None:
        slowest = self.timeout + 1.0 / self.rate
        if slowest > rig.watchdogs.operator + 1e-9:
            raise ValueError(
                f"a browser that is lost lets go after timeout ({self.timeout:g} s) and one command (1 / rate: "
                f"{1.0 / self.rate:g} s), later than watchdogs.operator ({rig.watchdogs.operator:g} s) allows: "
                "lower teleop.timeout or raise teleop.rate"
            )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Pinch(Strict):
    """Distance of thumb tip and finger tip [m] that closes and opens the gripper."""

    closed: Finite = 0.02
    open: Finite = 0.10

    @model_validator(mode="after")
    def _ordered(self) -> Pinch:
        if not 0 <= self.closed < self.open:
            raise ValueError(f"closed ({self.closed}) must be at least 0 and less than open ({self.open})")
        return self


class BodySettings(TeleopBase):
    """A body tracker or exoskeleton: poses of shoulder, elbow and wrist, and if ``pinch`` is given thumb and finger tip."""

    device: Literal["body"]
    topic: Topic = Field(description="of geometry_msgs/PoseArray")
    frame: Quaternion = Field(
        (0.0, 0.0, 0.0, 1.0), description="(x, y, z, w) turns what the tracker sees into the arm's base"
    )
    hand: Quaternion = Field(
        (0.0, 0.0, 0.0, 1.0), description="(x, y, z, w) the flange's orientation in the tracked wrist's frame"
    )
    pinch: Pinch | None = None
    timeout: Positive = Field(0.1, description="[s] silence of the tracker that lets go")

    @model_validator(mode="after")
    def _has_a_deadman(self) -> BodySettings:
        if "deadman" not in self.buttons:
            raise ValueError("a body tracker needs a deadman: give buttons.deadman, best a foot pedal")
        for name in ("frame", "hand"):
            length = sum(value**2 for value in getattr(self, name)) ** 0.5
            if abs(length - 1.0) > 0.01:
                raise ValueError(f"{name} has length {length:.3g}: a rotation is a quaternion of length 1")
        return self

    def check(self, rig: RigConfig) -> None:
        kinds = [arm.kinematics for arm in rig.arms]
        if kinds != ["franka"]:
            raise ValueError(
                f"device body drives one franka arm, this rig has {kinds}: choose another teleop device"
            )


TeleopConfig = Annotated[
    ScriptedSettings
    | KeyboardSettings
    | LeaderSettings
    | SpaceMouseSettings
    | GamepadSettings
    | WebSettings
    | BodySettings,
    Field(discriminator="device"),
]
"""The operator's device."""
