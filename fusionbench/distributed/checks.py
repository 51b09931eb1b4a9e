"""What can be found wrong with a run on many devices before any of its processes is started."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.errors import UserError, check_number
from fusionbench.sections import TrainerOptions

# What ZeRO holds of each trained parameter in float32 where the optimizer is: its value, its gradient and two means.
OPTIMIZER_BYTES = 16


def check(options: TrainerOptions, batch_size: int, trainable: int, total_bytes: int, world_size: int) -> None:
    """Refuse options that can't work together or on this machine.

    Args:
        options: The run's.
        batch_size: Cases a step over all devices.
        trainable: Number of trained parameters; 0: not known yet.
        total_bytes: Of all parameters as they are held; 0: not known yet.
        world_size: Processes that torchrun started, on all nodes; 1: none.

    Raises:
        UserError: Says what was given, what is possible and what to do.
    """
    for name in ("devices", "num_nodes"):
        check_number(f"trainer.{name}", getattr(options, name), least=1)
    _check_processes(options, world_size)
    if batch_size % options.processes:
        raise UserError(
            f"data.batch_size {batch_size} can't be shared out among {options.processes} devices; give a multiple of "
            f"{options.processes}, e.g. {max(1, batch_size // options.processes) * options.processes}"
        )
    if options.strategy in STAGES:
        _check_zero(options)
    elif options.offload != "none" or options.offload_folder is not None:
        raise UserError(
            f"trainer.offload needs ZeRO, but trainer.strategy is {options.strategy}; set trainer.strategy=zero3 (or "
            "zero2), or trainer.offload=none and no trainer.offload_folder"
        )
    _check_space(options, trainable, total_bytes)


def _check_processes(options: TrainerOptions, world_size: int) -> None:
    """Refuse more devices than there are, and nodes that nobody has started."""
    if options.num_nodes > 1 and world_size == 1:
        raise UserError(
            f"trainer.num_nodes is {options.num_nodes}, but this process was started alone; start one for each device "
            "by torchrun or SLURM, as docs/clusters.md says, or set trainer.num_nodes=1"
        )
    found, what = _devices(options)
    if options.devices > found:
        raise UserError(f"trainer.devices is {options.devices}, but this machine has {found} {what}; set it to {found}")


def _devices(options: TrainerOptions) -> tuple[int, str]:
    """Return how many processes this machine can serve, and by what."""
    import torch

    if options.accelerator != "cpu" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        return count, "GPU" if count == 1 else "GPUs"
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count, "core to run on" if count == 1 else "cores to run on"


def _check_zero(options: TrainerOptions) -> None:
    """Refuse ZeRO without DeepSpeed, and what it can't do."""
    if find_spec("deepspeed") is None:
        raise UserError(
            f"trainer.strategy={options.strategy} needs DeepSpeed, which is not installed: "
            "pip install 'fusionbench-medical[deepspeed]', or set trainer.strategy=ddp"
        )
    if options.stop == "per_part":
        raise UserError(
            f"trainer.stop=per_part freezes parts during training, which {options.strategy} can't; set "
            "trainer.strategy=ddp or trainer.stop=whole"
        )
    if options.offload == "all" and options.strategy != "zero3":
        raise UserError("trainer.offload=all needs trainer.strategy=zero3; zero2 can offload the optimizer alone")
    if options.offload_folder is not None:
        _check_folder(options)


def _check_folder(options: TrainerOptions) -> None:
    """Refuse a folder that parameters can't be offloaded to."""
    if options.offload != "all":
        raise UserError(
            "trainer.offload_folder takes parameters, while optimizer states stay in main memory; set "
            "trainer.offload=all, or no folder"
        )
    folder = Path(str(options.offload_folder))
    if not folder.is_dir():
        raise UserError(f"trainer.offload_folder '{folder}' is no folder; make it on a fast local disk")
    from fusionbench.distributed.zero import can_offload_to_disk

    if not can_offload_to_disk(options):
        raise UserError(
            "trainer.offload_folder needs DeepSpeed's async_io, which can't be built here: install libaio-dev, g++ and "
            "ninja, or offload to main memory with no folder"
        )


def _check_space(options: TrainerOptions, trainable: int, total_bytes: int) -> None:
    """Refuse to offload more than this node has room for."""
    share = options.devices / options.processes
    memory = trainable * OPTIMIZER_BYTES * share if options.offload != "none" else 0.0
    if options.offload == "all" and options.offload_folder is not None:
        free = shutil.disk_usage(options.offload_folder).free
        _compare(total_bytes * share, free, f"trainer.offload_folder '{options.offload_folder}'")
    elif options.offload == "all":
        memory += total_bytes * share
    import psutil

    _compare(memory, psutil.virtual_memory().available, "main memory")


def _compare(wanted: float, free: float, place: str) -> None:
    if wanted > free:
        raise UserError(
            f"trainer.offload would put {wanted / 1e9:.1f} GB into {place}, which has {free / 1e9:.1f} GB to spare; "
            "offload less, or use more nodes"
        )
