"""Latency of 640x480 rgb8 images between two processes, with defaults and with the environment that
bringup.py gives every process (DDS profile, memory settings).

    .venv/bin/python tests/bench/bench_images.py [--images 300] [--rate 30]

Stamp taken before the message is built -> subscriber's callback has read the pixels as an array.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from array import array

import numpy as np

from vigil.bringup import dds_environment, environment
from vigil.rig import load_rig
from vigil.run.domains import reserve_domain

HEIGHT, WIDTH = 480, 640


def publish(images: int, rate: float) -> None:
    """Publish stamped images once somebody listens."""
    import rclpy
    from sensor_msgs.msg import Image

    from vigil.node import SENSOR

    rclpy.init()
    node = rclpy.create_node("bench_camera")
    publisher = node.create_publisher(Image, "bench/image_raw", SENSOR)
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    time.sleep(0.5)
    frames = np.random.default_rng(0).integers(0, 255, (8, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(images):
        due = time.monotonic() + 1.0 / rate
        message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
        stamp = time.monotonic_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        message.data = array("B")
        message.data.frombytes(
            memoryview(frames[index % 8]).cast("B")
        )  # one copy; array(..., tobytes()) makes two
        publisher.publish(message)
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(0.5)


def subscribe(images: int, rate: float) -> None:
    """Print the latencies of the images that arrive [ms]."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Image

    from vigil.node import NEWEST

    rclpy.init()
    node = rclpy.create_node("bench_policy")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    latencies: list[float] = []

    def receive(message: Image) -> None:
        np.frombuffer(message.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        latencies.append((time.monotonic_ns() - stamp) / 1e6)

    node.create_subscription(Image, "bench/image_raw", receive, NEWEST)
    quiet_since = time.monotonic() + 20.0
    while len(latencies) < images and time.monotonic() < quiet_since:
        before = len(latencies)
        executor.spin_once(timeout_sec=0.1)
        if len(latencies) > before:
            quiet_since = time.monotonic() + 2.0
    print(" ".join(f"{value:.3f}" for value in latencies))


def measure(images: int, rate: float, tuned: bool) -> np.ndarray:
    """Latencies [ms] of one publisher and one subscriber process."""
    domain = reserve_domain()
    shipped = {**environment(load_rig("franka_sim"), {}), **dds_environment({}, local=True, room="camera")}
    env = {**os.environ, **(shipped if tuned else {}), "ROS_DOMAIN_ID": str(domain.number)}
    command = [sys.executable, __file__, "--images", str(images), "--rate", str(rate), "--role"]
    publisher = subprocess.Popen([*command, "publish"], env=env)
    try:
        output = subprocess.run(
            [*command, "subscribe"], env=env, capture_output=True, text=True, check=True
        ).stdout
    finally:
        publisher.terminate()
        publisher.wait()
        domain.release()
    return np.array([float(value) for value in output.split()])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rate", type=float, default=30.0, help="images per second")
    parser.add_argument("--role", choices=("publish", "subscribe"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        {"publish": publish, "subscribe": subscribe}[args.role](args.images, args.rate)
        return
    print("640x480 rgb8, stamp -> array in the callback, two processes [ms]")
    for label, tuned in (("defaults", False), ("Vigil's environment", True)):
        values = measure(args.images, args.rate, tuned)
        median, high = np.percentile(values, (50, 99)) if len(values) else (np.nan, np.nan)
        print(f"  {label:20s} median {median:6.2f}  p99 {high:6.2f}  arrived {len(values)} of {args.images}")


if __name__ == "__main__":
    main()
