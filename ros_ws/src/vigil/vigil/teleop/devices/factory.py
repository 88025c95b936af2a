"""The device that a rig file names."""

from __future__ import annotations

from importlib import import_module

from vigil.rig import RigConfig
from vigil.teleop.device import Device, DeviceOptions

CLASSES = {
    "scripted": "ScriptedDevice",
    "keyboard": "KeyboardDevice",
    "leader": "LeaderDevice",
    "spacemouse": "SpaceMouseDevice",
    "gamepad": "GamepadDevice",
    "web": "WebDevice",
    "body": "BodyDevice",
}


def make_device(rig: RigConfig, options: DeviceOptions) -> Device:
    """The rig's device, not yet opened.

    Raises:
        VigilError: it cannot drive this rig.
    """
    kind = rig.teleop.device
    # Imported when chosen: a device on a real rig must not need the simulator, nor another device's packages.
    return getattr(import_module(f"vigil.teleop.devices.{kind}"), CLASSES[kind])(rig, options)
