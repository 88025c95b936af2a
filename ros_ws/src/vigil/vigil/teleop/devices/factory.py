"""The device that a rig file names."""

from __future__ import annotations

from vigil.rig import RigConfig
from vigil.teleop.device import Device, DeviceOptions


def make_device(rig: RigConfig, options: DeviceOptions) -> Device:
    """The rig's device, not yet opened.

    Raises:
        VigilError: it cannot drive this rig.
    """
    # Imported when chosen: a device on a real rig must not need the simulator.
    if rig.teleop.device == "keyboard":
        from vigil.teleop.devices.keyboard import KeyboardDevice

        return KeyboardDevice(rig, options)
    from vigil.teleop.devices.scripted import ScriptedDevice

    return ScriptedDevice(rig, options)
