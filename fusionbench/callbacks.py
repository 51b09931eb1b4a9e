"""What happens around training: costs, flushing to the tracker, reproducible epochs, stopping again after a restart."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import psutil
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
        self._peak = 0.0

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Forget the memory of runs before this one."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Log the learning rate as often as the losses, and watch the memory."""
        self._peak = max(self._peak, memory_gb())
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.is_global_zero:  # type: ignore[attr-defined]
            self.run.log_metrics({"train/lr": trainer.optimizers[0].param_groups[0]["lr"]}, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Log seconds and peak memory, and write everything out."""
        if not trainer.is_global_zero:
            return
        values = {"cost/epoch_seconds": time.monotonic() - self._start, "cost/peak_memory_GB": self._peak}
        self.run.log_metrics({**values, "epoch": trainer.current_epoch}, trainer.global_step)
        self.run.flush()


def memory_gb() -> float:
    """Return memory in 1e9 bytes: the GPU's peak if there is one, else what this process holds now."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return float(psutil.Process().memory_info().rss / 1e9)
