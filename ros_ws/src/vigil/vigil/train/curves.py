"""Picture of a training run's log."""

from __future__ import annotations

import math
from pathlib import Path


def plot_curves(log: list[dict[str, float]], path: Path) -> None:
    """Draw losses and the error of sampled actions against steps."""
    if not log:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [row["step"] for row in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for name in ("noise_loss", "auxiliary_loss", "validation_loss"):
        points = [(s, row[name]) for s, row in zip(steps, log, strict=True) if not math.isnan(row[name])]
        left.plot(*zip(*points, strict=True) if points else ([], []), label=name.replace("_", " "))
    left.set(yscale="log", xlabel="step", title="losses")
    left.legend()
    points = [
        (s, row["action_error"])
        for s, row in zip(steps, log, strict=True)
        if row["action_error"] == row["action_error"]
    ]
    if points:
        right.plot(*zip(*points, strict=True))
    right.set(yscale="log", xlabel="step", title="error of sampled actions, held-out episodes [rad, m]")
    figure.savefig(path, dpi=110)
    plt.close(figure)
