"""What happens around the iterations of a learned policy's training: cost, validation with early stopping, a progress bar.

Each keeps its state in the checkpoint, and stands before `SaveLast`, so that a checkpoint has the state after its iteration.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
from tqdm import tqdm

from fsframework.train.learned_config import ValidationConfig


class Cost(lightning.Callback):
    """CPU and wall seconds of the iterations of this process, validation included, over all resumptions."""

    def __init__(self) -> None:
        self.cpu_seconds = self.wall_seconds = 0.0
        self._since = (0.0, 0.0)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin to count."""
        self._since = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Count up to here."""
        now = time.process_time(), time.perf_counter()
        self.cpu_seconds += now[0] - self._since[0]
        self.wall_seconds += now[1] - self._since[1]
        self._since = now

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"cpu_seconds": self.cpu_seconds, "wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """From the checkpoint."""
        self.cpu_seconds, self.wall_seconds = state_dict["cpu_seconds"], state_dict["wall_seconds"]


class Validate(lightning.Callback):
    """Measures every so many iterations, and stops when it has not become better for long enough.

    Lightning's own early stopping looks at the ends of epochs and validation loops, whose counts begin anew in a resumed
    run; this one counts optimizer steps only, so a run that was killed stops where it would have.
    """

    def __init__(self, config: ValidationConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.num_worse = 0

    @property
    def is_over(self) -> bool:
        """Whether it has not become better for long enough."""
        return 0 < self.config.patience <= self.num_worse

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """A run that had stopped stays so."""
        trainer.should_stop = trainer.should_stop or self.is_over

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Measure, when it is time."""
        if not self.config.every or trainer.global_step % self.config.every:
            return
        measured = pl_module.validate()
        if not measured:
            return
        if trainer.is_global_zero:
            pl_module.record(measured)
        value = measured["validation"]
        is_better = self.best is None or value < self.best - self.config.min_change
        self.best, self.num_worse = (value, 0) if is_better else (self.best, self.num_worse + 1)
        if self.is_over:
            if trainer.is_global_zero:
                print(f"stopped: no better than {self.best:.6g} in {self.num_worse} measurements", flush=True)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"best": self.best, "num_worse": self.num_worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.best, self.num_worse = state_dict["best"], state_dict["num_worse"]


class Bar(lightning.Callback):
    """Iterations done and time left on a terminal; without one the rows of the metrics say so."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin where the checkpoint is."""
        is_shown = trainer.is_global_zero and sys.stderr.isatty()
        self._bar = tqdm(
            total=pl_module.num_steps, initial=trainer.global_step, desc=pl_module.stage, disable=not is_shown
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """One more."""
        assert self._bar is not None
        self._bar.set_postfix(loss=f"{float(outputs['loss']):.4g}", refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Leave the line."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the line, and say how to go on."""
        self.on_train_end(trainer, pl_module)
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print(
                f"\nstopped after {trainer.global_step} of {pl_module.num_steps} iterations; the same command goes on from "
                f"the last checkpoint.",
                file=sys.stderr,
            )
