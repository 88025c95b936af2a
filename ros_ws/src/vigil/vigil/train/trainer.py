"""Train the policy: the objective's loss on chunks, jointly with a head that reads simulator labels from the embedding.

With a frozen encoder only a denoiser is trained, on embeddings that are computed once (`vigil.train.embeddings`): minutes on one
core, and the result can stand in one bundle beside the other denoisers of that encoder.

Resumable (a checkpoint every ``checkpoint_every`` steps), reproducible by seed, logged to CSV with a picture of the curves.
"""

from __future__ import annotations

import copy
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
from vigil.train.curves import plot_curves
from vigil.train.demonstrations import DemonstrationSet
from vigil.train.embeddings import augment, cached_embeddings
from vigil.train.model import PolicyNet
from vigil.train.objectives import OBJECTIVES
from vigil.train.samplers import StreamingStart, make_sampler
from vigil.train.weights import RANGES, Trained, same_encoder

OF_ENCODER = ("image_size", "crop", "width", "keypoints", "embedding")
OF_CHUNK = ("name", "horizon", "executed_steps", "step_dt")
LOG_FIELDS = ("step", "seconds", "loss", "noise_loss", "auxiliary_loss", "validation_loss", "action_error")


def inherit(config: TrainConfig, source: TrainConfig) -> TrainConfig:
    """``config`` with the encoder's and the chunk's settings of what is gone on from, where it does not set them itself.

    Raises:
        VigilError: it sets the encoder otherwise.
    """
    values, given = source.model_dump(), config.model_fields_set
    if other := [n for n in OF_ENCODER if n in given and getattr(config, n) != values[n]]:
        wanted = ", ".join(f"{n} {getattr(config, n)} (there {values[n]})" for n in other)
        raise VigilError(f"the encoder to go on from was made otherwise: {wanted}; leave these settings out")
    taken = {n: values[n] for n in (*OF_ENCODER, *OF_CHUNK) if n not in given}
    return TrainConfig.model_validate(config.model_dump() | taken)


class Trainer:
    """One run in ``folder``: log.csv, curves.png, checkpoint.pt to go on from, and the last checkpoints in ``kept``.

    Args:
        trained: what to go on from: its encoder, its ranges, and its denoiser, too, if that is of the same kind and not only the
            encoder is wanted (``freeze_encoder``).
    """

    def __init__(
        self, config: TrainConfig, data: DemonstrationSet, folder: Path, trained: Trained | None = None
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config, self.data, self.folder = config, data, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rng = np.random.default_rng(config.seed)
        self.train_rows, self.validation_rows = data.split(config.validation_episodes, config.seed)
        ranges = {name: torch.from_numpy(value) for name, value in data.statistics(self.train_rows).items()}
        if trained is not None:
            _check_source(trained, data)
            ranges = {n: getattr(trained.net.encoder if n in RANGES[:2] else trained.net, n) for n in RANGES}
        weights = None if data.weights is None else data.weights[self.train_rows]
        if weights is not None and not weights.any():
            raise VigilError("every training row has the weight 0: raise intervention_weight, or record more")
        self.shares = None if weights is None else weights / weights.sum()
        labels = data.labels[self.train_rows]
        self.label_mean = torch.from_numpy(labels.mean(0)).to(self.device)
        self.label_std = torch.from_numpy(labels.std(0) + 1e-6).to(self.device)
        self.net = PolicyNet(config, data.cameras, ranges, labels.shape[1])
        self.average = PolicyNet(config, data.cameras, ranges, labels.shape[1]).to(self.device)
        if trained is not None:
            self._go_on_from(trained)
        self.net.to(self.device)
        self.average.load_state_dict(self.net.state_dict())
        for net in (self.net, self.average):
            net.encoder.nets.to(memory_format=torch.channels_last)
        self.frozen = config.freeze_encoder
        if self.frozen:
            self.net.encoder.requires_grad_(False)
            self.embeddings = cached_embeddings(self.average.encoder, data, config, folder / "embeddings.npz")
        self.objective = OBJECTIVES[config.objective]
        self.optimiser = torch.optim.AdamW(
            [p for p in self.net.parameters() if p.requires_grad],
            config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._learning_rate)
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    def _go_on_from(self, trained: Trained) -> None:
        self.net.encoder.load_state_dict(trained.net.encoder.state_dict())
        alike = ("objective", "backbone", "denoiser_width", "denoiser_blocks", "diffusion_steps", "horizon")
        kinds = [[getattr(c, name) for name in alike] for c in (self.config, trained.net.config)]
        if not self.config.freeze_encoder and kinds[0] == kinds[1]:
            self.net.denoiser.load_state_dict(trained.net.denoiser.state_dict())

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
        state, chunk, label = self._tensors(rows)
        # Recordings of a real robot have no labels, and the mean over nothing is no number.
        known = label.shape[1] > 0 and not self.frozen
        with torch.autocast(self.device.type, torch.bfloat16, enabled=not self.frozen):
            if self.frozen:
                which = self.rng.integers(len(self.embeddings), size=len(rows))
                embedding = torch.from_numpy(self.embeddings[which, rows]).to(self.device)
            else:
                pictures = [
                    augment(self.data.images[name][rows], config.crop, self.rng, self.device)
                    for name in self.data.cameras
                ]
                embedding = net.encoder.embed(pictures, state + config.state_noise * torch.randn_like(state))
            auxiliary_loss = F.mse_loss(net.auxiliary(embedding).float(), label) if known else torch.zeros(())
        noise_loss = self._noise_loss(net, embedding.float(), chunk, config.noise_samples)
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
            self.net.normalise_actions(chunk),
            (label - self.label_mean) / self.label_std,
        )

    def _noise_loss(self, net: PolicyNet, embedding: Tensor, chunk: Tensor, copies: int) -> Tensor:
        chunk, embedding = chunk.repeat_interleave(copies, 0), embedding.repeat_interleave(copies, 0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.objective.low_precision):
            return self.objective.loss(net, embedding, chunk)

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
            noise = torch.randn(len(rows), self.config.horizon, net.action_dim, device=self.device)
            half = self.config.horizon // 2
            error = (self._sample(net, noise, embedding).cpu().numpy() - self.data.chunks[rows])[:, :half]
            return {"validation_loss": loss, "action_error": float(np.abs(error).mean())}

    def _sample(self, net: PolicyNet, noise: Tensor, embedding: Tensor) -> Tensor:
        if self.config.objective == "streaming":
            return StreamingStart(net, self.config.sampler_steps)(noise, embedding)[0]
        return make_sampler(net)(noise, embedding)

    def kept(self) -> list[Path]:
        """The kept checkpoints, the oldest first; `load_policy` reads them."""
        return sorted((self.folder / "kept").glob("step_*.pt"))

    def _keep(self, state: dict) -> None:
        path = self.folder / "kept" / f"step_{self.step:07d}.pt"
        path.parent.mkdir(exist_ok=True)
        _save({name: state[name] for name in ("config", "data", "average", "step", "seconds")}, path)
        for old in self.kept()[: -self.config.keep]:
            old.unlink()

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
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        _save(state, self.checkpoint_path)
        if self.step and (self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps):
            self._keep(state)
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
        before = copy.deepcopy(self.net.encoder)
        self.net.load_state_dict(state["net"])
        if self.frozen and not same_encoder(before, self.net.encoder):
            raise VigilError(
                f"{self.checkpoint_path} was trained on another encoder: give the same --from to resume, or another --out"
            )
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"].cpu())
        if len(state.get("cuda_rng", ())) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])


def _save(state: dict, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _check_source(trained: Trained, data: DemonstrationSet) -> None:
    for name in ("cameras", "columns"):
        there, here = list(trained.facts[name]), list(getattr(data, name))
        if there != here:
            raise VigilError(
                f"what is gone on from was made for the {name} {there}, the demonstrations have {here}"
            )
