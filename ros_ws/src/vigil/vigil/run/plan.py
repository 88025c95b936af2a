"""Which episodes an evaluation consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vigil.errors import VigilError

GROUPS = ("none", "all", "benign", "failing")


@dataclass(frozen=True)
class Planned:
    """One episode to come."""

    index: int
    seed: int
    perturbation: str


def plan(episodes: int, seed: int, perturb: str, kinds: Mapping[str, str]) -> list[Planned]:
    """``episodes`` episodes with seeds that count up from ``seed``; groups of perturbations take turns.

    Args:
        perturb: a perturbation's name, or ``none``, ``benign``, ``failing``, ``all`` (all of them, and none).
        kinds: every perturbation's kind, ``benign`` or ``failing``, by name.

    Raises:
        VigilError: the perturbation is unknown, or the number of episodes is not positive.
    """
    if episodes < 1:
        raise VigilError(f"--episodes is {episodes}: give a number from 1 up")
    members = {name: [n for n, kind in kinds.items() if kind == name] for name in ("benign", "failing")}
    turns = {
        "none": ["none"],
        "all": ["none", *members["benign"], *members["failing"]],
        **members,
        **{name: [name] for name in kinds},
    }
    if perturb not in turns:
        raise VigilError(
            f"unknown perturbation {perturb!r}: choose a group ({', '.join(GROUPS)}) or one of {', '.join(kinds)}"
        )
    names = turns[perturb]
    return [Planned(i, seed + i, names[i % len(names)]) for i in range(episodes)]
