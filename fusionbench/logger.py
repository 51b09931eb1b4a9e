"""What a run logs as it trains: Lightning's view of a tracked run, and costs. No result depends on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fusionbench.tracking import TrackedRun


class RunLogger(Logger):
    """Lightning's view of a tracked run."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """Unused: checkpoints lie in the run's working folder."""
        return "fusionbench"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Buffer points; Lightning's ``epoch`` says nothing that the step does not."""
        self.run.log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Do nothing: parameters come from the config."""


class Costs(L.Callback):
    """Logs what an epoch costs, and the rate, then flushes, before the epoch's checkpoint is written.

    ``cost/epoch_seconds`` is training alone, validation taken off. ``cost/peak_memory_GB`` is the run's own: on a GPU
    the most that was allocated since training began; else the most main memory that the process held at the end of a
    forward pass or a step, libraries and whatever an earlier run left behind included. Memory that is given back
    between these two points goes unseen.
    """

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self._start = 0.0
        self._paused = 0.0
        self._peak = 0.0

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Forget the memory of runs before this one."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Let it go on."""
        self._start += time.monotonic() - self._paused

    def on_before_backward(self, trainer: L.Trainer, task: L.LightningModule, loss: torch.Tensor) -> None:
        """Watch the memory where activations are largest."""
        self._peak = max(self._peak, memory_gb())

    def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *args: Any) -> None:  # noqa: ANN401
        """Log every group's learning rate as often as the losses, and watch the memory."""
        self._peak = max(self._peak, memory_gb())
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.is_global_zero:  # type: ignore[attr-defined]
            groups = trainer.optimizers[0].param_groups
            rates = {f"train/lr/{g['part']}" if "part" in g else "train/lr": g["lr"] for g in groups}
            self.run.log_metrics(rates, trainer.global_step)

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
