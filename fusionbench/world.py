"""The processes of one run: which one this is, and what rank 0 tells the others.

They are started by torchrun, or by ``launch``, which gives them the same environment and a file to meet in. A process
that was started alone is a world of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from fusionbench.errors import UserError

T = TypeVar("T")
# Rank 0 may decode pictures or make a report for hours while the others wait for what it says.
_PATIENCE = timedelta(days=7)
MEETING = "FUSIONBENCH_MEETING"  # the file in which processes of one machine meet; unset: at torchrun's address
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """One process among those of a run.

    Attributes:
        rank: Its place among all.
        size: How many there are, on all nodes together.
        local_rank: Its place on its node.
        local_size: How many there are on its node.
        talk: The process group in which rank 0 speaks; None: not joined, or alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    talk: Any = None

    @property
    def leads(self) -> bool:
        """Whether it is rank 0, which alone tracks, reports and speaks."""
        return self.rank == 0

    def broadcast(self, value: T | None = None) -> T:
        """Return what rank 0 gives; the others wait for it."""
        if self.talk is None:
            return value  # type: ignore[return-value] # alone it is its own
        import torch.distributed as dist

        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0, group=self.talk)
        return held[0]  # type: ignore[no-any-return]


def current() -> World:
    """Return what torchrun's environment says of this process.

    Raises:
        UserError: The environment is torchrun's in part.
    """
    if "RANK" not in os.environ:
        return World()
    try:
        return World(*(int(os.environ[name]) for name in _NAMES))
    except (KeyError, ValueError):
        raise UserError(
            f"the environment has RANK, but not all of {', '.join(_NAMES)} as numbers; start the processes by torchrun"
        ) from None


@contextmanager
def joined(accelerator: str) -> Iterator[World]:
    """Join the process group of this process's world for a while.

    Products between GPUs go by NCCL, all else by gloo.

    Args:
        accelerator: ``trainer.accelerator``: ``auto``, ``cpu`` or ``gpu``.
    """
    world = current()
    if world.size == 1:
        yield world
        return
    import torch
    import torch.distributed as dist

    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu:
        if world.local_size > torch.cuda.device_count():  # said by all of the node, since the others would wait
            raise UserError(
                f"{world.local_size} processes were started on this node, which has {torch.cuda.device_count()} GPUs; "
                "start one for each"
            )
        torch.cuda.set_device(world.local_rank)
    file = os.environ.get(MEETING)
    store = None if file is None else dist.FileStore(file, world.size)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield World(world.rank, world.size, world.local_rank, world.local_size, talk)
    # Not after an error: NCCL would wait for the others, which wait in a collective until this process is gone.
    if dist.is_initialized():
        dist.destroy_process_group()
