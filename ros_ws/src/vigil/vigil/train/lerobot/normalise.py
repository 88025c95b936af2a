"""LeRobot's normalisation as parts of a graph: the same operations in the same order, so that it agrees to the last bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vigil.errors import VigilError
from vigil.train.lerobot.config import Mode

# What each mode subtracts and divides by, and what maps to -1..1 (as `lerobot`'s normalize_processor).
NEEDED: dict[str, tuple[str, str]] = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


@dataclass(frozen=True)
class Rules:
    """How a checkpoint normalises: mode by kind of feature, statistics by feature and name, and lerobot's epsilon."""

    modes: Mapping[str, Mode]
    statistics: Mapping[str, Mapping[str, Tensor]]
    epsilon: float = 1e-8
    keys: frozenset[str] | None = None  # of observations; None: all

    def of(self, key: str, kind: str) -> Normaliser:
        """The normaliser of one feature.

        Raises:
            VigilError: statistics are missing or not finite.
        """
        mode = self.modes.get(kind, "IDENTITY")
        if kind != "ACTION" and self.keys is not None and key not in self.keys:
            mode = "IDENTITY"
        if mode == "IDENTITY":
            return Normaliser(torch.zeros(1), torch.ones(1), torch.ones(1), False)
        found = self.statistics.get(key, {})
        names = NEEDED[mode]
        if lacking := [name for name in names if name not in found]:
            raise VigilError(
                f"the checkpoint normalises {key} by {mode}, but has no {' and '.join(lacking)} of it; it has "
                f"{sorted(found) or 'no statistics'}. Save it with the statistics of its data set"
            )
        low, high = (found[name].float() for name in names)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise VigilError(
                f"the statistics of {key} ({' and '.join(names)}) are not finite: it was never trained"
            )
        if mode == "MEAN_STD":
            return Normaliser(low, high + self.epsilon, high, False)
        span = high - low
        span = torch.where(span == 0, torch.tensor(self.epsilon), span)
        return Normaliser(low, span, span, True)


class Normaliser(nn.Module):
    """(x - shift) / divisor, mapped from 0..1 to -1..1 where the mode says so; and back."""

    def __init__(self, shift: Tensor, divisor: Tensor, factor: Tensor, ranged: bool) -> None:
        super().__init__()
        self.ranged = ranged
        for name, value in (("shift", shift), ("divisor", divisor), ("factor", factor)):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Physical -> normalised; statistics broadcast over leading dimensions."""
        if self.ranged:
            return 2 * (x - self.shift) / self.divisor - 1
        return (x - self.shift) / self.divisor

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised -> physical."""
        if self.ranged:
            return (x + 1) / 2 * self.factor + self.shift
        return x * self.factor + self.shift

    @property
    def unit(self) -> Tensor:
        """How much of the physical quantity one normalised unit is."""
        return self.factor / 2 if self.ranged else self.factor
