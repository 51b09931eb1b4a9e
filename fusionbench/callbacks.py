"""What happens around training and enters its result: stored features, reproducible epochs, stopping."""

from __future__ import annotations

import math
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from fusionbench import provenance
from fusionbench.adapt import feature_store
from fusionbench.adapt.feature_table import MOST_BYTES, FeatureTable, TooLarge
from fusionbench.adapt.views import Views
from fusionbench.data.module import FusionData
from fusionbench.errors import UserError
from fusionbench.layers import sharded
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
        """Seed torch by run, epoch and process, since each process has cases of its own to drop from."""
        torch.manual_seed(self.seed * 100_003 + trainer.current_epoch + 1_000_000_007 * trainer.global_rank)


class StopAgain(L.Callback):
    """Ends a resumed run at once if its checkpoint was the one at which early stopping had struck."""

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Look at the early stopper's restored state."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
                trainer.should_stop = True


class Monitored(L.Callback):
    """Ends a run whose monitored score is not there after its first epoch: no epoch could be told to be the best.

    Args:
        monitor: Name of the validation metric, without ``val/``.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor, self._found = monitor, False

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Look for it once.

        Raises:
            UserError: It was not logged, or is not a number.
        """
        value = float(trainer.callback_metrics.get(f"val/{self.monitor}", math.nan))
        if math.isnan(value) and not self._found:
            raise UserError(
                f"trainer.monitor is {self.monitor}, which is no number on the validation cases (a class or a mask may "
                "be missing there), so the best epoch cannot be told; set trainer.monitor to another metric"
            )
        self._found = True


class OwnSignals(L.Callback):
    """Keeps the answer to SIGTERM that the program gives; Lightning's is a broadcast amid whatever the processes do.

    No option of Lightning's leaves it out, and it is set before any hook but ``setup``: one of several processes may
    wait in a barrier or read its first batch by then, and the broadcast would hang.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave Lightning's out."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class StoredFeatures(L.Callback):
    """Lets frozen backbones read their features from the store in the tracking folder, which it fills first.

    Tags the run ``fusionbench.features``: ``stored`` if training reads those of every view, ``live`` if of none, else
    ``partly``; epoch seconds must be read by it. Augmented pictures never come again and are encoded as they come, as
    are views into which a strategy puts tokens of its own. On several devices nothing is stored, nor under
    ZeRO-3, where an encoder is whole only within the strategy's own step.

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
        """Give a table to every frozen view that reads one, once for fit and test; the network is on its device."""
        if self._done:
            return
        assert isinstance(task, FusionTask)
        self._done, views = True, task.strategy.views
        alone = trainer.world_size == 1 and not any(map(sharded.is_sharded, views.parameters()))
        wanted = [view for view in task.strategy.feature_views if views.is_frozen(view)] if alone else []
        parts = {view: feature_store.Part(self.source, view.rsplit("/", 1)[-1]) for view in views.address}
        for view in wanted:
            table = self._open(trainer, views, view, parts[view])
            if table is not None:
                views.tables[view] = table
        reads = {view in views.tables and part.trains for view, part in parts.items()}
        tag = "live" if True not in reads else "partly" if False in reads else "stored"
        self.run.tag({"fusionbench.features": tag})

    def on_predict_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Do the same for a run that was cut off between training and test."""
        self.on_fit_start(trainer, task)

    def _open(self, trainer: L.Trainer, views: Views, view: str, part: feature_store.Part) -> FeatureTable | None:
        """Return a view's table, None if there is nothing to store or too much; views of one backbone share it."""
        place = views.address[view][0], part.name
        if place not in self._opened:
            self._opened[place] = self._made(trainer, views, view, part) if len(part.rows) else None
        return self._opened[place]

    def _made(self, trainer: L.Trainer, views: Views, view: str, part: feature_store.Part) -> FeatureTable | None:
        """Read or fill a table, and say which."""
        (backbone, index), encoder = views.address[view], views.encoder(view)
        module = type(encoder).__module__
        setting = feature_store.Setting(
            provenance.source_digest([*_FEATURE_CODE, module], {*_FOLLOWED, _package(module)}),
            f"{trainer.precision} by {type(trainer.precision_plugin).__qualname__}",
            lambda batch: trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)),
            trainer.precision_plugin.forward_context,
        )
        try:
            table, was_there = feature_store.table(
                self._folder, views.identities[backbone], encoder, part, setting, index
            )
        except TooLarge as error:
            size, most = error.size / 1e9, MOST_BYTES / 1e9
            self.say(f"note: features of '{part.name}' are not stored: {size:.1f} GB, more than {most:.0f}")
            return None
        done = "read from store" if was_there else "computed once and stored"
        self.say(f"features of '{part.name}' {done} ({len(part.rows):,} cases)")
        return table


def _package(module: str) -> str:
    """Return the package whose modules are part of an encoder: a plugin's own, or ours."""
    package = module.partition(".")[0]
    return "fusionbench.encoders" if package == "fusionbench" else package
