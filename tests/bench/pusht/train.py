"""Train the diffusion policy on demonstrations and export it: `python train.py --demos demos.npz`.

The policy sees the last two states and draws 16 targets of the agent. An encoder turns the states into an embedding,
which is recorded as it is; a denoiser, conditioned on it, turns noise into targets in a few DDIM steps. Both, loop
included, become one ONNX graph: roll-outs need onnxruntime, and no torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from expert import GOAL_CENTRE
from onnxruntime import InferenceSession
from policy import EMBEDDING_SIZE, FOLDER, GRAPH_FILE, HORIZON, META_FILE, SAMPLER_STEPS
from torch import Tensor, nn
from world import CENTRE, GOAL

from vigil.train.export import strip_origin


def mirrored(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same demonstration reflected at the goal's stem, which maps block and goal onto themselves."""
    axis = np.array([math.cos(GOAL[2]), math.sin(GOAL[2])])
    reflect = np.eye(2) - 2 * np.outer(axis, axis)
    points = [GOAL[:2] + (p - GOAL[:2]) @ reflect for p in (states[:, :2], states[:, 2:4], actions)]
    return np.column_stack([points[0], points[1], 2 * GOAL[2] - states[:, 4]]), points[2]


def windows(states: np.ndarray, actions: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per step of each demonstration the last two states [N, 2, 5] and the next HORIZON targets [N, HORIZON, 2].

    Targets are relative to the agent [px]; before the first and after the last step that step is repeated.
    """
    seen, wanted = [], []
    for i in np.unique(episode):
        one = episode == i
        for s, a in ((states[one], actions[one]), mirrored(states[one], actions[one])):
            n = len(s)
            seen.append(s[np.maximum(np.arange(n)[:, None] + [-1, 0], 0)])
            wanted.append(a[np.minimum(np.arange(n)[:, None] + np.arange(HORIZON), n - 1)] - s[:, None, :2])
    return np.concatenate(seen).astype(np.float32), np.concatenate(wanted).astype(np.float32)


CENTRE_T = torch.tensor(CENTRE, dtype=torch.float32)


class Encoder(nn.Module):
    """States [B, 2, 5] to embeddings [B, E]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(22, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, EMBEDDING_SIZE)
        )
        self.register_buffer("goal", torch.tensor(GOAL_CENTRE[:2], dtype=torch.float32))

    def forward(self, states: Tensor) -> Tensor:
        before, now = states[:, 0], states[:, 1]
        agent, block, angle = now[:, :2], now[:, 2:4], now[:, 4:]
        s, c = torch.sin(angle), torch.cos(angle)
        away = agent - block
        in_block = torch.cat([c * away[:, :1] + s * away[:, 1:], c * away[:, 1:] - s * away[:, :1]], 1)
        centre = block + CENTRE[1] * torch.cat([-s, c], 1)
        error, turned = centre - self.goal, torch.sin(angle - float(GOAL[2]))
        # Offsets come at two scales: the last pixels to the goal and to the contact decide an episode.
        features = [
            agent / 256 - 1,
            block / 256 - 1,
            s,
            c,
            in_block / 80,
            torch.tanh((in_block - CENTRE_T) / 25),
        ]
        features += [error / 60, torch.tanh(error / 8), turned, torch.tanh(8 * turned)]
        features += [torch.cos(angle - float(GOAL[2])), (now - before)[:, :4] / 15, 5 * (now - before)[:, 4:]]
        return self.layers(torch.cat(features, 1))


class Block(nn.Module):
    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter, self.leave = nn.Linear(width + condition, width), nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.leave(nn.functional.silu(self.enter(torch.cat([self.norm(x), condition], 1))))


class Denoiser(nn.Module):
    """Predicts the velocity v = a·noise - s·x of the diffusion from a·x + s·noise [B, HORIZON * 2]."""

    def __init__(self, width: int = 320, blocks: int = 3) -> None:
        super().__init__()
        condition = EMBEDDING_SIZE + 32
        self.enter = nn.Linear(HORIZON * 2 + condition, width)
        self.blocks = nn.ModuleList(Block(width, condition) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HORIZON * 2))
        self.register_buffer("frequencies", math.pi * 1.35 ** torch.arange(16, dtype=torch.float32))

    def forward(self, noisy: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        condition = torch.cat([embedding, torch.sin(phase), torch.cos(phase)], 1)
        x = self.enter(torch.cat([noisy, condition], 1))
        for block in self.blocks:
            x = block(x, condition)
        return self.leave(x)


class Policy(nn.Module):
    """Encoder, denoiser and the sampling loop; the scale of the targets is part of it."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.encoder, self.denoiser = Encoder(), Denoiser()
        self.register_buffer("mean", torch.as_tensor(mean.reshape(-1), dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std.reshape(-1), dtype=torch.float32))

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        x = (targets.flatten(1) - self.mean) / self.std
        t, noise = torch.rand(len(x)), torch.randn_like(x)
        a, s = torch.cos(t * math.pi / 2)[:, None], torch.sin(t * math.pi / 2)[:, None]
        v = self.denoiser(a * x + s * noise, t, self.encoder(states))
        return ((v - (a * noise - s * x)) ** 2).mean()

    def forward(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """States [1, 2, 5] and noise [K, HORIZON, 2] to the embedding [1, E] and targets [K, HORIZON, 2], px."""
        embedding = self.encoder(states)
        x = noise.reshape(-1, HORIZON * 2)
        everywhere = embedding.expand(x.shape[0], -1)
        times = [1 - i / SAMPLER_STEPS for i in range(SAMPLER_STEPS + 1)]
        for t, after in pairwise(times):
            a, s = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
            v = self.denoiser(x, x.new_full((1,), t).expand(x.shape[0]), everywhere)
            clean, dirt = a * x - s * v, s * x + a * v
            x = math.cos(after * math.pi / 2) * clean + math.sin(after * math.pi / 2) * dirt
        targets = (x * self.std + self.mean).reshape(-1, HORIZON, 2) + states[:, 1:, :2]
        return embedding, targets.clamp(0, 512)


def train(demos: Path, steps: int, batch: int, seed: int) -> tuple[Policy, dict]:
    """The averaged network and facts about its training."""
    torch.manual_seed(seed)
    with np.load(demos) as data:
        episode = data["episode"]
        held_out = episode % 20 == 19
        seen, wanted = windows(data["states"][~held_out], data["actions"][~held_out], episode[~held_out])
        seen_out, wanted_out = windows(data["states"][held_out], data["actions"][held_out], episode[held_out])
    policy = Policy(wanted.mean(0), wanted.std(0) + 1e-3)
    average = copy.deepcopy(policy)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=1e-3, betas=(0.9, 0.99))
    states, targets = torch.from_numpy(seen), torch.from_numpy(wanted)
    states_out, targets_out = torch.from_numpy(seen_out), torch.from_numpy(wanted_out)
    began, running = time.monotonic(), 0.0
    print(
        f"{len(seen)} windows of {len(np.unique(episode[~held_out]))} demonstrations and their mirror images"
    )
    for step in range(steps):
        share = step / steps
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 300) * (0.5 + 0.5 * math.cos(math.pi * share))
        chosen = torch.randint(len(states), (batch,))
        loss = policy.loss(states[chosen], targets[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            decay = min(0.9985, (step + 1) / (step + 10))
            for slow, fast in zip(average.parameters(), policy.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        running += (loss.item() - running) * max(0.01, 1 / (step + 1))
        if (step + 1) % 500 == 0:
            with torch.no_grad():
                held = float(average.loss(states_out, targets_out))
            minutes = (time.monotonic() - began) / 60
            left = minutes / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1:6d}  loss {running:.4f}  held out {held:.4f}  "
                f"{minutes:.1f} min, {left:.1f} min left",
                flush=True,
            )
            torch.save(average.state_dict(), demos.with_name("policy.pt"))
    facts = {
        "demonstrations": len(np.unique(episode[~held_out])),
        "windows": len(seen),
        "training_steps": steps,
        "batch": batch,
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "loss": round(running, 4),
        "loss_held_out": round(held, 4),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }
    return average.eval(), facts


def export(policy: Policy, facts: dict, folder: Path) -> None:
    """Write the graph and its facts to ``folder``; raises if the graph differs from torch."""
    folder.mkdir(parents=True, exist_ok=True)
    states = torch.tensor([[[200.0, 300, 230, 250, 1.0], [205, 298, 230, 250, 1.0]]])
    noise = torch.randn(16, HORIZON, 2)
    torch.onnx.export(
        policy,
        (states, noise),
        folder / GRAPH_FILE,
        input_names=["states", "noise"],
        output_names=["embedding", "targets"],
        dynamic_shapes=(None, {0: torch.export.Dim("K", min=1, max=4096)}),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    strip_origin(folder / GRAPH_FILE)
    session = InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
    embedding, targets = session.run(None, {"states": states.numpy(), "noise": noise.numpy()})
    with torch.no_grad():
        wanted_embedding, wanted_targets = policy(states, noise)
    np.testing.assert_allclose(embedding, wanted_embedding, atol=1e-4)
    np.testing.assert_allclose(targets, wanted_targets, atol=0.02)  # px
    (folder / META_FILE).write_text(json.dumps(facts | {"sampler_steps": SAMPLER_STEPS}, indent=2) + "\n")
    print(f"{folder / GRAPH_FILE}: {(folder / GRAPH_FILE).stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demos", type=Path, default=Path("out/pusht/demos.npz"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    policy, facts = train(given.demos, given.steps, given.batch, given.seed)
    export(policy, facts, given.out)


if __name__ == "__main__":
    main()
