"""What can be found wrong with a run on many devices before any of its processes is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.distributed.deepspeed_config import STAGES
from fusionbench.errors import UserError, check_number
from fusionbench.sections import TrainerOptions

if TYPE_CHECKING:
    from torch import nn

# Bytes in main memory of each number that is trained where the optimizer is offloaded: in float32 value, gradient and
# two means (Adam's); the gradient in the network's type comes on top. ``fusionbench plan`` counts the same.
_OFFLOADED = 16


def check(options: TrainerOptions, batch_size: int, trainable: int, total_bytes: int, world_size: int) -> None:
    """Refuse options that can't work together or on this machine.

    Args:
        options: The run's.
        batch_size: Cases a step over all devices.
        trainable: Number of trained parameters; 0: not known yet.
        total_bytes: Of all parameters as they are held (``held_bytes``); 0: not known yet.
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
    _check_precision(options)
    if options.strategy in STAGES:
        _check_zero(options)
    elif options.offload != "none" or options.offload_folder is not None:
        raise UserError(
            f"trainer.offload needs ZeRO, but trainer.strategy is {options.strategy}; set trainer.strategy=zero3 (or "
            "zero2), or trainer.offload=none and no trainer.offload_folder"
        )
    _check_space(options, trainable, total_bytes)


def held_bytes(options: TrainerOptions, parameters: Iterable[nn.Parameter]) -> int:
    """Return the bytes of parameters as a run holds them: with ZeRO in half precision but for 32-true.

    Args:
        options: The run's.
        parameters: In the types in which they are built.
    """
    halved = options.strategy in STAGES and options.precision != "32-true"
    return sum(p.numel() * (2 if halved else p.element_size()) for p in parameters)


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
    if _on_gpu(options):
        import torch

        count = torch.cuda.device_count()
        return count, "GPU" if count == 1 else "GPUs"
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count, "core to run on" if count == 1 else "cores to run on"


def _on_gpu(options: TrainerOptions) -> bool:
    import torch

    return options.accelerator != "cpu" and torch.cuda.is_available()


def _check_precision(options: TrainerOptions) -> None:
    """Refuse half precision of a kind that the devices lack."""
    if _on_gpu(options):
        import torch

        if options.precision.startswith("bf16") and not torch.cuda.is_bf16_supported():
            raise UserError(
                f"trainer.precision={options.precision} needs a GPU with bfloat16, which this one lacks; set "
                "trainer.precision=16-mixed or 32-true"
            )
    elif options.precision == "16-mixed":
        raise UserError(
            "trainer.precision=16-mixed needs a GPU, and this run is on the CPU; set trainer.precision=bf16-mixed or "
            "32-true"
        )


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
    from fusionbench.distributed.on_disk import missing

    lacking = missing(_on_gpu(options))
    if lacking:
        raise UserError(
            f"trainer.offload_folder needs DeepSpeed's async_io, which can't be built here without {lacking}; install "
            "that, or offload to main memory with no folder"
        )


def _check_space(options: TrainerOptions, trainable: int, total_bytes: int) -> None:
    """Refuse to offload more than this node has room for."""
    share = options.devices / options.processes
    each = _OFFLOADED + (4 if options.precision == "32-true" else 2)
    memory = trainable * each * share if options.offload != "none" else 0.0
    if options.offload == "all" and options.offload_folder is not None:
        free = shutil.disk_usage(options.offload_folder).free
        _compare(total_bytes * share, free, f"trainer.offload_folder '{options.offload_folder}'")
    elif options.offload == "all":
        memory += total_bytes * share
    from fusionbench.distributed.spare_memory import spare_memory

    _compare(memory, spare_memory(), "main memory")


def _compare(wanted: float, free: float, place: str) -> None:
    if wanted > free:
        raise UserError(
            f"trainer.offload would put {wanted / 1e9:.1f} GB into {place}, which has {free / 1e9:.1f} GB to spare; "
            "offload less, or use more nodes"
        )
