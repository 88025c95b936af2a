"""Tests here publish and read raw images themselves."""

from __future__ import annotations

import os

import pytest
import rclpy
from rclpy.context import Context

from vigil.bringup import dds_environment


@pytest.fixture(scope="session", autouse=True)
def dds_of_a_process_with_images() -> None:
    """This process shares memory with cameras and policy; DDS reads its profile once, with the first participant.

    The processes that tests start inherit the profile without shared memory: some of them are killed.
    """
    others = dict(os.environ)
    os.environ.update(dds_environment({}, local=True, room="camera"))
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("reads_the_profile", context=context)
    node.destroy_node()
    context.shutdown()
    os.environ.update(others)
