"""The Trainer of a run: checkpoints, early stopping, resuming."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar

from fusionbench.callbacks import EpochSeed, Monitored, OwnSignals, StopAgain, StoredFeatures
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.distributed import checkpoints
from fusionbench.distributed.strategy import strategy
from fusionbench.errors import UserError
from fusionbench.files import write_bytes
from fusionbench.layers import sharded
from fusionbench.logger import Costs, RunLogger
from fusionbench.metrics import LOWER_IS_BETTER
from fusionbench.part_stopping import PartStopping, load_parts
from fusionbench.sections import TrainerOptions
from fusionbench.task import FusionTask
from fusionbench.tracking import TrackedRun


def trainer(config: Config, run: TrackedRun, source: FusionData, say: Callable[[str], None]) -> L.Trainer:
    """Build the Trainer that a config asks for; losses are logged at least once an epoch.

    Args:
        config: The run's config.
        run: Where it is tracked.
        source: The data.
        say: Tells the user what is going on.

    Raises:
        UserError: The accelerator or devices are not there.
    """
    options = config.trainer
    quiet()
    try:
        return L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=strategy(options),
            plugins=[LightningEnvironment()] if options.processes == 1 else None,  # SLURM's is for a process a task
            precision=options.precision,
            max_epochs=options.max_epochs,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            limit_train_batches=options.limit_train_batches,
            log_every_n_steps=max(1, min(config.tracking.log_every, len(source.train_dataloader()))),
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            deterministic="warn",
            logger=RunLogger(run),
            callbacks=[StoredFeatures(run, source, say), *_callbacks(config, run, say)],
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            default_root_dir=run.folder,
        )
    except Exception as error:  # Lightning raises many kinds for what a machine lacks
        raise UserError(f"the trainer cannot be set up: {' '.join(str(error).split())[:300]}") from None


def quiet() -> None:
    """Silence hints of Lightning's that do not concern a user of ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*number of training batches.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message)
    for message in (".*LeafSpec.*", ".*in eval mode at the start of training.*", ".*`srun` command.*"):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated.*", FutureWarning)  # DeepSpeed's calls


def _callbacks(config: Config, run: TrackedRun, say: Callable[[str], None]) -> list[Callback]:
    options = config.trainer
    monitor = f"val/{options.monitor}"
    mode = "min" if options.monitor in LOWER_IS_BETTER else "max"
    callbacks: list[Callback] = [OwnSignals(), EpochSeed(config.seed), StopAgain()]
    if options.stop == "per_part":
        callbacks.append(PartStopping(run, options.monitor, options.patience, say))
    callbacks += [Monitored(options.monitor), Costs(run)]
    if options.patience and options.stop == "whole":
        callbacks.append(
            EarlyStopping(
                monitor, mode=mode, patience=options.patience, check_on_train_epoch_end=True, check_finite=False
            )
        )
    if options.progress:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    folder = run.folder / "checkpoints"
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks.append(keep(filename="best", monitor=monitor, mode=mode))
    # After the best, and not by save_last, which leaves out the epochs that are no improvement.
    callbacks.append(keep(filename="last", every_n_epochs=1))
    return callbacks


def fit(trainer_: L.Trainer, task: FusionTask, source: FusionData, run: TrackedRun, options: TrainerOptions) -> None:
    """Train, from the run's last checkpoint if it has one.

    Raises:
        UserError: The checkpoint is of another number of devices than ZeRO can go on with.
    """
    last = checkpoints.find(run.folder / "checkpoints" / "last.ckpt")
    found = None if last is None else checkpoints.to_resume(last, options, trainer_.world_size)
    trainer_.fit(task, datamodule=source, ckpt_path=found and str(found), weights_only=True)
    run.flush()


def load_best(task: FusionTask, run: TrackedRun) -> None:
    """Load the checkpoint with the best monitored validation metric, and parts that have a best of their own over it.

    Raises:
        UserError: There is none.
    """
    place = run.folder / "checkpoints" / "best.ckpt"
    best = checkpoints.find(place)
    if best is None:
        raise UserError(f"run {run.run_id} kept no checkpoint in '{place.parent}'; fit it again")
    checkpoint = checkpoints.read(best)
    task.on_load_checkpoint(checkpoint)
    sharded.load_state(task, checkpoint["state_dict"])
    load_parts(task, best.parent)


def write_yaml(path: Path, config: Config) -> None:
    """Write the resolved config as yaml."""
    from omegaconf import OmegaConf

    write_bytes(path, OmegaConf.to_yaml(OmegaConf.create(config.public())).encode())
