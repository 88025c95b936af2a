"""From a camera's entry in the rig file to its driver. Each driver's library is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from vigil.camera.driver import CameraDriver
from vigil.rig import CameraConfig, resolve


def make_driver(camera: CameraConfig, rate: float, *, depth: bool, now: Callable[[], int]) -> CameraDriver:
    """The driver of one camera, not yet open.

    Args:
        rate: frames per second; simulated cameras in lock step run at the policy's rate, not the rig's.
        depth: also deliver depth aligned to the colour image (simulated and RealSense cameras).
        now: the node's clock [ns].

    Raises:
        VigilError: the driver's library is missing; names the packages.
    """
    size = {"width": camera.width, "height": camera.height}
    if camera.driver == "sim":
        from vigil.camera.sim_driver import SimulatedDriver
        from vigil.camera.simulated import SimulatedCamera

        return SimulatedDriver(lambda: SimulatedCamera(camera.name, **size), rate, depth)
    from vigil.camera.realsense import RECORDINGS, RealSenseDriver

    if camera.driver == "realsense":
        return RealSenseDriver(serial=camera.serial, rate=rate, depth=depth, now=now, **size)
    path = resolve(camera.replay_path)
    if path.suffix in RECORDINGS:
        return RealSenseDriver(recording=path, rate=rate, depth=depth, now=now, **size)
    from vigil.camera.replay import ReplayDriver

    return ReplayDriver(path, camera.name, now=now, **size)
