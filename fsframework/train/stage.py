"""What every training stage shares: a step-seeded data order, EMA weights, checkpoints, a metrics file.

A stage is a LightningModule whose batch, noise and timesteps are functions of (seed, stage name, step) alone. No
random state has to be saved, so a run that is killed and started again continues bit for bit from its last checkpoint.
"""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn


def step_seed(seed: int, stage: str, step: int) -> int:
    """A 63-bit seed for one step of one stage; stages and steps do not share random numbers."""
    words = np.random.SeedSequence([seed, zlib.crc32(stage.encode()), step]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Linear warm-up, constant, then linear decay to 0 over the last `decay_fraction` of the steps."""
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    decay_steps = decay_fraction * num_steps
    left = (num_steps - step) / decay_steps if decay_steps > 0 else 1.0
    return warm * min(1.0, max(0.0, left))


class MetricsFile:
    """One JSON object per line, each with `stage` and `step`: the record of a run that does not need a service."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, stage: str, step: int, **values: Any) -> None:
        """Add one row."""
        row = {"stage": stage, "step": step, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order written; an incomplete last line of a killed run is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the rows of `stage` beyond `step`: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["stage"] != stage or row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, self.path)


class _StepIndices(torch.utils.data.IterableDataset[int]):
    """Yields `start`, `start` + 1, ...: the batch is made from the step index inside `training_step`."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class StageModule(lightning.LightningModule):
    """One training stage of `networks`; a subclass says what the loss of a step is.

    `networks` is the trained module, `average` its exponential moving average, the weights that are exported.
    """

    def __init__(
        self,
        networks: nn.Module,
        *,
        stage: str,
        seed: int,
        num_steps: int,
        warmup_steps: int,
        decay_fraction: float,
        ema_decay: float,
        clip_norm: float,
        log_every: int,
        metrics: MetricsFile,
        average: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.average = copy.deepcopy(average if average is not None else networks).requires_grad_(False).eval()
        self.stage, self.seed, self.num_steps = stage, seed, num_steps
        self.warmup_steps, self.decay_fraction = warmup_steps, decay_fraction
        self.ema_decay, self.clip_norm = ema_decay, clip_norm
        self.log_every, self.metrics = log_every, metrics
        self._window_start_seconds = time.perf_counter()
        self._window_losses: list[Tensor] = []

    def share(self, batch_size: int) -> slice:
        """The part of a batch that this process computes; every process draws the whole batch.

        So the number of processes changes nothing but rounding.
        """
        trainer = self._trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if batch_size % world_size:
            raise ValueError(f"stage {self.stage}: {world_size} processes can not share a batch of {batch_size}.")
        return slice(rank, None, world_size)

    def loss(self, step: int) -> Tensor:
        """The scalar loss of step `step`; every random number comes from `self.generator(step)`."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over `networks`, at its peak learning rate."""
        raise NotImplementedError

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of one step."""
        return torch.Generator().manual_seed(step_seed(self.seed, self.stage, step))

    def numpy_generator(self, step: int) -> np.random.Generator:
        """The data order of one step."""
        return np.random.default_rng(step_seed(self.seed, self.stage + "/data", step))

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Loss of the global step; Lightning's own batch count is not used, as a resumed epoch restarts it."""
        del batch, batch_idx
        loss = self.loss(self.global_step)
        self._window_losses.append(loss.detach())
        return loss

    def train_dataloader(self) -> Any:
        """An endless stream of step indices; `max_steps` ends the stage."""
        return torch.utils.data.DataLoader(_StepIndices(self.trainer.global_step), batch_size=None)

    def configure_optimizers(self) -> Any:
        """The subclass's optimizer with the stage's learning rate schedule."""
        optimizer = self.optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, self.num_steps, self.warmup_steps, self.decay_fraction),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """A resumed stage rewrites the metrics beyond its checkpoint, which is restored by now."""
        if self.trainer.is_global_zero:
            self.metrics.forget_after(self.stage, self.trainer.global_step)
        self._window_start_seconds = time.perf_counter()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient norm over all trained parameters."""
        del optimizer
        torch.nn.utils.clip_grad_norm_([p for p in self.networks.parameters() if p.grad is not None], self.clip_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the average at once: callbacks that save run before `on_train_batch_end` of the module."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step
        # A short run must not keep its initial weights in the average, hence the ramp.
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            averages: list[Tensor] = [p.detach() for p in self.average.parameters()]
            values: list[Tensor] = [p.detach() for p in self.networks.parameters()]
            torch._foreach_lerp_(averages, values, 1 - decay)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the mean loss of the last `log_every` steps."""
        del outputs, batch, batch_idx
        step = self.global_step
        if step % self.log_every == 0 and self.trainer.is_global_zero:
            now = time.perf_counter()
            row = {
                "loss": float(torch.stack(self._window_losses).mean()),
                "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "seconds_per_step": (now - self._window_start_seconds) / len(self._window_losses),
            }
            self._window_losses, self._window_start_seconds = [], now
            self.record(row)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row to the metrics file, the logger and the screen."""
        self.metrics.append(self.stage, self.global_step, **row)
        if self.logger is not None:
            numbers = {f"{self.stage}/{k}": v for k, v in row.items() if isinstance(v, int | float)}
            try:
                self.logger.log_metrics(numbers, step=self.global_step)
            except Exception as error:  # a service that is gone loses no training
                warnings.warn(f"a row is in {self.metrics.path} only: {type(error).__name__}: {error}", stacklevel=2)
        words = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        if "seconds_per_step" in row:
            minutes = (self.num_steps - self.global_step) * row["seconds_per_step"] / 60
            words += f"  {minutes:.0f} min left in this stage"
        print(f"[{time.strftime('%H:%M:%S')}] {self.stage} {self.global_step}/{self.num_steps}  {words}", flush=True)


class SaveLast(lightning.Callback):
    """Writes the whole training state every `every_minutes` and at the end, so that a kill never leaves half a file."""

    def __init__(self, path: Path, every_minutes: float) -> None:
        self.path, self.every_minutes = path, every_minutes
        self._last_seconds = time.monotonic()

    def save(self, trainer: lightning.Trainer) -> None:
        """Write beside the old checkpoint, then replace it in one step; all processes come here together."""
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        self._last_seconds = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save when the interval is over."""
        due = time.monotonic() - self._last_seconds > 60 * self.every_minutes
        # The first process's clock decides for all of them.
        if trainer.strategy.broadcast(due):
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save the finished stage."""
        self.save(trainer)
