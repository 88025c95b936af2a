"""A multilayer perceptron in numpy: forward, backward, AdamW. Enough to train and run score networks without torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

LEAK = 0.01


class Mlp:
    """Affine layers with a leaky ReLU between them; the last ``relu_tail`` hidden layers use a plain ReLU."""

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray], relu_tail: int = 0) -> None:
        self.weights, self.biases = weights, biases  # [in, out] and [out] per layer, float32
        hidden = len(weights) - 1
        self.leaks = [0.0 if layer >= hidden - relu_tail else LEAK for layer in range(hidden)]

    @classmethod
    def orthogonal(cls, sizes: Sequence[int], rng: np.random.Generator, relu_tail: int = 0) -> Mlp:
        """Layers of the given sizes; orthogonal weights with gain sqrt 2 (Saxe et al., 2014), zero biases."""
        weights = []
        for fan_in, fan_out in pairwise(sizes):
            tall = rng.standard_normal((max(fan_in, fan_out), min(fan_in, fan_out)))
            q, r = np.linalg.qr(tall)
            q = q * np.sign(np.diag(r))  # uniform over orthogonal matrices
            # Contiguous, as gradients are: AdamW takes six times as long where the two are laid out differently.
            weights.append(np.ascontiguousarray(np.sqrt(2) * (q if fan_in >= fan_out else q.T), np.float32))
        return cls(weights, [np.zeros(n, np.float32) for n in sizes[1:]], relu_tail)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Outputs [B, out] of inputs [B, in]."""
        for layer, leak in enumerate(self.leaks):
            x = x @ self.weights[layer] + self.biases[layer]
            x = np.maximum(x, leak * x)
        return x @ self.weights[-1] + self.biases[-1]

    def gradients(self, at_output: np.ndarray, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Gradients of the loss by weights and biases (in the order of `parameters`).

        ``inputs`` is what `trace` returned; ``at_output`` [B, out] the gradient by the outputs.
        """
        by_weight: list[np.ndarray] = [np.empty(0)] * len(self.weights)
        by_bias: list[np.ndarray] = [np.empty(0)] * len(self.weights)
        delta = at_output
        for layer in range(len(self.weights) - 1, -1, -1):
            by_weight[layer] = inputs[layer].T @ delta
            by_bias[layer] = delta.sum(axis=0)
            if layer:
                delta = delta @ self.weights[layer].T
                delta = np.where(inputs[layer] > 0, delta, self.leaks[layer - 1] * delta)
        return by_weight + by_bias

    def trace(self, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The input of every layer, and the outputs."""
        inputs = [x]
        for layer, leak in enumerate(self.leaks):
            x = x @ self.weights[layer] + self.biases[layer]
            x = np.maximum(x, leak * x)
            inputs.append(x)
        return inputs, x @ self.weights[-1] + self.biases[-1]

    @property
    def parameters(self) -> list[np.ndarray]:
        return self.weights + self.biases

    def copy(self) -> Mlp:
        twin = Mlp([w.copy() for w in self.weights], [b.copy() for b in self.biases])
        twin.leaks = list(self.leaks)
        return twin

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Weights and biases by name, for storage."""
        named = {f"{prefix}.{i}.weight": w for i, w in enumerate(self.weights)}
        return named | {f"{prefix}.{i}.bias": b for i, b in enumerate(self.biases)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], prefix: str, relu_tail: int = 0) -> Mlp:
        """The network that `arrays` stored under ``prefix``."""
        layers = sum(name.startswith(f"{prefix}.") and name.endswith(".weight") for name in arrays)
        return cls(
            [arrays[f"{prefix}.{i}.weight"] for i in range(layers)],
            [arrays[f"{prefix}.{i}.bias"] for i in range(layers)],
            relu_tail,
        )


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in place."""

    def __init__(self, parameters: list[np.ndarray], decay: float) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.first = [np.zeros_like(p) for p in parameters]
        self.second = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[np.ndarray], rate: float) -> None:
        """One update with the learning rate ``rate``."""
        self.steps += 1
        scale = np.float32(rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps))
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            m += np.float32(0.1) * (g - m)
            v += np.float32(0.001) * (g * g - v)
            p *= np.float32(1 - rate * self.decay)
            p -= scale * m / (np.sqrt(v) + np.float32(1e-8))
