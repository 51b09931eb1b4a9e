"""``trainer.stop: per_part``: every part of a strategy ends at its own best, while the others train on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import safetensors.torch
import torch
from torch import Tensor, nn

from fusionbench.errors import UserError
from fusionbench.files import write_tensors
from fusionbench.fusion.base import Strategy
from fusionbench.layers import sharded
from fusionbench.layers.frozen import misfits
from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.task import FusionTask
from fusionbench.tracking import TrackedRun

MONITOR = "<monitor>"  # in Strategy.part_metrics: whatever trainer.monitor is
_PREFIX, _SUFFIX = "best-", ".safetensors"


class PartStopping(L.Callback):
    """Freezes each part of a strategy once its own validation metric improves no more; ends when all are frozen.

    MDF-MLLM (arXiv 2509.21358) reports that its U-Net is best at epoch 18 and its language model at epoch 55, and not
    what is done about it; so the rule is ours. A part whose metric has not improved for ``patience`` validations goes
    back to its own best weights, running statistics included, and is frozen, its optimizer state kept. The others train
    on beside it from where they are. A part without a metric is never frozen. The model that is tested has each part
    at its own best, also where training ended before the part was frozen, and the rest from the best epoch of
    ``trainer.monitor``: what is tested together need not have been validated together.

    Args:
        run: Keeps the best weights, and is told ``stopped/<part>``, the epoch counted from 0.
        monitor: The validation metric of parts that are scored by ``<monitor>``.
        patience: Validations without improvement after which a part is frozen; 0: never.
        say: Tells the user which part was frozen.
    """

    def __init__(self, run: TrackedRun, monitor: str, patience: int, say: Callable[[str], None]) -> None:
        self.run, self.monitor, self.patience, self.say = run, monitor, patience, say
        self.folder = run.folder / "checkpoints"
        self.best: dict[str, float] = {}
        self.best_epoch: dict[str, int] = {}
        self.stopped: dict[str, int] = {}
        self._members: dict[str, list[nn.Parameter]] = {}
        self._metrics: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {"best": dict(self.best), "best_epoch": dict(self.best_epoch), "stopped": dict(self.stopped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.best, self.best_epoch = dict(state_dict["best"]), dict(state_dict["best_epoch"])
        self.stopped = dict(state_dict["stopped"])

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Find the parts and freeze again what a resumed run had frozen; the optimizer knows all of them by now.

        Raises:
            UserError: No part that has a metric is trained.
        """
        assert isinstance(task, FusionTask)
        self._members = task.strategy.parts()
        named = task.strategy.part_metrics.items()
        self._metrics = {p: self.monitor if m == MONITOR else m for p, m in named if self._members.get(p)}
        if not self._metrics:
            raise UserError("trainer.stop is per_part, but no part with a metric is trained; set trainer.stop=whole")
        for part in self.stopped:
            self._freeze(task, part)
        trainer.should_stop |= self._all_stopped()

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Let frozen parts gather no running statistics; validation has put them back into training mode."""
        assert isinstance(task, FusionTask)
        for part in self.stopped:
            for module in owners(task.strategy, self._members[part]).values():
                module.training = False  # of this module alone: its children may be another part's

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Judge every part that still trains, before the epoch's checkpoint is written."""
        assert isinstance(task, FusionTask)
        for part in self._metrics:
            if part not in self.stopped:
                self._judge(trainer, task, part)
        trainer.should_stop |= self._all_stopped()

    def on_train_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """Unfreeze, so that what was trained is saved and counted as such."""
        assert isinstance(task, FusionTask)
        for parameter in task.stopped:
            parameter.requires_grad_(True)
        task.stopped = []

    def _all_stopped(self) -> bool:
        return set(self._metrics) <= set(self.stopped)

    def _judge(self, trainer: L.Trainer, task: FusionTask, part: str) -> None:
        """Keep the part's weights if they are its best, freeze it if the best is long ago."""
        epoch, metric = trainer.current_epoch, self._metrics[part]
        value = float(trainer.callback_metrics.get(f"val/{metric}", math.nan))
        if part not in self.best and math.isnan(value):
            raise UserError(
                f"trainer.stop is per_part, but no validation case has the metric '{metric}' of part '{part}'; set "
                "trainer.stop=whole or choose data that have it"
            )
        if part not in self.best or (value < self.best[part] if metric in LOWER_IS_BETTER else value > self.best[part]):
            self.best[part], self.best_epoch[part] = value, epoch
            state = part_state(task.strategy, self._members[part])  # by every process: each may hold a part of it
            if trainer.is_global_zero:
                write_tensors(self._file(part), state)
        elif self.patience and epoch - self.best_epoch[part] >= self.patience:
            self._stop(trainer, task, part)

    def _stop(self, trainer: L.Trainer, task: FusionTask, part: str) -> None:
        """Send a part back to its best weights and freeze it."""
        self.stopped[part] = trainer.current_epoch
        _load_part(task.strategy, self._members[part], self._file(part))
        self._freeze(task, part)
        self.run.log_metrics({f"stopped/{part}": float(trainer.current_epoch)}, trainer.global_step)
        self.say(
            f"part '{part}' is frozen after epoch {trainer.current_epoch}: its val/{self._metrics[part]} has not "
            f"improved on {self.best[part]:.3f}, of epoch {self.best_epoch[part]}, to which it goes back"
        )

    def _freeze(self, task: FusionTask, part: str) -> None:
        for parameter in self._members[part]:
            parameter.requires_grad_(False)
            parameter.grad = None
        task.stopped += self._members[part]

    def _file(self, part: str) -> Path:
        return self.folder / f"{_PREFIX}{part}{_SUFFIX}"


def load_parts(task: FusionTask, folder: Path) -> None:
    """Load the best weights of each part that a run has kept apart, if it has.

    Raises:
        UserError: They are not of the strategy's parts.
    """
    members = task.strategy.parts()
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        part = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        _load_part(task.strategy, members.get(part, []), path)


def _load_part(strategy: Strategy, members: list[nn.Parameter], path: Path) -> None:
    """Load one part's weights, all of them."""
    state = safetensors.torch.load_file(path)
    wrong = misfits(_shapes(strategy, members), state)
    if wrong:
        raise UserError(
            f"'{path}' does not fit this {type(strategy).__name__}: {len(wrong)} tensors differ (first '{wrong[0]}'); "
            "fit the run anew"
        )
    sharded.load_state(strategy, state)


def owners(strategy: Strategy, members: list[nn.Parameter]) -> dict[str, nn.Module]:
    """Return the modules that hold any of the parameters themselves, by name."""
    wanted = {id(parameter) for parameter in members}
    return {
        name: module
        for name, module in strategy.named_modules()
        if any(id(parameter) in wanted for parameter in module.parameters(recurse=False))
    }


def part_state(strategy: Strategy, members: list[nn.Parameter]) -> dict[str, Tensor]:
    """Return a part's parameters and the buffers that lie beside them, such as running statistics, in main memory."""
    wanted, names = {id(parameter) for parameter in members}, set(_shapes(strategy, members))
    state = sharded.state_dict(strategy, wanted=lambda parameter: id(parameter) in wanted)
    return {name: state[name] for name in state if name in names}


def _shapes(strategy: Strategy, members: list[nn.Parameter]) -> dict[str, torch.Size]:
    """Return the shapes of a part's parameters and of the buffers that lie beside them."""
    wanted, kept = {id(parameter) for parameter in members}, strategy.state_dict().keys()
    found = {name: sharded.shape(value) for name, value in strategy.named_parameters() if id(value) in wanted}
    for place, module in owners(strategy, members).items():
        found |= {f"{place}.{name}".lstrip("."): own.shape for name, own in module.named_buffers(recurse=False)}
    return {name: shape for name, shape in found.items() if name in kept}
