"""Small tasks that are trained in one process or two, by a plain Trainer around our strategies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import batch, criterion, pool_for, problem, strategy
from torch.utils.data import DataLoader

from fusionbench import training
from fusionbench.distributed import checkpoints
from fusionbench.distributed.strategy import strategy as chosen
from fusionbench.fusion.base import Strategy
from fusionbench.layers.frozen import parameter_counts, trained_state
from fusionbench.optim.optimizers.adamw import adamw
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.cosine import cosine
from fusionbench.sections import TrainerOptions
from fusionbench.task import FusionTask
from fusionbench.types import Batch, Problem

CASES, BATCH = 9, 4  # an odd number of cases, so that a process gets one again
MADE = {
    "ei": problem(("picture", "scan")),
    "llama": problem(("picture", "report")),
    "mdf": problem(("picture", "report")),
    "cnn": problem(("picture", "scan")),
}
FUSION = {
    "ei": ("early_intervention", "mor", {}, {}),
    "llama": ("llama_early", "lora", {"image": "llama", "text": "llama"}, {"dropout": 0.0}),
    "mdf": ("mdf", "frozen", {"text": "llama_vision"}, {}),
    "cnn": ("concat", "full", {"image": "timm_cnn"}, {}),  # with batch norm
}
OPTIMIZER = {
    "ei": partial(adamw, lr=1e-3, eps=1e-4),
    "llama": partial(sgd, lr=0.05, momentum=0.9),
    "mdf": partial(sgd, lr=0.01),
    "cnn": partial(sgd, lr=0.01),
}


def network(name: str) -> Strategy:
    """Return a small network, the same in every process."""
    fusion, method, readers, given = FUSION[name]
    torch.manual_seed(0)
    return strategy(fusion, MADE[name], pool_for(fusion, MADE[name], method, readers), **given)


def task(name: str) -> FusionTask:
    """Return a task around a small network."""
    made = MADE[name]
    return FusionTask(made, partial(network, name), OPTIMIZER[name], cosine, criterion(made))


def loader(made: Problem, train: bool, count: int = BATCH) -> DataLoader:
    """Return this process's share of every batch, of ``count`` training cases, or of all cases."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(1)
    cases = batch(made, CASES)
    if train:
        places = [list(range(start + rank, start + count, size)) for start in range(0, CASES - count + 1, count)]
    else:
        mine = [place % CASES for place in range(rank, size * -(-CASES // size), size)]
        places = [mine[start : start + BATCH // size] for start in range(0, len(mine), BATCH // size)]
    return DataLoader([rows(cases, own) for own in places], batch_size=None)


def rows(cases: Batch, places: list[int]) -> Batch:
    """Return some of the cases."""
    inputs = {name: value[places] for name, value in cases.inputs.items()}
    ids = [cases.case_id[place] for place in places]
    return Batch(inputs, cases.present[places], cases.target[places], ids, ids, {})


@dataclass
class Watch(L.Callback):
    """Keeps the mean loss of every step over the processes; ends training after an epoch, if told so."""

    last_epoch: int | None = None
    losses: list[float] = field(default_factory=list)

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].detach().clone()
        self.losses.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))

    def on_train_epoch_end(self, trainer: L.Trainer, task: Any) -> None:
        trainer.should_stop |= trainer.current_epoch == self.last_epoch


def trainer(options: TrainerOptions, folder: Path, watch: Watch) -> L.Trainer:
    """Return a Trainer that keeps ``best.ckpt`` and ``last.ckpt`` as ours does."""
    training.quiet()
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    best, last = keep(filename="best", monitor="val/mAP", mode="max"), keep(filename="last", every_n_epochs=1)
    return L.Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy=chosen(options),
        precision=options.precision,
        max_epochs=options.max_epochs,
        gradient_clip_val=options.gradient_clip,
        accumulate_grad_batches=options.accumulate,
        callbacks=[watch, best, last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def options(kind: str, **given: Any) -> TrainerOptions:
    """Return options for two processes, or for one."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    return TrainerOptions(**{"strategy": kind, "devices": size, "accelerator": "cpu", "max_epochs": 2, **given})


def train(
    name: str, kind: str, folder: Path, last_epoch: int | None = None, count: int = BATCH, **given: Any
) -> dict[str, Any]:
    """Train a task, or go on with it, load its best weights and predict; return what came of it."""
    made, own, watch = task(name), options(kind, **given), Watch(last_epoch)
    fitted = trainer(own, folder, watch)
    found = checkpoints.to_resume(folder / "last.ckpt", own, own.processes)
    fitted.fit(made, loader(MADE[name], True, count), loader(MADE[name], False), ckpt_path=found, weights_only=True)
    out = {"losses": watch.losses, "state": trained_state(made), "parts": parts(made), "task": made}
    out |= {"steps": fitted.global_step, "rates": made.lr_schedulers().get_last_lr()}
    out |= {"home": made.device == fitted.strategy.root_device}
    floats = {name: t for name, t in (*made.named_parameters(), *made.named_buffers()) if t.is_floating_point()}
    statistics = {name for name in floats if "running_" in name or name.startswith("criterion.")}
    out |= {"held": {str(floats[name].dtype) for name in floats.keys() - statistics}}
    out |= {"statistics": {str(floats[name].dtype) for name in statistics}}
    out |= {"base": made.base_checksum(), "counts": parameter_counts(made.strategy)}
    fitted.predict(made, loader(MADE[name], False), return_predictions=False)
    seen = made.gathered()
    return out | {"cases": seen["case"], "logits": torch.tensor(seen["logits"]), "trainer": fitted}


def parts(made: FusionTask) -> dict[str, tuple[int, int, bool]]:
    """Return of each parameter that is parted: its size, the size of this process's part, whether it is trained."""
    named = made.strategy.named_parameters()
    return {n: (p.ds_numel, p.ds_tensor.numel(), p.requires_grad) for n, p in named if hasattr(p, "ds_id")}


def shown(result: dict[str, Any]) -> dict[str, Any]:
    """Return what of a result can leave its process."""
    return {key: value for key, value in result.items() if key not in ("task", "trainer")}
