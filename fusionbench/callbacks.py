"""What happens around training: costs, flushing to the tracker, reproducible epochs, stopping again after a restart."""

from __future__ import annotations

import resource
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fusionbench.tracking import TrackedRun


class EpochSeed(L.Callback):
    """Seeds every epoch by itself, so that a resumed run draws what the uninterrupted one did."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Seed torch by run and epoch."""
        torch.manual_seed(self.seed * 100_003 + trainer.current_epoch)


class StopAgain(L.Callback):
    """Ends a resumed run at once if its checkpoint was the one at which early stopping had struck."""

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Look at the early stopper's restored state."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
                trainer.should_stop = True


class Costs(L.Callback):
    """Logs what an epoch costs, and the rate, then flushes, before the epoch's checkpoint is written."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Log the learning rate as often as the losses."""
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.is_global_zero:  # type: ignore[attr-defined]
            self.run.log_metrics({"train/lr": trainer.optimizers[0].param_groups[0]["lr"]}, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Log seconds and peak memory, and write everything out."""
        if not trainer.is_global_zero:
            return
        values = {"cost/epoch_seconds": time.monotonic() - self._start, "cost/peak_memory_GB": peak_memory_gb()}
        self.run.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)
        self.run.flush()


def peak_memory_gb() -> float:
    """Return this process's largest memory so far in 1e9 bytes: of the GPU if there is one, else of the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
