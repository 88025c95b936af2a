#!/usr/bin/env python3
"""Retargeting a person's arm to a Franka in closed form, against damped least squares on the same poses.

    .venv/bin/python tests/bench/bench_retarget.py

Poses are the robot's own, drawn at random within its limits, so that each can be reached. Both solvers start at the home pose
with a single pose per call; damped least squares (`vigil.kinematics.Chain.inverse`) gets the flange's pose, since it knows of
no elbow, and as many iterations as it asks for up to 200. Errors are those of its answers that it calls reached.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from vigil.kinematics import FRANKA
from vigil.rig import load_rig
from vigil.teleop.retarget import FORE_TILT, UPPER_TILT, elbow_angle, keypoints, retarget


def angle_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] degrees between rotations [n, 3, 3]."""
    return np.degrees(2.0 * np.arcsin(np.clip(np.linalg.norm(one - other, axis=(-2, -1)) / np.sqrt(8), 0, 1)))


def report(name: str, seconds: np.ndarray, found: np.ndarray, wanted: np.ndarray, ok: np.ndarray) -> None:
    """One solver's line: ``seconds`` [n] per solve, angles ``found`` and ``wanted`` [n, 7], ``ok`` [n] solved."""
    turned = angle_between(FRANKA.forward(found[ok])[1], FRANKA.forward(wanted[ok])[1])
    theirs, ours = keypoints(wanted[ok]), keypoints(found[ok])
    bend = np.degrees(np.abs(elbow_angle(*ours) - elbow_angle(*theirs)))
    wrist = 1e3 * np.linalg.norm(ours[2] - theirs[2], axis=1)
    print(
        f"{name}: {1 / seconds.mean():,.0f} solves/s (one: median {1e3 * np.median(seconds):.3f} ms, "
        f"99 % {1e3 * np.percentile(seconds, 99):.3f} ms); solved {ok.mean():.1%} of n = {len(ok)}\n"
        f"    hand's orientation: largest error {turned.max():.4f} deg; wrist's position: {wrist.max():.3f} mm; "
        f"elbow's angle: median error {np.median(bend):.2g} deg, largest {bend.max():.2g} deg"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--poses", type=int, default=20_000)
    parser.add_argument(
        "--compared", type=int, default=300, help="of them, how many damped least squares gets"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arm = load_rig("franka").arm
    lower = np.array([joint.lower for joint in arm.joints.values()])
    upper = np.array([joint.upper for joint in arm.joints.values()])
    home = np.array([arm.home[name] for name in arm.joints])
    rng = np.random.default_rng(options.seed)
    wanted = rng.uniform(lower, upper, (options.poses, 7))
    wanted[:, 3] = rng.uniform(
        lower[3], -(UPPER_TILT + FORE_TILT) - 0.1, options.poses
    )  # bent as people bend
    points, (positions, rotations) = keypoints(wanted), FRANKA.forward(wanted)
    print(f"n = {options.poses} poses, seed = {options.seed}, one thread")

    begin = time.perf_counter()
    many = retarget(*points, rotations, np.broadcast_to(home, wanted.shape), lower, upper)
    batch = time.perf_counter() - begin
    report(
        "closed form, all at once",
        np.full(options.poses, batch / options.poses),
        many.q,
        wanted,
        many.clipped == 0,
    )

    found, seconds = np.empty_like(wanted), np.empty(options.poses)
    for i in range(options.poses):
        begin = time.perf_counter()
        found[i] = retarget(*(p[i] for p in points), rotations[i], home, lower, upper).q
        seconds[i] = time.perf_counter() - begin
    report("closed form, one by one", seconds, found, wanted, many.clipped == 0)

    n = min(options.compared, options.poses)
    found, seconds, ok = np.empty((n, 7)), np.empty(n), np.zeros(n, bool)
    for i in range(n):
        begin = time.perf_counter()
        result = FRANKA.inverse(positions[i], rotations[i], home, lower=lower, upper=upper, iterations=200)
        seconds[i] = time.perf_counter() - begin
        found[i], ok[i] = result.q, result.reached()
    report("damped least squares", seconds, found, wanted[:n], ok)


if __name__ == "__main__":
    main()
