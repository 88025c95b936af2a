"""Train the policy: diffusion loss on chunks, jointly with a head that reads simulator labels from the embedding.

Resumable (a checkpoint every ``checkpoint_every`` steps), reproducible by seed, logged to CSV with a picture of the curves.
"""

from __future__ import annotations

import csv
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from vigil.errors import VigilError
from vigil.train.config import TrainConfig
from vigil.train.demonstrations import DemonstrationSet
from vigil.train.model import DdimSampler, PolicyNet

LOG_FIELDS = ("step", "seconds", "loss", "noise_loss", "auxiliary_loss", "validation_loss", "action_error")


class Trainer:
    """One run in ``folder``: config.yaml, log.csv, curves.png, checkpoint.pt."""

    def __init__(self, config: TrainConfig, data: DemonstrationSet, folder: Path) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.data, self.folder = config, data, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rng = np.random.default_rng(config.seed)
        self.train_rows, self.validation_rows = data.split(config.validation_episodes, config.seed)
        statistics = {
            name: torch.from_numpy(value) for name, value in data.statistics(self.train_rows).items()
        }
        weights = None if data.weights is None else data.weights[self.train_rows]
        if weights is not None and not weights.any():
            raise VigilError("every training row has the weight 0: raise intervention_weight, or record more")
        self.shares = None if weights is None else weights / weights.sum()
        labels = data.labels[self.train_rows]
        self.label_mean = torch.from_numpy(labels.mean(0)).to(self.device)
        self.label_std = torch.from_numpy(labels.std(0) + 1e-6).to(self.device)
        self.net = PolicyNet(config, data.cameras, statistics, labels.shape[1]).to(self.device)
        self.average = PolicyNet(config, data.cameras, statistics, labels.shape[1]).to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        for net in (self.net, self.average):
            net.encoder.nets.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._learning_rate)
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self) -> None:
        """Train to the end; Ctrl-C saves a checkpoint and returns, and a later run goes on from it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint_path.exists():
            self.load()
        stop: list[int] = []
        previous = signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns += (TextColumn("{task.fields[loss]}"),)
        try:
            with Progress(*columns) as progress:
                task = progress.add_task("", total=self.config.steps, completed=self.step, loss="")
                running: list[tuple[float, float]] = []
                started = time.perf_counter() - self.seconds
                while self.step < self.config.steps and not stop:
                    running.append(self._update())
                    self.step += 1
                    if self.step % 100 == 0 or self.step == self.config.steps:
                        self.seconds = time.perf_counter() - started
                        self._record(np.mean(running, 0))
                        progress.update(task, completed=self.step, loss=f"loss {self.log[-1]['loss']:.4f}")
                        running.clear()
                    if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                        self.save()
        finally:
            signal.signal(signal.SIGINT, previous)
        self.save()

    def _learning_rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.config.warmup)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.config.steps))))

    def _update(self) -> tuple[float, float]:
        config, net = self.config, self.net
        rows = self.rng.choice(self.train_rows, config.batch, p=self.shares)
        pictures = [self._augment(self.data.images[name][rows]) for name in self.data.cameras]
        state, chunk, label = self._tensors(rows)
        state = state + config.state_noise * torch.randn_like(state)
        with torch.autocast(self.device.type, torch.bfloat16):
            embedding = net.encoder.embed(pictures, state)
            noise_loss = self._noise_loss(net, embedding, chunk, config.noise_samples)
            # Recordings of a real robot have no labels, and the mean over nothing is no number.
            known = label.shape[1] > 0
            auxiliary_loss = F.mse_loss(net.auxiliary(embedding).float(), label) if known else torch.zeros(())
        loss = noise_loss + config.auxiliary_weight * auxiliary_loss
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(net.parameters()), 1 - decay)
        return noise_loss.item(), auxiliary_loss.item()

    def _tensors(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.from_numpy(self.data.states[rows]).to(self.device)
        chunk = torch.from_numpy(self.data.chunks[rows]).to(self.device)
        label = torch.from_numpy(self.data.labels[rows]).to(self.device)
        return (
            self.net.encoder.normalise_state(state),
            self.net.normalise_actions(chunk).flatten(1),
            (label - self.label_mean) / self.label_std,
        )

    def _noise_loss(self, net: PolicyNet, embedding: Tensor, chunk: Tensor, copies: int) -> Tensor:
        chunk, embedding = chunk.repeat_interleave(copies, 0), embedding.repeat_interleave(copies, 0)
        step = torch.randint(0, self.config.diffusion_steps, (len(chunk),), device=self.device)
        noise = torch.randn_like(chunk)
        predicted = net.denoiser(net.noise(chunk, noise, step), embedding, step)
        return F.mse_loss(predicted.float(), net.velocity(chunk, noise, step))

    def _augment(self, images: np.ndarray) -> Tensor:
        """uint8 [B, s, s, 3] -> float [B, 3, crop, crop]: a random crop, brightness, contrast and tint each."""
        crop, size = self.config.crop, images.shape[1]
        corner = self.rng.integers(0, size - crop + 1, (len(images), 2))
        cropped = np.stack(
            [image[y : y + crop, x : x + crop] for image, (y, x) in zip(images, corner, strict=True)]
        )
        pictures = torch.from_numpy(cropped).to(self.device).permute(0, 3, 1, 2).float() / 255
        gain = 1 + 0.15 * torch.randn(len(images), 1, 1, 1, device=self.device)
        tint = 1 + 0.04 * torch.randn(len(images), 3, 1, 1, device=self.device)
        offset = 0.04 * torch.randn(len(images), 1, 1, 1, device=self.device)
        return (pictures * gain * tint + offset).clamp(0, 1)

    @torch.no_grad()
    def _record(self, losses: np.ndarray) -> None:
        row = dict.fromkeys(LOG_FIELDS, float("nan"))
        noise_loss, auxiliary_loss = losses
        row |= {"step": self.step, "seconds": round(self.seconds, 1), "noise_loss": noise_loss}
        row |= {
            "auxiliary_loss": auxiliary_loss,
            "loss": noise_loss + self.config.auxiliary_weight * auxiliary_loss,
        }
        if self.step % 500 == 0 or self.step == self.config.steps:
            row |= self.validate()
        self.log.append(row)

    @torch.no_grad()
    def validate(self, count: int = 256) -> dict[str, float]:
        """Loss and error of the sampled chunk's first half on held-out episodes (rad and m, averaged) of the EMA net."""
        net = self.average.eval()
        rows = np.random.default_rng(0).choice(
            self.validation_rows, min(count, len(self.validation_rows)), False
        )
        images = [
            torch.from_numpy(self.data.images[name][rows]).to(self.device) for name in self.data.cameras
        ]
        state, chunk, _ = self._tensors(rows)
        # The same noise at every validation, and none taken from the training's stream: runs resume exactly.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            embedding = net.encoder.embed([net.encoder.pictures(image) for image in images], state)
            loss = self._noise_loss(net, embedding, chunk, 1).item()
            sampler = DdimSampler(net, self.config.sampler_steps)
            noise = torch.randn(len(rows), self.config.horizon, net.action_dim, device=self.device)
            half = self.config.horizon // 2
            error = (sampler(noise, embedding).cpu().numpy() - self.data.chunks[rows])[:, :half]
            return {"validation_loss": loss, "action_error": float(np.abs(error).mean())}

    def save(self) -> None:
        """Write the checkpoint (atomically), the log and the picture of the curves."""
        state = {
            "config": self.config.model_dump(),
            "data": self.data.facts(),
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
        }
        temporary = self.checkpoint_path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint_path)
        with open(self.folder / "log.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, LOG_FIELDS)
            writer.writeheader()
            writer.writerows(self.log)
        plot_curves(self.log, self.folder / "curves.png")

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        state = torch.load(self.checkpoint_path, weights_only=False, map_location=self.device)
        if state["config"] != self.config.model_dump() or state["data"] != self.data.facts():
            raise VigilError(
                f"{self.checkpoint_path} was made with another configuration or other data: "
                "give the same ones to resume, or another --out folder to start anew"
            )
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])


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
