"""Which of Lightning's strategies a run's options ask for."""

from __future__ import annotations

import warnings
from datetime import timedelta

import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.sections import TrainerOptions

PATIENCE = timedelta(minutes=30)  # rank 0 may compute or write alone meanwhile


def strategy(options: TrainerOptions) -> Strategy | str:
    """Return what ``L.Trainer(strategy=...)`` takes.

    With several processes these are there already, started by torchrun or as it does, and may have joined their process
    group or not. DDP looks for unused parameters, since a batch may leave a loss out, e.g. when none of it has a mask.

    Args:
        options: The run's; ``auto`` is DDP with several processes and nothing with one.
    """
    for message in (".*sync_dist=True.*", ".*all_gather_into_tensor.* is deprecated.*"):
        warnings.filterwarnings("ignore", message)  # what is logged is gathered already; the other is DeepSpeed's
    if options.strategy in STAGES:
        from fusionbench.distributed.zero import Zero

        return Zero(options, timeout=PATIENCE)
    if options.processes == 1:
        return "auto"
    warnings.filterwarnings("ignore", ".*find_unused_parameters=True was specified.*")
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),
        process_group_backend=backend(options.accelerator),
        timeout=PATIENCE,
        find_unused_parameters=True,
    )


def backend(accelerator: str) -> str:
    """Return the backend of a process group: NCCL between GPUs, gloo for what lies in main memory."""
    return "cpu:gloo,cuda:nccl" if accelerator != "cpu" and torch.cuda.is_available() else "gloo"
