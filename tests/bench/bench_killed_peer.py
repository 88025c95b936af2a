"""What kill -9 of one process does to others: publishers that stay, while peers come and are killed.

    .venv/bin/python tests/bench/bench_killed_peer.py [--seconds 60]

Prints for both DDS profiles (with shared memory, without) how many peers were killed, and how often and how long one of
two processes that had nothing to do with it stood still in `publish` for more than 0.3 s.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time

from vigil.bringup import dds_environment
from vigil.run.domains import reserve_domain

PERIOD = 0.004  # [s]
STALL = 0.3  # [s] the time after which an arm has to hold


def peer() -> None:
    """Publish and read four topics; print each stall, however long it lasts, as it is noticed and as it ends."""
    import rclpy
    from std_msgs.msg import Float64MultiArray

    from vigil.node import SENSOR

    rclpy.init()
    node = rclpy.create_node("peer")
    publishers = [node.create_publisher(Float64MultiArray, f"peer_{i}", SENSOR) for i in range(4)]
    for i in range(4):
        node.create_subscription(Float64MultiArray, f"peer_{i}", lambda message: None, SENSOR)
    threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
    message = Float64MultiArray(data=[0.0] * 20)
    last = time.monotonic()
    threading.Thread(target=lambda: _watch(lambda: time.monotonic() - last), daemon=True).start()
    while True:
        for publisher in publishers:
            publisher.publish(message)
        last = time.monotonic()
        time.sleep(PERIOD)


def _watch(silent_for) -> None:
    longest = 0.0
    while True:
        time.sleep(0.02)
        silence = silent_for()
        if silence > STALL:
            longest = max(longest, silence)
        elif longest:
            print(f"{longest:.2f}", flush=True)
            longest = 0.0
        if longest > 10.0:
            print("inf", flush=True)  # for good
            return


def measure(seconds: float, shared_memory: bool) -> tuple[int, list[float]]:
    """Peers killed, and the stalls [s] of two processes that were not."""
    domain = reserve_domain()
    env = {**os.environ, **dds_environment({}, local=True, room="camera" if shared_memory else "arm")}
    env["ROS_DOMAIN_ID"] = str(domain.number)
    command = [sys.executable, __file__, "--role", "peer"]
    moment = random.Random(0)
    staying = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed = 0
    try:
        time.sleep(2.0)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            passing = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
            time.sleep(1.2 + moment.random())
            for process in passing:
                process.kill()
                process.wait()
                killed += 1
            time.sleep(0.5)
        time.sleep(1.0)
    finally:
        for process in staying:
            process.kill()
        said = [process.communicate()[0] for process in staying]
        domain.release()
    return killed, [float(line) for text in said for line in text.split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="per profile")
    parser.add_argument("--role", choices=("peer",), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        peer()
        return
    for label, shared in (("shared memory", True), ("UDP only", False)):
        killed, stalls = measure(args.seconds, shared)
        longest = f", longest {max(stalls):.2f} s" if stalls else ""
        print(f"  {label:14s} {killed} peers killed: {len(stalls)} stalls over {STALL:g} s{longest}")


if __name__ == "__main__":
    main()
