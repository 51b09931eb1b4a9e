"""What happens around training: stored features, costs, flushing to the tracker, reproducible epochs, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fusionbench import provenance
from fusionbench.adapt import feature_store
from fusionbench.adapt.feature_table import MOST_BYTES, FeatureTable, TooLarge
from fusionbench.adapt.views import Views
from fusionbench.data.module import FusionData
from fusionbench.task import FusionTask
from fusionbench.tracking import TrackedRun

# What features go through besides their encoder, and where its imports are followed.
_FEATURE_CODE = (
    *("fusionbench.adapt.feature_store", "fusionbench.adapt.feature_table", "fusionbench.data.cases"),
    *("fusionbench.data.conversion", "fusionbench.data.images", "fusionbench.data.transforms"),
)
_FOLLOWED = ("fusionbench.encoders", "fusionbench.layers")


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


class StoredFeatures(L.Callback):
    """Lets frozen backbones read their features from the store in the tracking folder, which it fills first.

    Tags the run ``fusionbench.features``: ``stored`` if training reads every modality's, ``live`` if none's, else
    ``partly`` (augmented pictures never come again and are encoded as they come); epoch seconds must be read by it.

    Args:
        run: Has the tracking folder and takes the tag.
        source: The data.
        say: Tells the user what was read, stored or left.
    """

    def __init__(self, run: TrackedRun, source: FusionData, say: Callable[[str], None]) -> None:
        self.run, self.source, self.say = run, source, say
        self._folder = run.store.folder / "features"
        self._opened: dict[tuple[str, str], FeatureTable | None] = {}
        self._done = False

    def on_fit_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Give every frozen view its table, once for fit and test; the network is on its device by now."""
        if self._done:
            return
        assert isinstance(task, FusionTask)
        self._done, trains, views = True, set(), task.strategy.views
        frozen = [view for view in views.address if views.is_frozen(view)]
        if frozen and trainer.world_size > 1:
            self.say("note: features are not stored, since the run is on several devices")
            frozen = []
        for view, (key, _) in views.address.items():
            part = feature_store.Part(self.source, view.rsplit("/", 1)[-1])
            table = self._open(trainer, views, view, part) if view in frozen else None
            self._opened[key, part.name] = table
            trains.add(table is not None and part.trains)
            if table is not None:
                views.tables[view] = table
        tag = "live" if True not in trains else "partly" if False in trains else "stored"
        self.run.tag({"fusionbench.features": tag})

    def on_predict_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Do the same for a run that was cut off between training and test."""
        self.on_fit_start(trainer, task)

    def _open(self, trainer: L.Trainer, views: Views, view: str, part: feature_store.Part) -> FeatureTable | None:
        """Return a view's table, None if there is nothing to store or too much; views of one backbone share it."""
        key, encoder = views.address[view][0], views.encoder(view)
        if (key, part.name) in self._opened or not len(part.rows):
            return self._opened.get((key, part.name))
        setting = feature_store.Setting(
            provenance.source_digest([*_FEATURE_CODE, type(encoder).__module__], _FOLLOWED),
            str(trainer.precision),
            lambda batch: trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)),
            trainer.precision_plugin.forward_context,
        )
        try:
            table, was_there = feature_store.table(self._folder, key, encoder, part, setting)
        except TooLarge as error:
            size, most = error.size / 1e9, MOST_BYTES / 1e9
            self.say(f"note: features of '{part.name}' are not stored: {size:.1f} GB, more than {most:.0f}")
            return None
        done = "read from store" if was_there else "computed once and stored"
        self.say(f"features of '{part.name}' {done} ({len(part.rows):,} cases)")
        return table


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
